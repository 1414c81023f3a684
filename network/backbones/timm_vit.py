"""timm's plain vision transformers, such as DINO, DINOv2 and DeiT.

Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. The network is timm's,
with the names of its files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Attention, Block, PatchEmbed, VisionTransformer
from torch import Tensor

from network.attention import patch_attention
from network.backbones import AFFINITY, RAW, TAP_NAMES, TOKEN, Backbone, Tap
from network.backbones.timm_models import address_of, input_statistics, model_name

NAMES = ("timm:vit_<name>", "timm:deit<name>")
_DEPTHS = (1, 2, 4, 8, 12)  # of the taps, in twelfths of all blocks


class VitBackbone(Backbone):
    """A plain vision transformer of timm's.

    It takes images of any size. They are padded at the right and at the bottom to whole patches,
    and the position embeddings are resampled to the grid of patches. With pretrained weights the
    patch embedding is frozen. The taps are:

    - `tap1` to `high`: the patch tokens after the blocks at 1/12, 2/12, 4/12, 8/12 and 12/12 of
      the depth. They pass the network's last norm and a ReLU, and become a map.
    - `raw`: `high` before its ReLU.
    - `affinity`: the attention of patches to patches, averaged over heads and summed over blocks.
    - `token`: the class token after the last norm, if the network has one.

    Args:
        name: "timm:vit_..." or "timm:deit...".
        output_stride: Must be the size of a patch in pixels.

    Raises:
        ValueError: The network is unknown to timm, is no plain transformer or has too few blocks,
            or the output stride is not the size of its patches.
    """

    stem = ("net.patch_embed.",)

    def __init__(self, name: str, *, output_stride: int) -> None:
        super().__init__()
        self.name = name
        self.net = plain_vit(name)
        self.patch = self.multiple = self.net.patch_embed.patch_size[0]
        if output_stride != self.patch:
            raise ValueError(
                f"backbone {name!r} has no output stride {output_stride}: its only one is the size "
                f"of a patch, --output-stride {self.patch}"
            )
        width, depth = self.net.embed_dim, len(self.net.blocks)
        self.ends = {
            -(-depth * share // 12): tap for tap, share in zip(TAP_NAMES, _DEPTHS, strict=True)
        }
        if len(self.ends) < len(TAP_NAMES):
            raise ValueError(f"backbone {name!r} has {depth} blocks, too few for five feature maps")
        extra = (AFFINITY, RAW, *([TOKEN] if self.net.has_class_token else []))
        self.taps = dict.fromkeys((*TAP_NAMES, *extra), Tap(width, self.patch))
        self.mean, self.std = input_statistics(model_name(name), self.net.pretrained_cfg)

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        net, skip = self.net, self.net.num_prefix_tokens
        below, right = (-length % self.multiple for length in image.shape[-2:])
        if below or right:
            image = F.pad(image, (0, right, 0, below))
        rows = image.shape[-2] // self.patch
        tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(image))))
        taps: dict[str, Tensor] = {}
        for index, block in enumerate(net.blocks, start=1):
            if AFFINITY in names:
                affinity = attention_of(block, tokens, skip=skip)
                taps[AFFINITY] = affinity if index == 1 else taps[AFFINITY] + affinity
            tokens = block(tokens)
            if self.ends.get(index) in names:
                taps[self.ends[index]] = F.relu(self._laid_out(tokens, rows))
        if RAW in names:
            taps[RAW] = self._laid_out(tokens, rows)
        if TOKEN in names:
            taps[TOKEN] = self._normed(tokens)[:, 0]
        return {name: taps[name] for name in names}

    def _normed(self, tokens: Tensor) -> Tensor:
        """Apply the last norm to tokens (N, T, D); one of the two is the identity."""
        return self.net.fc_norm(self.net.norm(tokens))

    def _laid_out(self, tokens: Tensor, rows: int) -> Tensor:
        """Return the patches of tokens (N, T, D), normalised, as a map (N, D, rows, w)."""
        patches = self._normed(tokens)[:, self.net.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, (rows, -1))

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """See `Backbone.fitted`: position embeddings of another grid are resampled."""
        own = self.net.pos_embed
        if own is None or name.rpartition(".")[2] != "pos_embed" or not _is_plain(tensor):
            return tensor
        if tensor.ndim != 3 or tensor.shape[::2] != own.shape[::2] or tensor.shape == own.shape:
            return tensor
        skip = 0 if self.net.no_embed_class else self.net.num_prefix_tokens
        side = math.isqrt(max(0, tensor.shape[1] - skip))
        if not side or side * side + skip != tensor.shape[1]:
            return tensor
        grid = self.net.patch_embed.grid_size
        return resample_abs_pos_embed(tensor, list(grid), [side, side], num_prefix_tokens=skip)

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`: the weights that timm loads by default."""
        return address_of(self.name, self.net.pretrained_cfg)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor of a file is a dense one of floating-point numbers."""
    dense = not tensor.is_nested and tensor.layout == torch.strided
    return dense and not tensor.is_quantized and tensor.is_floating_point()


def attention_of(block: Block, tokens: Tensor, *, skip: int) -> Tensor:
    """Compute the `patch_attention` in one of timm's blocks.

    Args:
        block: The block.
        tokens: (N, T, D), its input.
        skip: Number of tokens at the front that are no patches.

    Returns:
        (N, p, p) with p = T - skip.
    """
    layer = block.attn
    qkv = layer.qkv(block.norm1(tokens)).unflatten(2, (3, layer.num_heads, layer.head_dim))
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, d)
    return patch_attention(layer.q_norm(query), layer.k_norm(key), skip=skip)


def plain_vit(name: str) -> VisionTransformer:
    """Return timm's network of this name, without its head and for images of any size.

    Raises:
        ValueError: There is none, or it is another kind of transformer.
    """
    try:
        net: Any = timm.create_model(
            model_name(name), pretrained=False, num_classes=0, dynamic_img_size=True
        )
    except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
        raise ValueError(f"backbone {name!r}: timm cannot make it ({error})") from error
    plain = isinstance(net, VisionTransformer) and type(net.patch_embed) is PatchEmbed
    plain = plain and len(set(net.patch_embed.patch_size)) == 1
    if not plain or any(type(b) is not Block or type(b.attn) is not Attention for b in net.blocks):
        raise ValueError(
            f"backbone {name!r} is no plain vision transformer: there are such as "
            "timm:vit_small_patch16_224.dino, timm:deit_small_patch16_224 and "
            "timm:vit_small_patch14_dinov2.lvd142m"
        )
    net.attn_pool = None  # pools tokens for the head
    return net


def only_stride(name: str) -> int:
    """Return the only output stride of a network: the size of its patches in pixels."""
    with torch.device("meta"):
        return plain_vit(name).patch_embed.patch_size[0]


def build(name: str, *, output_stride: int) -> Backbone:
    """Build a backbone by its name; see `VitBackbone`."""
    return VitBackbone(name, output_stride=output_stride)
