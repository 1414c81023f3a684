"""Write a method's scores as an ONNX file, which runs without this project and without torch."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from network.backbones.cpu.folding import FoldedConv2d
from network.methods import Method
from tool.files import atomic_path

TOLERANCE = 1e-3  # between torch and onnxruntime, as a share of the largest score
LARGEST = 256  # a side is at most this many times its multiple
_EXAMPLE = (7, 9)  # sides of the example image in multiples


class Scores(nn.Module):
    """A network from a photograph to a method's scores at one scale.

    Args:
        method: In `eval()`; its `score` reads the image alone. It is changed: convolutions get a
            constant padding, and norms become part of them.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.multiple = getattr(method.backbone, "multiple", 1)
        if self.multiple > 1:
            method.backbone.multiple = 1
            _pad_constantly(method.backbone)
        self.method = method
        for name in ("mean", "std"):
            values = torch.tensor(getattr(method.backbone, name)).view(3, 1, 1)
            self.register_buffer(name, 255 * values)

    def forward(self, image: Tensor) -> Tensor:
        """Return (1, C, h, w) from an image (1, 3, H, W), RGB in 0..255.

        H and W are multiples of `multiple`.
        """
        return self.method.score({"image": (image - self.mean) / self.std})


def export_onnx(method: Method, config: dict[str, Any], out: Path) -> str:
    """Write the scores of a method at one scale as an ONNX file, and check it in onnxruntime.

    Its input `image` is (1, 3, H, W) float32, RGB in 0..255, of any height and width that the
    file's `multiple` divides. Its output `score` is (1, C, h, w): the logits of a segmentation
    network, the raw CAMs of a CAM method. The file's metadata have the class names.

    Args:
        method: Is left as it is.
        config: Of its checkpoint.
        out: The file to write.

    Returns:
        One line that says what was checked.

    Raises:
        ValueError: The method needs more than an image, a package is missing, or onnxruntime
            computes something else than torch.
    """
    if method.conditioned or set(method.infer_inputs) - {"image", "label"}:
        raise ValueError(f"ONNX: method {config['method']!r} needs more than an image")
    if method.backbone.squares:
        raise ValueError(f"ONNX: {method.backbone.name} takes only squares, the file any size")
    for package in ("onnxscript", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"--out {out}: ONNX needs {package}: pip install onnx onnxscript")
    network = Scores(copy.deepcopy(method).cpu().float()).eval()
    unit = network.multiple * math.ceil(32 / network.multiple)  # at least 32
    image = 255 * torch.rand(1, 3, *(unit * side for side in _EXAMPLE))
    sides: dict[int, Any] = {
        axis: unit * torch.export.Dim(name, min=2, max=LARGEST)
        if network.multiple > 1
        else torch.export.Dim(name, min=2 * unit, max=LARGEST * unit)
        for axis, name in ((2, "height"), (3, "width"))
    }
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            input_names=["image"],
            output_names=["score"],
            dynamic_shapes={"image": sides},
            verbose=False,
        )
    facts = {
        "class_names": json.dumps(list(config["class_names"])),
        "background": "first" if method.has_background else "none",
        "multiple": str(unit if network.multiple > 1 else 1),
    }
    program.model.metadata_props.update(facts)
    with atomic_path(out) as temporary:
        program.save(temporary)
        note = _checked(network, temporary, unit)
    return note


def _checked(network: Scores, path: Path, unit: int) -> str:
    """Compare the file with torch on images of two sizes; return a line about it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not checked: onnxruntime is not installed"
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes())
    worst = 0.0
    for sides in (_EXAMPLE, (4, 3)):
        image = 255 * torch.rand(1, 3, *(unit * side for side in sides))
        with torch.no_grad():
            expected = network(image).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        largest = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(found - expected).max()) / largest)
    if not worst <= TOLERANCE:
        raise ValueError(
            f"ONNX: onnxruntime differs from torch by {worst:.2g} of the largest score"
        )
    return f"onnxruntime differs from torch by {worst:.1e} of the largest score"


def _pad_constantly(module: nn.Module) -> None:
    """Replace convolutions whose padding depends on the size of the map, as TensorFlow's does.

    If the stride divides the size, the padding is constant.
    """
    for name, child in module.named_children():
        if isinstance(child, FoldedConv2d):
            weight, bias = child.folded()
            setattr(module, name, _constant(child, weight, bias, same=child.same))
        elif isinstance(child, Conv2dSame):
            setattr(module, name, _constant(child, child.weight, child.bias, same=True))
        else:
            _pad_constantly(child)


def _constant(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, same: bool) -> nn.Module:
    """Return a convolution with these weights, after a constant padding."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        0 if same else conv.padding,
        conv.dilation,
        conv.groups,
        bias=bias is not None,
        device="meta",
    )
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach(), requires_grad=False)
    if not same:
        return plain
    total = [
        max(dilation * (kernel - 1) + 1 - stride, 0)
        for kernel, stride, dilation in zip(
            conv.kernel_size, conv.stride, conv.dilation, strict=True
        )
    ]
    high, wide = total
    pad = nn.ZeroPad2d((wide // 2, wide - wide // 2, high // 2, high - high // 2))
    return nn.Sequential(pad, plain)
