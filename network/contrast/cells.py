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

    A cell is background if no present class is above `bg_score`. A softmax over classes and
    background would not change the argmax, so there is none.

    Args:
        score: (G, K, g, g) in [0, 1], the normalised refined CAM.
        label: (G, K).
        bg_score: Score of the background, constant or (G, g, g).

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
        label: (G, C), which images may contribute to which class.
        top: Cells per class, taken from all images that have the class.

    Returns:
        (C, D) prototypes, and (C,) bool: False if the class has no cell with a positive score.

    Source: PPC (Y. Du et al., CVPR 2022), eq. 2.
    Differs from the releases: images without the class contribute nothing.
    """
    # The best cells of each class over all images that have it.
    allowed = torch.where(label[:, :, None, None] > 0, score, 0.0)
    weight, cell = allowed.transpose(0, 1).flatten(1).topk(top, dim=1)  # (C, top)
    # Their mean, weighted by score; a class without a positive score keeps a zero vector.
    chosen = take(flatten_cells(embedding), cell)  # (C, top, D)
    total = weight.sum(dim=1)  # (C,)
    prototype = (chosen * weight[:, :, None]).sum(dim=1) / total.clamp(min=_EPS)[:, None]
    return prototype, total > 0


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of one view over the global batch, flattened, without gradient.

    Attributes:
        embedding: (T, D).
        score: (T,), score of the cell's own pseudo class; 0 on background.
        pseudo: (T,) int64 in 0..K, the pseudo labels.
        images: G.
        prototype: (K+1, D); row 0 is the background's.
        valid: (K+1,) bool, which prototypes exist.
        inside: (T,) bool, which cells are not padding. Padding has pseudo label 0.
    """

    embedding: Tensor
    score: Tensor
    pseudo: Tensor
    images: int
    prototype: Tensor
    valid: Tensor
    inside: Tensor

    def local(self, cells: Tensor, progress: Progress) -> Tensor:
        """Return this rank's slice of `cells` (T, ...)."""
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
        refined_cam: (N, K, g, g) foreground channels, normalised to [0, 1] per image and class.
        label: (N, K).
        inside: (N, 1, g, g) bool, the cells that are not padding. No prototype comes from padding.
        bg_score: Score of the background in the pseudo labels, constant or (N, g, g).
        background: Make a background prototype too, from the cells whose best class scores lowest.
            Otherwise its row is zero and not valid.
        top_share: A prototype is made of g * g / `top_share` cells, at least one.

    Returns:
        The cells of the global batch.
    """
    # Everything of the global batch; absent classes score 0, and so does padding.
    embedding, label = dist.gather(embedding.float()), dist.gather(label)
    inside = dist.gather(inside)
    score = dist.gather(refined_cam.float()) * label[:, :, None, None] * inside
    if isinstance(bg_score, Tensor):
        bg_score = dist.gather(bg_score.float())
    pseudo = pseudo_labels(score, label, bg_score=bg_score) * inside[:, 0]  # (G, g, g)
    # Prototypes of the classes and, in channel 0, of the background.
    top = max(1, score.shape[-2] * score.shape[-1] // top_share)
    maps = torch.cat([1 - score.amax(1, True), score], dim=1) * inside  # (G, K+1, g, g)
    contributes = F.pad(label, (1, 0), value=float(background))
    prototype, valid = class_prototypes(embedding, maps, contributes, top=top)
    # The score of each cell's own pseudo class.
    own = score.gather(1, (pseudo - 1).clamp(min=0)[:, None])[:, 0] * (pseudo > 0)
    flat = own.flatten(), pseudo.flatten()
    flat_embedding, flat_inside = flatten_cells(embedding), inside.flatten()
    return Cells(flat_embedding, *flat, len(label), prototype, valid, flat_inside)


def class_ids_of(label: Tensor) -> Tensor:
    """Return the 0-based classes to compute for.

    On the CPU these are the classes of the global batch, on an accelerator all K. Reading from an
    accelerator which classes are present would stop its stream. Absent classes have no query and
    change nothing, and the draws are keyed per class, so both give the same result.

    Args:
        label: (N, K) of this rank.

    Returns:
        (P,) int64. There is always one class: a batch without any class gives the first class.
    """
    if reading_is_free(label):
        present = dist.gather(label).amax(dim=0).nonzero()[:, 0]
        return present if len(present) else present.new_zeros(1)
    return torch.arange(label.shape[1], device=label.device)


def class_sizes(pseudo: Tensor, num_classes: int) -> Tensor:
    """Count the cells of each pseudo label, without reading from an accelerator.

    Args:
        pseudo: (T,) int64 in 0..K.
        num_classes: K.

    Returns:
        (K+1,) int64.
    """
    size = torch.zeros(num_classes + 1, dtype=torch.long, device=pseudo.device)
    return size.scatter_add(0, pseudo, torch.ones_like(pseudo))


def flatten_cells(maps: Tensor) -> Tensor:
    """Flatten maps (G, D, g, g) to cells (G g g, D), without a copy if they are channels_last."""
    return maps.movedim(1, -1).flatten(0, 2)


def take(matrix: Tensor, index: Tensor) -> Tensor:
    """Return `matrix[index]`, three times as fast as indexing.

    Args:
        matrix: (A, D).
        index: (...) int64, rows of the matrix.

    Returns:
        (..., D).
    """
    return matrix.index_select(0, index.flatten()).unflatten(0, index.shape)


def l2_normalize(vector: Tensor) -> Tensor:
    """Divide vectors (..., D) by their length; the gradient of a vanishing one stays bounded."""
    return F.normalize(vector, dim=-1, eps=1e-4)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosines (A, B) between the vectors (A, D) and (B, D)."""
    return l2_normalize(a) @ l2_normalize(b).T
