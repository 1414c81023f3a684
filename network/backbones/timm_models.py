"""Any network of timm that gives feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch.nn.functional as F
from torch import Tensor

from network.backbones import TAP_NAMES, Backbone, Tap
from network.backbones.cpu.depthwise import replace_depthwise
from tool.formats.cam import strided_size

NAMES = ("timm:<name>",)
_KINDS = (
    "what works are convolutional networks (such as timm:resnet50, timm:convnext_tiny and "
    "timm:tf_efficientnet_lite0) and plain ViTs (timm:vit_..., timm:deit...)"
)


class TimmBackbone(Backbone):
    """Any timm model that gives feature maps; a ReLU makes every tap non-negative.

    Models with TensorFlow's padding, such as EfficientNet-Lite, pad an even side at the right only,
    and an odd one on both sides. So their grid would shift with the size of the image, by up to a
    cell. Here the image is padded to a multiple of the output stride, and the maps are cropped.
    """

    def __init__(self, name: str, *, output_stride: int) -> None:
        super().__init__()
        self.name = name
        try:
            self.net = timm.create_model(
                model_name(name), features_only=True, output_stride=output_stride, pretrained=False
            )
        except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"backbone {name!r}: timm cannot make it with feature maps at output stride "
                f"{output_stride} ({error}); {_KINDS}"
            ) from error
        except AssertionError as error:  # timm's way to say that a network cannot be dilated
            raise ValueError(
                f"backbone {name!r} has no output stride {output_stride}: try 32"
            ) from error
        self.multiple = 1
        if any(type(module).__name__.endswith("Same") for module in self.net.modules()):
            self.multiple = output_stride
        replace_depthwise(self.net)
        info = self.net.feature_info
        names = TAP_NAMES[-len(info) :] if len(info) <= 5 else TAP_NAMES
        if len(info) < 3:
            raise ValueError(f"backbone {name!r} has {len(info)} feature maps, three are needed")
        channels, strides = info.channels()[-5:], info.reduction()[-5:]
        self.taps = {tap: Tap(c, s) for tap, c, s in zip(names, channels, strides, strict=True)}
        self.mean, self.std = input_statistics(model_name(name), self.net.pretrained_cfg)
        self.stem = self._stem([i["module"] for i in info.get_dicts()], info.reduction())

    def _stem(self, modules: list[str], strides: list[int]) -> tuple[str, ...]:
        """Return the names of all parameters up to the last feature map of stride 4 or less.

        The order is that of registration.
        """
        shallow = [m for m, s in zip(modules, strides, strict=True) if s <= 4]
        if not shallow:
            return ()
        last = "net." + shallow[-1].replace(".", "_" if hasattr(self.net, "return_layers") else ".")
        names = [name for name, _ in self.named_parameters()]
        inside = [i for i, name in enumerate(names) if name.startswith(last + ".")]
        return tuple(names[: inside[-1] + 1]) if inside else ()

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        size = image.shape[-2:]
        below, right = (-length % self.multiple for length in size)
        if below or right:
            image = F.pad(image, (0, right, 0, below))
        taps = dict(zip(self.taps, self.net(image)[-5:], strict=True))
        if below or right:
            for name in names:
                h, w = strided_size(size, self.taps[name].stride)
                taps[name] = taps[name][..., :h, :w]
        return {name: F.relu(taps[name]) for name in names}

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`: the weights that timm loads by default."""
        return address_of(self.name, self.net.pretrained_cfg)


def model_name(name: str) -> str:
    """Return timm's name of the backbone `timm:NAME`.

    Raises:
        ValueError: It is no name of timm's own models.
    """
    found = name.removeprefix("timm:")
    if set(found) & set(":/"):  # with hf-hub: and local-dir: timm would fetch files
        raise ValueError(f"backbone {name!r}: only the names of timm's own models are known")
    return found


def address_of(backbone: str, config: dict) -> tuple[str, str]:
    """Return the address of the weights that timm loads by default, and a name for the file.

    Their address on the Hugging Face hub is preferred, because the parameters there have timm's
    names.

    Args:
        backbone: Name of the backbone, for the message.
        config: Of the model, as timm describes its weights.

    Raises:
        ValueError: There are no such weights.
    """
    if config.get("hf_hub_id"):
        file = config.get("hf_hub_filename") or "model.safetensors"
        name = config["hf_hub_id"].replace("/", "--") + PurePosixPath(file).suffix
        return huggingface_hub.hf_hub_url(config["hf_hub_id"], file), name
    if config.get("url"):
        return config["url"], PurePosixPath(urlsplit(config["url"]).path).name
    raise ValueError(f"--weights imagenet: timm publishes no weights of {backbone}")


def input_statistics(
    name: str, config: dict
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and the standard deviation of a timm model's input in [0, 1].

    The EfficientNet-Lite weights were trained on (x - 127) / 128 with x in 0..255, which timm
    rounds to mean and std 0.5.
    """
    if name.startswith("tf_efficientnet_lite"):
        return (127 / 255,) * 3, (128 / 255,) * 3
    return tuple(config["mean"]), tuple(config["std"])


def build(name: str, *, output_stride: int) -> Backbone:
    """Build `timm:NAME` at an output stride that this model supports."""
    return TimmBackbone(name, output_stride=output_stride)
