"""Cells of a view, their pseudo labels and class prototypes."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from tool.parallel import dist
from tool.parallel.machine import reading_is_free
from tool.progress import Progress

_EPS = 1e-5


def pseudo_labels(score: Tensor, label: Tensor, *, bg_score: float | Tensor) -> Tensor:
    """The class of each cell: the best present class, or 0 where none is above `bg_score`.

    Args:
        score: (G, K, g, g) in [0, 1], the normalised refined CAM.
        label: (G, K).
        bg_score: score of the background, constant or (G, g, g). (A softmax over both would not
            change the argmax.)

    Returns:
        (G, g, g) int64 in 0..K.
    """
    present = score.masked_fill(label[:, :, None, None] == 0, -1.0)
    best, index = present.max(dim=1)
    return torch.where(best > bg_score, index + 1, 0)


def class_prototypes(
    embedding: Tensor, score: Tensor, label: Tensor, *, top: int
) -> tuple[Tensor, Tensor]:
    """One prototype a class: its `top` best cells in the images that have it, weighted by score.

    Args:
        embedding: (G, D, g, g). score: (G, C, g, g) >= 0. label: (G, C): which images may
            contribute.

    Returns:
        (C, D) and (C,) bool: False where the class has no cell with a positive score.

    Source: PPC (Y. Du et al., CVPR 2022), eq. 2. Differs from the releases: images without the
    class contribute nothing.
    """
    allowed = torch.where(label[:, :, None, None] > 0, score, 0.0)
    weight, cell = allowed.transpose(0, 1).flatten(1).topk(top, dim=1)
    chosen = take(flatten_cells(embedding), cell)
    total = weight.sum(dim=1)
    prototype = (chosen * weight[:, :, None]).sum(dim=1) / total.clamp(min=_EPS)[:, None]
    return prototype, total > 0


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of one view over the global batch, flattened, without gradient.

    Attributes:
        embedding: (T, D). score: (T,) of the cell's own pseudo class, 0 on background. pseudo: (T,)
            in 0..K.
        images: G. prototype: (K+1, D), row 0 the background's. valid: (K+1,) bool.
    """

    embedding: Tensor
    score: Tensor
    pseudo: Tensor
    images: int
    prototype: Tensor
    valid: Tensor

    def local(self, cells: Tensor, progress: Progress) -> Tensor:
        """This rank's slice of a (T, ...) tensor."""
        share = len(cells) // progress.world_size
        return cells[progress.rank * share : (progress.rank + 1) * share]


@torch.no_grad()
def view_cells(
    embedding: Tensor,
    refined_cam: Tensor,
    label: Tensor,
    *,
    bg_score: float | Tensor,
    background: bool,
    top_share: int = 16,
) -> Cells:
    """Gather one view of all ranks and find its pseudo labels and prototypes.

    Args:
        embedding: (N, D, g, g) of this rank.
        refined_cam: (N, K, g, g) foreground channels, normalised to [0, 1] per image and class.
        label: (N, K).
        bg_score: score of the background in the pseudo labels, constant or (N, g, g).
        top_share: a prototype is made of g * g / `top_share` cells.
        background: make a background prototype too, from the cells where every class is lowest;
            else its row is zero and not valid.
    """
    embedding, label = dist.gather(embedding.float()), dist.gather(label)
    score = dist.gather(refined_cam.float()) * label[:, :, None, None]
    if isinstance(bg_score, Tensor):
        bg_score = dist.gather(bg_score.float())
    pseudo = pseudo_labels(score, label, bg_score=bg_score)
    top = max(1, score.shape[-2] * score.shape[-1] // top_share)
    maps = torch.cat([1 - score.amax(1, True), score], dim=1)
    contributes = F.pad(label, (1, 0), value=float(background))
    prototype, valid = class_prototypes(embedding, maps, contributes, top=top)
    own = score.gather(1, (pseudo - 1).clamp(min=0)[:, None])[:, 0] * (pseudo > 0)
    flat = own.flatten(), pseudo.flatten()
    return Cells(flatten_cells(embedding), *flat, len(label), prototype, valid)


def class_slots(label: Tensor) -> Tensor:
    """(P,) 0-based classes to compute for: those of the batch on the CPU, all K on an accelerator.

    Asking an accelerator which classes are present would stop its stream; absent ones have no query
    and change nothing. The draws are keyed per class, so both give the same result. There is always
    one slot: a batch without any class computes for the first.
    """
    if reading_is_free(label):
        present = dist.gather(label).amax(dim=0).nonzero()[:, 0]
        return present if len(present) else present.new_zeros(1)
    return torch.arange(label.shape[1], device=label.device)


def class_sizes(pseudo: Tensor, num_classes: int) -> Tensor:
    """(K+1,) how many cells have each pseudo label; on an accelerator without asking it."""
    size = torch.zeros(num_classes + 1, dtype=torch.long, device=pseudo.device)
    return size.scatter_add(0, pseudo, torch.ones_like(pseudo))


def flatten_cells(maps: Tensor) -> Tensor:
    """(G, D, g, g) -> (G g g, D); no copy where the maps are channels_last."""
    return maps.movedim(1, -1).flatten(0, 2)


def take(matrix: Tensor, index: Tensor) -> Tensor:
    """`matrix[index]`, (A, D) and indices of any shape -> (..., D); three times as fast."""
    return matrix.index_select(0, index.flatten()).unflatten(0, index.shape)


def l2_normalize(vector: Tensor) -> Tensor:
    """(..., D) over its length; the gradient of a vanishing vector stays bounded."""
    return F.normalize(vector, dim=-1, eps=1e-4)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(A, D) and (B, D) -> (A, B)."""
    return l2_normalize(a) @ l2_normalize(b).T
