"""Losses of maps for the hosts (EPS, SEAM, PPC, AMN).

Letters: N batch, C channels, K foreground classes, H W pixels, h w cells. In maps with K+1 channels
channel 0 is the background. `label` is image-level, (N, K) in {0, 1}, without background.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network.maps import min_max, resize, resize_area, with_background_label
from tool.parallel.dist import global_mean


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors of the same shape."""
    return functools.reduce(torch.add, terms)


def mean_of_views(terms: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return {name: mean over the views} of the terms of one or more views."""
    return {name: add_up(view[name] for view in terms) / len(terms) for name in terms[0]}


def classification(logit: Tensor, label: Tensor) -> Tensor:
    """Compute the multi-label soft margin loss.

    Args:
        logit: (N, K), of the foreground classes.
        label: (N, K), image-level {0, 1}.

    Returns:
        Scalar: the mean binary cross entropy over images and classes.
    """
    return F.multilabel_soft_margin_loss(logit, label)


def saliency_match(
    prob: Tensor, label: Tensor, saliency: Tensor, *, tau: float, lam: float
) -> Tensor:
    """Compute EPS's saliency loss: foreground and inverted background should match the saliency.

    The loss is the mean of (lam * foreground + (1 - lam) * (1 - background) - saliency)^2.

    Args:
        prob: (N, K+1, h, w) in [0, 1], background first, with a sum of at most 1 over channels.
        label: (N, K), image-level {0, 1}.
        saliency: (N, 1, H, W) in [0, 1]; averaged down to the cells.
        tau: A present class counts as foreground if more than this share of its area is salient.
        lam: Weight of the foreground map, in [0, 1]; the inverted background map has 1 - `lam`.

    Returns:
        Scalar: the mean over images and cells.

    Source: EPS (S. Lee et al., CVPR 2021), eq. 3-6.
    Differs from the release: the saliency is averaged over each cell, where the release takes its
    nearest pixel. A class whose map is still empty counts as foreground, so that it can grow from a
    cold start.
    """
    saliency = resize_area(saliency, prob.shape[-2:])[:, 0]  # (N, h, w)
    foreground, present = prob[:, 1:], label[:, :, None, None]
    # Find the classes that count as foreground: enough of their area, where the map rounds to 1, is
    # salient, or they have no area yet.
    with torch.no_grad():
        area = foreground.round()  # (N, K, h, w)
        size = area.sum(dim=(-2, -1), keepdim=True)  # (N, K, 1, 1)
        overlap = (area * saliency[:, None].round()).sum(dim=(-2, -1), keepdim=True)
        valid = ((overlap / (size + 1e-4) > tau) | (size == 0)).to(prob.dtype)  # (N, K, 1, 1)
    # Sum up the foreground map; the other present classes are part of the background map.
    foreground_map = (foreground * present * valid).sum(dim=1)  # (N, h, w)
    background_map = prob[:, 0] + (foreground * present * (1 - valid)).sum(dim=1)  # (N, h, w)
    estimate = lam * foreground_map + (1 - lam) * (1 - background_map)
    return F.mse_loss(estimate, saliency)


def min_pool(refined_cam: Tensor, label: Tensor) -> Tensor:
    """Compute SEAM's minimum pooling: the least active quarter of an image should be background.

    Args:
        refined_cam: (N, K+1, h, w), background first.
        label: (N, K), image-level {0, 1}.

    Returns:
        Scalar: with the score of a cell as that of its best present class, the mean over the
        quarter of each image's cells that score lowest.

    Source: SEAM (Y. Wang et al., CVPR 2020), the background term of its refined map.
    """
    best = (refined_cam[:, 1:] * label[:, :, None, None]).amax(dim=1).flatten(1)  # (N, h w)
    quarter = max(1, best.shape[1] // 4)
    return F.relu(best.topk(quarter, dim=1, largest=False).values).mean()


def equivariance(cam_1: Tensor, cam_2: Tensor, label: Tensor) -> Tensor:
    """Compute SEAM's ER loss: the normalised CAMs of two views should agree on view 2's cells.

    Args:
        cam_1: (N, K+1, h, w) of view 1, raw, background first.
        cam_2: (N, K+1, g, g) of view 2, raw, background first.
        label: (N, K), image-level {0, 1}.

    Returns:
        Scalar: the mean absolute difference over images, cells and all K classes. The difference of
        an absent class is 0.

    Source: SEAM (CVPR 2020), eq. for L_ER.
    """
    present = label[:, :, None, None]
    normal_1 = resize(min_max(cam_1)[:, 1:], cam_2.shape[-2:])
    return ((normal_1 - min_max(cam_2)[:, 1:]) * present).abs().mean()


def one_hot_max(maps: Tensor) -> Tensor:
    """Keep only the maximal foreground channel of each cell.

    Args:
        maps: (N, K+1, h, w), background first.

    Returns:
        (N, K+1, h, w): the other foreground channels are 0, the background is unchanged.
    """
    foreground = maps[:, 1:]
    return torch.cat([maps[:, :1], foreground * (foreground == foreground.amax(1, True))], dim=1)


def cross_refinement(cam: Tensor, refined_cam: Tensor, label: Tensor) -> Tensor:
    """Compute one direction of ECR: one view's refined map should look like the other's CAM.

    Args:
        cam: (N, K+1, g, g) of view j, raw, background first; gets no gradient.
        refined_cam: (N, K+1, g, g) of view i, background first; receives the gradient.
        label: (N, K), image-level {0, 1}.

    Returns:
        Scalar: this rank's share of the mean absolute difference over the cells of the background
        and of the present classes.

    Source: SEAM (CVPR 2020), L_ECR.
    Differs from the release: the mean is taken over these cells, not over the largest 20 % of all
    entries, and channel 0 really is the background.
    """
    # The target: the winning class of each cell, and 1 minus the winner as background.
    present = with_background_label(label)  # (N, K+1, 1, 1)
    foreground = min_max(cam.detach())[:, 1:] * present[:, 1:]
    target = one_hot_max(torch.cat([1 - foreground.amax(1, True), foreground], dim=1))
    difference = (target - min_max(refined_cam) * present).abs()  # 0 for absent classes
    cells = cam.shape[-2] * cam.shape[-1]
    return global_mean(difference.sum(), present.sum() * cells)


def balanced_cross_entropy(logit: Tensor, seed: Tensor, *, smoothing: float) -> Tensor:
    """Compute the label-smoothed cross entropy of pixels with a seed.

    All background pixels together weigh as much as all foreground pixels.

    Args:
        logit: (N, K+1, H, W), background first.
        seed: (N, H, W) int64 in 0..K, 255 for unknown.
        smoothing: eps, in [0, 1]. The target is 1 - eps for the seed's class, and eps / K for each
            of the K other ones.

    Returns:
        Scalar: this rank's share of half the mean over the background pixels plus half the mean
        over the foreground pixels of the global batch. If there are no pixels of one kind, its half
        is 0, attached to the graph.

    Source: AMN (M. Lee et al., CVPR 2022), balanced loss and label smoothing.
    """
    # Unknown pixels get class 0 as a stand-in, and are left out of both means below.
    known = seed != 255
    target = seed.masked_fill(~known, 0)[:, None]  # (N, 1, H, W)
    # The cross entropy of each pixel: -(1 - eps) log p_seed - eps * mean of log p over the others.
    log_prob = logit.log_softmax(dim=1)  # (N, K+1, H, W)
    own = log_prob.gather(1, target)[:, 0]  # (N, H, W)
    num_others = logit.shape[1] - 1
    others = (log_prob.sum(dim=1) - own) / num_others  # (N, H, W)
    loss = -((1 - smoothing) * own + smoothing * others)  # (N, H, W)
    # The means over the pixels of each kind, of all ranks.
    background, foreground = known & (seed == 0), known & (seed > 0)
    halves = [
        global_mean((loss * part).sum(), part.sum().to(loss.dtype))
        for part in (background, foreground)
    ]
    return (halves[0] + halves[1]) / 2


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context manager that switches autocast off on the device of `like`.

    bf16 would be too coarse for cosines that are divided by temperatures as low as 0.1.
    """
    return torch.autocast(like.device.type, enabled=False)
