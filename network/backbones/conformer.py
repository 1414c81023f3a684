"""Conformer-S: a ResNet and a transformer side by side, which exchange features in each block.

Source: Z. Peng et al., "Conformer: Local Features Coupling Global Representations for Visual
Recognition", ICCV 2021, in the form of TransCAM (R. Li et al., JVCIR 2023), whose last block has no
stride. The parameters have the names of their files, so that weights from there load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.attention import TransformerBlock
from network.backbones import AFFINITY, TAP_NAMES, TOKEN, Backbone, Tap
from network.norms import fix_statistics

NAMES = ("conformer_s", "conformer_s_slim")
STRIDE = 16
_HEADS, _WIDTH, _BLOCKS, _DROP_PATH = 6, 384, 12, 0.1
# First block of a stage of the convolutions -> its channels, the stride of its first block, and
# the cells per patch along an axis.
_STAGES = {2: (256, 1, 4), 5: (512, 2, 2), 9: (1024, 2, 1)}
# Block -> the tap that is its output.
_TAPS = {4: "tap2", 8: "low", 10: "mid", 12: "high"}


class ConvBlock(nn.Module):
    """A bottleneck of three convolutions around a shortcut.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Of the 3x3 convolution and of the shortcut.
        projected: The shortcut is a convolution also if the shapes are equal.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, projected: bool = False
    ) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, eps=1e-6)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, eps=1e-6)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-6)
        self.projected = projected or inputs != outputs or stride != 1
        if self.projected:
            self.residual_conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.residual_bn = nn.BatchNorm2d(outputs, eps=1e-6)

    def forward(self, feature: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the block.

        Args:
            feature: (N, in, h, w).
            added: (N, out / 4, h, w), the transformer's features; None for none.

        Returns:
            The output (N, out, h / stride, w / stride), and what the 3x3 convolution gives, with
            out / 4 channels. Both are non-negative.
        """
        middle = F.relu(self.bn1(self.conv1(feature)))
        if added is not None:
            middle = middle + added
        middle = F.relu(self.bn2(self.conv2(middle)))
        shortcut = self.residual_bn(self.residual_conv(feature)) if self.projected else feature
        return F.relu(self.bn3(self.conv3(middle)) + shortcut), middle


class Squeeze(nn.Module):
    """Turns a map into patches: a projection, the mean of the cells of a patch, a norm, a GELU."""

    def __init__(self, inputs: int, width: int, *, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.conv_project = nn.Conv2d(inputs, width, 1)
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute patches (N, p, width) of a map (N, D, h, w) with p = h w / cells^2."""
        patch = F.avg_pool2d(self.conv_project(feature), self.cells)
        return F.gelu(self.ln(patch.flatten(2).transpose(1, 2)))


class Expand(nn.Module):
    """Turns patches into a map: a projection, a norm, a ReLU; each cell gets its patch's values."""

    def __init__(self, width: int, outputs: int, *, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.conv_project = nn.Conv2d(width, outputs, 1)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-6)

    def forward(self, patch: Tensor, rows: int) -> Tensor:
        """Compute a map (N, D, h, w) of patches (N, p, width) in this many rows."""
        grid = patch.transpose(1, 2).unflatten(2, (rows, -1))  # (N, width, h / cells, w / cells)
        return F.interpolate(F.relu(self.bn(self.conv_project(grid))), scale_factor=self.cells)


class ConvTransBlock(nn.Module):
    """A block of convolutions and one of the transformer, which exchange features.

    Args:
        inputs: Input channels of the map.
        outputs: Output channels of the map.
        width: Of the tokens.
        stride: Of the map.
        cells: Cells of the output map per patch along an axis.
        drop_path: See `TransformerBlock`.
        last: The second block of convolutions projects its shortcut.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        stride: int,
        cells: int,
        drop_path: float,
        last: bool,
    ) -> None:
        super().__init__()
        self.cnn_block = ConvBlock(inputs, outputs, stride=stride)
        self.fusion_block = ConvBlock(outputs, outputs, projected=last)
        self.squeeze_block = Squeeze(outputs // 4, width, cells=cells)
        self.expand_block = Expand(width, outputs // 4, cells=cells)
        self.trans_block = TransformerBlock(width, _HEADS, drop_path=drop_path)

    def forward(
        self, feature: Tensor, tokens: Tensor, *, attention: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the block.

        Args:
            feature: (N, in, h, w).
            tokens: (N, 1 + p, width), the class token first.
            attention: Compute the affinity.

        Returns:
            The next map, the next tokens, and this block's affinity (N, p, p) or None.
        """
        feature, middle = self.cnn_block(feature)
        # The class token is doubled here, as published.
        tokens = tokens + torch.cat([tokens[:, :1], self.squeeze_block(middle)], dim=1)
        affinity = self.trans_block.affinity(tokens, skip=1) if attention else None
        tokens = self.trans_block(tokens)
        rows = feature.shape[-2] // self.expand_block.cells
        feature, _ = self.fusion_block(feature, self.expand_block(tokens[:, 1:], rows))
        return feature, tokens, affinity


class Conformer(nn.Module):
    """Conformer-S without its two heads, output stride 16.

    Args:
        divisor: Divides every channel count (1: the real network, 4: the slim one for tests).
    """

    def __init__(self, *, divisor: int = 1) -> None:
        super().__init__()
        width, stem, channels = _WIDTH // divisor, 64 // divisor, 256 // divisor
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.trans_norm = nn.LayerNorm(width)
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv_1 = ConvBlock(stem, channels)
        self.trans_patch_conv = nn.Conv2d(stem, width, 4, stride=4)
        self.trans_1 = TransformerBlock(width, _HEADS, drop_path=0.0)
        inputs, outputs, cells = channels, channels, 4
        for index in range(2, _BLOCKS + 1):
            stride = 1
            if index in _STAGES:
                outputs, stride, cells = _STAGES[index]
                outputs //= divisor
            block = ConvTransBlock(
                inputs,
                outputs,
                width=width,
                stride=stride,
                cells=cells,
                drop_path=_DROP_PATH * (index - 1) / (_BLOCKS - 1),
                last=index == _BLOCKS,
            )
            self.add_module(f"conv_trans_{index}", block)
            inputs = outputs
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialise)

    def forward(self, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute the taps called `names` of images (N, 3, H, H)."""
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, stride=2, padding=1)
        taps, feature = {"tap1": stem}, self.conv_1(stem)[0]
        patch = self.trans_patch_conv(stem).flatten(2).transpose(1, 2)  # (N, p, width)
        tokens = torch.cat([self.cls_token.expand(len(image), -1, -1), patch], dim=1)
        attention = AFFINITY in names
        if attention:
            taps[AFFINITY] = self.trans_1.affinity(tokens, skip=1)
        tokens = self.trans_1(tokens)
        for index in range(2, _BLOCKS + 1):
            block = getattr(self, f"conv_trans_{index}")
            feature, tokens, affinity = block(feature, tokens, attention=attention)
            if affinity is not None:
                taps[AFFINITY] = taps[AFFINITY] + affinity
            if _TAPS.get(index) in names:
                taps[_TAPS[index]] = feature
        # Computed in any case: with several ranks, each parameter must get a gradient.
        taps[TOKEN] = self.trans_norm(tokens[:, 0])
        if "high" in names and TOKEN not in names and torch.is_grad_enabled():
            taps["high"] = taps["high"] + 0 * sum(p.sum() for p in self.trans_norm.parameters())
        return {name: taps[name] for name in names}


def _initialise(module: nn.Module) -> None:
    """Initialise one layer as published; biases of convolutions stay as torch draws them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ConformerBackbone(Backbone):
    """Conformer-S at full or 1/4 width; it takes only squares.

    The tap `affinity` is the attention of cells to cells, averaged over heads and summed over the
    12 blocks. `token` is the class token after the last norm. With pretrained weights every norm
    keeps its statistics and trains its scale and shift, and nothing else is frozen.
    """

    squares = STRIDE
    sides = (256, 512, 768)
    image_heads = ("conv_cls_head.", "trans_cls_head.")
    stem = ()

    def __init__(self, name: str, *, divisor: int) -> None:
        super().__init__()
        self.name = name
        self.net = Conformer(divisor=divisor)
        channels, strides = (64, 256, 512, 1024, 1024), (4, 4, 8, STRIDE, STRIDE)
        self.taps = {
            tap: Tap(number // divisor, stride)
            for tap, number, stride in zip(TAP_NAMES, channels, strides, strict=True)
        }
        self.taps[AFFINITY] = self.taps["high"]
        self.taps[TOKEN] = Tap(_WIDTH // divisor, STRIDE)

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        return self.net(image, names)

    def freeze_norms(self) -> None:
        """See `Backbone.freeze_norms`: only the statistics are constant."""
        fix_statistics(self)

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`."""
        if self.name != "conformer_s":
            return super().published()
        raise ValueError(
            "--weights imagenet: neither torchvision nor timm has conformer_s: pass the file of "
            "its authors (Conformer_small_patch16.pth), or that of TransCAM, as --weights FILE"
        )


def only_stride(name: str) -> int:
    """Return 16, the only output stride."""
    del name
    return STRIDE


def build(name: str, *, output_stride: int) -> Backbone:
    """Build Conformer-S at full width, or at a quarter of it for tests; its stride is 16."""
    if output_stride != STRIDE:
        raise ValueError(f"{name} has no output stride {output_stride}: its only one is {STRIDE}")
    return ConformerBackbone(name, divisor=1 if name == "conformer_s" else 4)
