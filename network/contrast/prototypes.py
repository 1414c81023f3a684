"""Cells against class prototypes: PPC's cross-view, pseudo-label and intra-view contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.cells import Cells, class_sizes, flatten_cells, l2_normalize
from network.losses import add_up
from tool.parallel.dist import global_mean
from tool.progress import Progress


def prototype_cross_entropy(
    embedding: Tensor,
    cells: Cells,
    positive: Tensor,
    *,
    temperature: float,
    ranks: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the cross entropy of each cell over its cosines with the class prototypes.

    With the prototypes p_c and the positive class y of a cell z, the loss is

        -log(exp(z . p_y / T) / sum_c exp(z . p_c / T)),

    where c runs over y and over the negatives: all other valid classes, or those of some ranks.

    Args:
        embedding: (N, D, g, g) of this rank; receives the gradient.
        cells: The view whose prototypes are used.
        positive: (N g g,) int64 in -1..K, the positive class of each of this rank's cells; -1 for
            none.
        temperature: T, which divides the cosines.
        ranks: First and last rank of the negatives, where rank 1 is the other class that is most
            similar to the cell. If there are fewer classes than the last rank, or if this is None,
            all others are negatives.

    Returns:
        (N g g,) losses, 0 for cells without a valid positive, and (N g g,) bool: which cells have
        one.

    Source: PPC (CVPR 2022), cross-view and intra-view contrast.
    """
    flat = flatten_cells(embedding.float())  # (N g g, D)
    # 1. Which cells have a positive with a prototype, and which classes are in the denominator.
    index = positive.clamp(min=0)
    has_positive = (positive >= 0) & cells.valid[index]
    allowed = cells.valid.expand(len(flat), -1)  # (N g g, K+1)
    # 2. The cosines over T. A class that is left out has -inf, so that its exponential is 0.
    logit = l2_normalize(flat) @ l2_normalize(cells.prototype).T / temperature  # (N g g, K+1)
    if ranks is not None:
        own = F.one_hot(index, len(cells.valid)).bool()  # (N g g, K+1)
        allowed = own | of_ranks(logit.detach(), allowed & ~own, *ranks)
    logit = logit.masked_fill(~allowed, -torch.inf)
    # A row without a positive could be -inf throughout, which would make its gradient NaN.
    logit = torch.where(has_positive[:, None], logit, torch.zeros_like(logit))
    # 3. The cross entropy.
    loss = logit.logsumexp(dim=1) - logit.gather(1, index[:, None])[:, 0]  # (N g g,)
    return torch.where(has_positive, loss, torch.zeros_like(loss)), has_positive


@torch.no_grad()
def intra_weights(cells: Cells, progress: Progress, name: str) -> Tensor:
    """Count how often each cell is a query of PPC's intra-view contrast.

    One half of each class's cells is drawn at random. Another half is added, the hard cells: the
    60 % least similar to the prototype, without the hardest 10 %. A cell can be in both halves.

    Args:
        cells: The view.
        progress: The step, which keys the draw.
        name: Name of the draw.

    Returns:
        (T,) float, each value 0, 1 or 2; 0 on padding.

    Source: PPC (CVPR 2022), section 3.4.
    """
    # Padding counts as a class of its own, so that it does not count in the shares of others.
    classes = len(cells.valid)
    pseudo = torch.where(cells.inside, cells.pseudo, classes)  # (T,) in 0..K+1
    size = class_sizes(pseudo, classes)  # (K+2,)
    # The cosine of each cell with the prototype of its pseudo class.
    own = l2_normalize(cells.prototype)[cells.pseudo]  # (T, D)
    similarity = (l2_normalize(cells.embedding) * own).sum(dim=1)  # (T,)
    # A share of a class is a range of ranks within it: ranks by the random draw for one half, and
    # by cosine, hardest first, for the other.
    draw = progress.uniform(name, (len(pseudo),), pseudo.device)
    count = size[pseudo]  # (T,), the size of each cell's class
    hardness = _rank_in_class(similarity, pseudo, size)  # (T,), 0 is the hardest
    chosen = (_rank_in_class(draw, pseudo, size) < 0.5 * count).float()
    hard = (hardness >= 0.1 * count) & (hardness < 0.6 * count)
    return (chosen + hard.float()) * cells.inside


def _rank_in_class(value: Tensor, pseudo: Tensor, size: Tensor) -> Tensor:
    """Return the position of each cell among those of its class, by ascending value.

    Args:
        value: (T,).
        pseudo: (T,) int64, the class of each cell.
        size: Per class, its number of cells.

    Returns:
        (T,) int64, from 0.
    """
    # Sort by value, then stably by class: cells are in the order of classes, and by value in each.
    order = value.argsort(stable=True)
    order = order[pseudo[order].argsort(stable=True)]
    # The position of each cell in that order, minus where its class begins.
    place = torch.arange(len(order), device=order.device)
    rank = torch.empty_like(order)
    rank[order] = place
    return rank - (size.cumsum(0) - size)[pseudo]


def of_ranks(similarity: Tensor, others: Tensor, first: int, last: int) -> Tensor:
    """Choose in each row the entries whose values have the ranks `first` to `last`.

    Args:
        similarity: (T, C).
        others: (T, C) bool, the entries that count. Only they have ranks, from 1 for the largest.
        first: Rank of the largest value to choose.
        last: Rank of the smallest value to choose. In a row with fewer entries that count, all of
            them are chosen.

    Returns:
        (T, C) bool.
    """
    # Sorting twice turns values into ranks.
    order = similarity.masked_fill(~others, -torch.inf).argsort(dim=1, descending=True)
    rank = order.argsort(dim=1) + 1  # (T, C)
    ranked = others & (rank >= first) & (rank <= last)
    return torch.where(others.sum(dim=1, keepdim=True) < last, others, ranked)


@torch.no_grad()
def class_balanced(weight: Tensor, pseudo: Tensor, num_classes: int) -> Tensor:
    """Scale the weights of cells so that each class has the same sum, and all sums add up to 1.

    Classes whose weights are all 0 do not count.

    Args:
        weight: (T,), not negative.
        pseudo: (T,) int64 in 0..K.
        num_classes: K.

    Returns:
        (T,); zeros if all weights are 0.
    """
    total = weight.new_zeros(num_classes + 1).scatter_add(0, pseudo, weight)  # (K+1,)
    classes = (total > 0).sum().clamp(min=1)  # number of classes with a weight
    return weight / total.clamp(min=1e-6)[pseudo] / classes


def prototype_losses(
    embeddings: list[Tensor],
    cells: list[Cells],
    progress: Progress,
    *,
    temperature: float,
    background: bool,
) -> dict[str, Tensor]:
    """Compute the two terms of the contrast between the views.

    Both are the cross entropy of each cell over its cosines with class prototypes, see
    `prototype_cross_entropy`. They exchange one thing between the views: `nce_prototype` the
    prototypes, `nce_pseudo` the pseudo labels, which choose the positive of each cell.

    Args:
        embeddings: (N, D, g, g) per view; receive the gradient.
        cells: The cells of the same views.
        progress: The step, which holds the rank.
        temperature: Divides the cosines.
        background: Whether the background has a prototype.

    Returns:
        {name: scalar}, this rank's shares, each the mean of the views.

    Source: PPC (CVPR 2022), cross-view contrast.
    """
    parts: dict[str, list[Tensor]] = {"nce_prototype": [], "nce_pseudo": []}
    for this, other in ((0, 1), (1, 0)):
        # The pseudo labels of this rank's cells in both views, which have the same grid.
        own = cells[this].local(cells[this].pseudo, progress)  # (N g g,)
        theirs = cells[other].local(cells[other].pseudo, progress)  # (N g g,)
        # Padding has no positive. Nor have this view's background cells, unless the background
        # has a prototype.
        excluded = ~cells[this].local(cells[this].inside, progress)
        if not background:
            excluded |= own == 0
        # Per term, the view whose prototypes are used, and the positive class of each cell.
        for name, source, positive in (
            ("nce_prototype", cells[other], own),
            ("nce_pseudo", cells[this], theirs),
        ):
            loss, has_positive = prototype_cross_entropy(
                embeddings[this],
                source,
                positive.masked_fill(excluded, -1),
                temperature=temperature,
            )
            parts[name].append(global_mean(loss.sum(), has_positive.sum()))
    return {name: add_up(views) / 2 for name, views in parts.items()}


def intra_loss(
    embedding: Tensor,
    cells: Cells,
    progress: Progress,
    name: str,
    *,
    temperature: float,
    num_classes: int,
) -> Tensor:
    """Compute PPC's contrast within a view.

    Random and hard cells are contrasted with the prototypes of other classes, of which those of
    ranks 4 to 13 by similarity are the negatives.

    Args:
        embedding: (N, D, g, g); receives the gradient.
        cells: The cells of the view.
        progress: The step, which keys the draw.
        name: Name of the draw.
        temperature: Divides the cosines.
        num_classes: K, without background.

    Returns:
        Scalar: this rank's share of the mean over the chosen cells of a class, and then over
        the classes.

    Source: PPC (CVPR 2022), section 3.4.
    """
    loss, _ = prototype_cross_entropy(
        embedding,
        cells,
        cells.local(cells.pseudo, progress),
        temperature=temperature,
        ranks=(4, 13),
    )
    # How often each cell is chosen, scaled so that each class has the same weight.
    weight = intra_weights(cells, progress, name) * cells.valid[cells.pseudo]  # (T,)
    weight = class_balanced(weight, cells.pseudo, num_classes)  # (T,)
    return (loss * cells.local(weight, progress)).sum() * progress.world_size
