"""Cells of a view, their pseudo labels and their class prototypes."""

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
    """Return the pseudo label of each cell: its best present class, or 0 for the background.

    A cell is background if no present class scores above `bg_score`. No softmax is applied: it
    would not change the argmax.

    Args:
        score: (G, K, g, g) in [0, 1], the normalised refined CAM.
        label: (G, K), image-level {0, 1}.
        bg_score: Score of the background: one number, or (G, g, g).

    Returns:
        (G, g, g) int64 in 0..K.
    """
    present = score.masked_fill(label[:, :, None, None] == 0, -1.0)  # below every score
    best, index = present.max(dim=1)  # (G, g, g)
    return torch.where(best > bg_score, index + 1, 0)


def class_prototypes(
    embedding: Tensor, score: Tensor, label: Tensor, *, top: int
) -> tuple[Tensor, Tensor]:
    """Compute one prototype per class: the mean of its best cells, weighted by their scores.

    Args:
        embedding: (G, D, g, g).
        score: (G, C, g, g), not negative.
        label: (G, C), positive for the images that may contribute to a class.
        top: Number of cells per class, in 1..T. They are taken from all images that may contribute.

    Returns:
        (C, D) prototypes, and (C,) bool: False for a class without a cell of positive score. Its
        prototype is 0.

    Source: PPC (Y. Du et al., CVPR 2022), eq. 2.
    Differs from the releases: images without the class contribute nothing.
    """
    # Rank the cells of all images that have the class; the others score 0.
    allowed = torch.where(label[:, :, None, None] > 0, score, 0.0)  # (G, C, g, g)
    weight, cell = allowed.transpose(0, 1).flatten(1).topk(top, dim=1)  # (C, top)
    # Average the best ones, weighted by score. If all weights are 0, so is the prototype.
    chosen = take(flatten_cells(embedding), cell)  # (C, top, D)
    total = weight.sum(dim=1)  # (C,)
    prototype = (chosen * weight[:, :, None]).sum(dim=1) / total.clamp(min=_EPS)[:, None]
    return prototype, total > 0


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of one view over the global batch, flattened, without gradient.

    Attributes:
        embedding: (T, D).
        score: (T,) in [0, 1], the score of the cell's own pseudo class; 0 on background.
        pseudo: (T,) int64 in 0..K, the pseudo labels.
        images: Number of images in the global batch, G.
        prototype: (K+1, D); row 0 is the background's.
        valid: (K+1,) bool, which prototypes exist.
        inside: (T,) bool, False on padding. Padding has pseudo label 0.
    """

    embedding: Tensor
    score: Tensor
    pseudo: Tensor
    images: int
    prototype: Tensor
    valid: Tensor
    inside: Tensor

    def local(self, cells: Tensor, progress: Progress) -> Tensor:
        """Return this rank's slice of a tensor over all cells.

        Args:
            cells: (T, ...), of all ranks.
            progress: The step, which holds the rank and the number of ranks.

        Returns:
            (T / number of ranks, ...).
        """
        share = len(cells) // progress.world_size
        return cells[progress.rank * share : (progress.rank + 1) * share]


@torch.no_grad()
def view_cells(
    embedding: Tensor,
    refined_cam: Tensor,
    label: Tensor,
    inside: Tensor,
    *,
    bg_score: float | Tensor,
    background: bool,
    top_share: int = 16,
) -> Cells:
    """Gather one view of all ranks and find its pseudo labels and prototypes.

    Args:
        embedding: (N, D, g, g) of this rank.
        refined_cam: (N, K, g, g), the foreground channels, normalised to [0, 1] per image and
            class.
        label: (N, K), image-level {0, 1}.
        inside: (N, 1, g, g) bool, False on padding. No prototype is made of padding.
        bg_score: Score of the background in the pseudo labels: one number, or (N, g, g).
        background: Whether to make a background prototype, of the cells whose best class scores
            lowest. If False, its row is 0 and not valid.
        top_share: A prototype is the mean of g * g / `top_share` cells, at least one.

    Returns:
        The cells of the global batch.
    """
    # Gather the global batch. Absent classes and padding score 0.
    embedding, label = dist.gather(embedding.float()), dist.gather(label)
    inside = dist.gather(inside)
    score = dist.gather(refined_cam.float()) * label[:, :, None, None] * inside  # (G, K, g, g)
    if isinstance(bg_score, Tensor):
        bg_score = dist.gather(bg_score.float())
    pseudo = pseudo_labels(score, label, bg_score=bg_score) * inside[:, 0]  # (G, g, g)
    # Make the prototypes of the classes and, in row 0, of the background. A cell's background score
    # is 1 minus that of its best class. Every image has background, so its label is 1 if wanted.
    top = max(1, score.shape[-2] * score.shape[-1] // top_share)
    maps = torch.cat([1 - score.amax(1, True), score], dim=1) * inside  # (G, K+1, g, g)
    contributes = F.pad(label, (1, 0), value=float(background))  # (G, K+1)
    prototype, valid = class_prototypes(embedding, maps, contributes, top=top)
    # Look up the score of each cell's own pseudo class; a background cell scores 0.
    own = score.gather(1, (pseudo - 1).clamp(min=0)[:, None])[:, 0] * (pseudo > 0)  # (G, g, g)
    flat = own.flatten(), pseudo.flatten()
    flat_embedding, flat_inside = flatten_cells(embedding), inside.flatten()
    return Cells(flat_embedding, *flat, len(label), prototype, valid, flat_inside)


def class_ids_of(label: Tensor) -> Tensor:
    """Return the 0-based classes for which the terms are computed.

    On the CPU these are the classes of the global batch. On an accelerator they are all K classes,
    because reading which of them are present would stop its stream. Both give the same result:
    absent classes have no query, and the draws of a class do not depend on the other classes.

    Args:
        label: (N, K) of this rank, image-level {0, 1}.

    Returns:
        (P,) int64, ascending, with P at least 1: a batch without any class gives class 0.
    """
    if reading_is_free(label):
        present = dist.gather(label).amax(dim=0).nonzero()[:, 0]
        return present if len(present) else present.new_zeros(1)
    return torch.arange(label.shape[1], device=label.device)


def class_sizes(pseudo: Tensor, num_classes: int) -> Tensor:
    """Count the cells of each pseudo label, without copying a value from an accelerator.

    Args:
        pseudo: (T,) int64 in 0..K.
        num_classes: K.

    Returns:
        (K+1,) int64.
    """
    size = torch.zeros(num_classes + 1, dtype=torch.long, device=pseudo.device)
    return size.scatter_add(0, pseudo, torch.ones_like(pseudo))


def flatten_cells(maps: Tensor) -> Tensor:
    """Flatten maps (G, D, g, g) to cells (G g g, D).

    Maps whose memory format is channels_last are not copied.
    """
    return maps.movedim(1, -1).flatten(0, 2)


def take(matrix: Tensor, index: Tensor) -> Tensor:
    """Return `matrix[index]` by `index_select`, which is three times as fast as indexing.

    Args:
        matrix: (A, D).
        index: (...) int64 in 0..A-1, rows of the matrix.

    Returns:
        (..., D).
    """
    return matrix.index_select(0, index.flatten()).unflatten(0, index.shape)


def l2_normalize(vector: Tensor) -> Tensor:
    """Divide vectors (..., D) by their length, or by 1e-4 if they are shorter.

    The lower limit keeps the gradient of a vanishing vector bounded.
    """
    return F.normalize(vector, dim=-1, eps=1e-4)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine of each vector of `a` (A, D) with each of `b` (B, D), as (A, B)."""
    return l2_normalize(a) @ l2_normalize(b).T
