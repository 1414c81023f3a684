"""Self-attention of transformers: its blocks, and the affinity of patches that it gives.

The affinity is accumulated head by head and block by block, so that at no time the maps of all
heads lie in memory: those of 12 blocks of 6 heads at 768 px would take 1.5 GB per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.dropout import SeededDropPath
from network.losses import full_precision


class SelfAttention(nn.Module):
    """Multi-head self-attention; the output of `qkv` is q, k and v, each head by head.

    Args:
        width: D.
        heads: A divisor of D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of tokens (N, T, D), each (N, heads, T, D / heads)."""
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the attention of tokens (N, T, D) to each other."""
        mixed = F.scaled_dot_product_attention(*self.parts(tokens))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU in between.

    Args:
        width: D.
        hidden: Width between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class TransformerBlock(nn.Module):
    """A transformer block: attention and an MLP, each after a norm and in a residual branch.

    Args:
        width: D.
        heads: Number of heads of the attention.
        drop_path: Probability of leaving out a branch for an image in training.
    """

    def __init__(self, width: int, heads: int, *, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.drop_path = SeededDropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, D)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def affinity(self, tokens: Tensor, *, skip: int) -> Tensor:
        """Return the `patch_attention` of this block for its input (N, T, D)."""
        query, key, _ = self.attn.parts(self.norm1(tokens))
        return patch_attention(query, key, skip=skip)


def patch_attention(query: Tensor, key: Tensor, *, skip: int) -> Tensor:
    """Compute the attention of patches to patches, the mean over heads.

    Args:
        query: (N, heads, T, d).
        key: (N, heads, T, d).
        skip: Number of tokens at the front that are not patches. Patches attend to them, but the
            result has neither their rows nor their columns.

    Returns:
        (N, p, p) float32 with p = T - skip. A row sums to 1 minus the attention to skipped tokens.
    """
    scale, heads = query.shape[-1] ** -0.5, query.shape[1]
    total = torch.zeros((), device=query.device)
    with full_precision(query):
        for one, other in zip(query.unbind(1), key.unbind(1), strict=True):
            logit = (one[:, skip:].float() * scale) @ other.float().transpose(1, 2)  # (N, p, T)
            total = total + logit.softmax(dim=2)[..., skip:]
    return total / heads
