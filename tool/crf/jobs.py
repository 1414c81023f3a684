"""The tasks of stage 3 for a CRF: pseudo masks and confident seeds from CAMs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tool.crf.dense import DenseCRF, Preset, label_unary, score_unary
from tool.formats.cam import Cam, cam_mask
from tool.formats.image import check_size

ROW_SUM = 2.0  # bounds the row sums of the CRF's normalised kernels, see `relevant_labels`
NEGLIGIBLE = 1 / 256  # below the probability of the best of 255 labels


def with_background(cam: Cam, alpha: float) -> np.ndarray:
    """Return the scores of the background and the P foreground classes.

    Args:
        cam: The CAM, with at least one foreground class.
        alpha: Exponent of the background score (1 - max)^alpha, where max is the best foreground
            score. It is not used if the CAM has a background row, which is the score then.

    Returns:
        (P+1, H, W) float32, background first.
    """
    if cam.has_background:
        return cam.cam
    ground = (1 - np.clip(cam.cam.max(0), 0, 1)) ** np.float32(alpha)  # (H, W)
    return np.concatenate([ground[None], cam.cam])


@dataclasses.dataclass(frozen=True)
class Task:
    """The work of a CRF on one image.

    Attributes:
        unaries: Energies (L, H, W), one array per labelling. Empty if no CRF is needed.
        finish: Maps the labellings (H, W) that the CRF finds to the mask (H, W) uint8.
    """

    unaries: list[np.ndarray]
    finish: Callable[[list[np.ndarray]], np.ndarray]


def mask_task(image: np.ndarray, cam: Cam, preset: Preset, *, alpha: float) -> Task:
    """Return the task of a pseudo mask: the CRF's argmax over background and present classes.

    Labels of negligible probability are left out (`relevant_labels`). A network that infers without
    image labels has 21 or 81 rows per CAM, and few of them remain.

    Args:
        image: (H, W, 3) uint8.
        cam: The CAM, of the image's size. If it has no foreground class, the mask is all
            background.
        preset: Kernels, iterations and the kind of unary.
        alpha: Exponent of the background score; not used if the CAM has a background row.

    Raises:
        ValueError: The CAM and the image differ in size.

    Source: FBR (TCSVT 2024), inference: fbr80, alpha 8.
    """
    index = cam.foreground().class_index
    if not index.size:
        return _all_background(image)
    check_size("the CAM", cam.size, "its image", image.shape[:2])
    score = with_background(cam, alpha)  # (P+1, H, W)
    if preset.from_labels:
        unary = label_unary(score.argmax(0), n_labels=len(score), gt_prob=preset.gt_prob)
    else:
        unary = score_unary(score)
    kept = relevant_labels(unary, preset.crf)
    values = _values(index)[kept]
    # A single label wins everywhere, so no CRF is needed.
    if len(kept) == 1:
        return Task([], lambda _: np.full(image.shape[:2], values[0]))
    # If all labels are kept, their energies need no copy.
    unary = unary if len(kept) == len(unary) else unary[kept]  # (L', H, W)
    return Task([unary], lambda labellings: values[labellings[0]])


def relevant_labels(unary: np.ndarray, crf: DenseCRF) -> np.ndarray:
    """Return the labels that a CRF needs: all except those of negligible probability.

    The function leaves out the labels whose largest probability in the image is smallest. It leaves
    out as many as possible while the sum of their probabilities stays within a limit at every
    pixel. The limit ensures that in the CRF of all labels the sum of their marginals would never
    exceed S = `NEGLIGIBLE` at any pixel, after any number of steps.

    Proof. Let p_l = softmax(-unary)_l. At pixel i and after step t, let s_t(i) be the sum of the
    marginals of the labels that are left out. At the start, s_0(i) is the sum of their p_l; let q
    bound it. With the CRF's weights w_k and normalised kernels A_k, all at least 0, the next step
    is

        Q_l(i) = exp(-unary_l(i) + m_l(i)) / Z(i),    m_l(i) = sum_k w_k sum_j A_k(i, j) Q_l(j).

    Suppose s_t <= S. If c bounds the row sums of the kernels, a label that is left out has
    m_l <= M = (w_1 + w_2) c S. Every m_l is at least 0, so Z is at least sum_l exp(-unary_l).
    Therefore s_(t+1) <= q exp(M). That is at most S again if q <= S exp(-M), which is the limit.

    The labels that are left out never win. S is less than 1/255, and the best of at most 254 others
    has a marginal of at least (1 - S) / 254, which is above S. For the labels that are kept,
    leaving the rest out acts like a change of the unary: at each step no ratio of two marginals
    changes by more than a factor of exp(M). Later steps propagate it like any change of the unary,
    so pixels that are nearly undecided may change.

    Symmetric normalisation, A(i, j) = K(i, j) / sqrt(d(i) d(j)) with the row sums d of K, does not
    make the row sums of A exactly 1. They exceed 1 where neighbours have a smaller d. The largest
    row sums measured over all presets are 1.2 on photographs and 1.3 on noise, so `ROW_SUM` sets
    c = 2.

    Args:
        unary: (L, H, W) energies, L <= 255.
        crf: The CRF; its weights and `ROW_SUM` give the limit.

    Returns:
        (L',) int64, ascending, at least one; all labels if none is negligible.
    """
    # The limit q = S exp(-M), with M = (w_1 + w_2) c S.
    weight = crf.gaussian_compat + crf.bilateral_compat
    limit = NEGLIGIBLE * np.exp(-weight * ROW_SUM * NEGLIGIBLE)

    # Compute p, the softmax of -unary, in place because L may be 81. The minimum keeps all
    # exponents at most 0.
    prob = unary.min(0) - unary  # (L, H, W)
    np.exp(prob, out=prob)
    prob /= prob.sum(0)

    # Leave out labels in ascending order of their peaks while their sum stays within the limit. The
    # probabilities of all labels sum to 1, so at least the last label stays.
    ascending = prob.max((1, 2)).argsort(kind="stable")  # (L,)
    shared = np.zeros(unary.shape[1:], np.float32)  # (H, W), the sum of those left out
    count = 0
    while count < len(ascending) - 1 and (shared + prob[ascending[count]]).max() <= limit:
        shared += prob[ascending[count]]
        count += 1
    return np.sort(ascending[count:])


def threshold_task(image: np.ndarray, cam: Cam, threshold: float) -> Task:
    """Return the task of a CAM's mask without a CRF; the task has no labellings.

    Args:
        image: (H, W, 3) uint8.
        cam: The CAM, of the image's size. If it has no foreground class, the mask is all
            background.
        threshold: In [0, 1]. The best class must exceed it to be foreground. It is not used if the
            CAM has a background row.

    Raises:
        ValueError: The CAM and the image differ in size.
    """
    if not cam.foreground().class_index.size:
        return _all_background(image)
    check_size("the CAM", cam.size, "its image", image.shape[:2])
    return Task([], lambda _: cam_mask(cam, threshold))


def seed_task(
    image: np.ndarray, cam: Cam, preset: Preset, *, fg: float, bg: float, n_labels: int
) -> Task:
    """Return the task of a confident seed: foreground, 0 = background, 255 = unknown.

    There are two labellings. Each is the argmax over the CAMs and a constant background score,
    which is `fg` in the first and `bg` in the second. The CRF refines each of them. A pixel is
    foreground if the first labelling gives it a class. It is background if both labellings say
    background. Otherwise it is unknown.

    Args:
        image: (H, W, 3) uint8.
        cam: The CAM, of the image's size. If it has a background row, `fg` and `bg` multiply that
            row. If it has no foreground class, the seed is all background.
        preset: A labelling preset (`label50` in IRN).
        fg: Background score of the strict foreground, at least `bg`.
        bg: Background score of the strict background.
        n_labels: Number of labels of the CRF, which sets the strength of the unary. It is at least
            P + 1 for P foreground classes; in IRN it is P + 1.

    Raises:
        ValueError: The CAM and the image differ in size.

    Source: IRN (CVPR 2019).
    """
    foreground = cam.foreground()
    if not foreground.class_index.size:
        return _all_background(image)
    check_size("the CAM", cam.size, "its image", image.shape[:2])
    row = cam.cam[0] if cam.has_background else np.ones(cam.size, np.float32)  # (H, W)
    values = _values(foreground.class_index)

    # Return the energies (n_labels, H, W) of the argmax with the background score at `level`.
    def energies(level: float) -> np.ndarray:
        score = np.concatenate([(row * np.float32(level))[None], foreground.cam])  # (P+1, H, W)
        return label_unary(score.argmax(0), n_labels=n_labels, gt_prob=preset.gt_prob)

    # A pixel is unknown if only the first, strict labelling calls it background.
    def finish(labellings: list[np.ndarray]) -> np.ndarray:
        strict, loose = (values[labelling] for labelling in labellings)  # (H, W) each
        return np.where((strict == 0) & (loose != 0), np.uint8(255), strict)

    return Task([energies(fg), energies(bg)], finish)


def solve(image: np.ndarray, task: Task, crf: DenseCRF, *, backend: str = "auto") -> np.ndarray:
    """Return the mask (H, W) uint8 of one task.

    Args:
        image: (H, W, 3) uint8.
        task: The task of this image.
        crf: The CRF that computes each labelling.
        backend: A name that `pick_backend` takes.

    Raises:
        ValueError: As `DenseCRF.__call__`.
    """
    return task.finish([crf(image, u, backend=backend).argmax(0) for u in task.unaries])


def solve_batch(
    images: Sequence[np.ndarray], tasks: Sequence[Task], crf: DenseCRF, *, device: str
) -> list[np.ndarray]:
    """Return the masks (H, W) uint8 of several tasks, with all their labellings in one batch.

    Args:
        images: Each (H, W, 3) uint8, all of one size.
        tasks: One task per image.
        crf: The CRF that computes the labellings.
        device: The torch device that computes.
    """
    # Flatten the energies of all tasks into one list, each with the index of its task.
    needed = [(i, unary) for i, task in enumerate(tasks) for unary in task.unaries]
    found: list[list[np.ndarray]] = [[] for _ in tasks]
    # Compute them in one batch, and give each labelling back to its task.
    if needed:
        marginals = crf.batch([images[i] for i, _ in needed], [u for _, u in needed], device=device)
        for (i, _), marginal in zip(needed, marginals, strict=True):
            found[i].append(marginal.argmax(0))
    return [task.finish(labellings) for task, labellings in zip(tasks, found, strict=True)]


def _all_background(image: np.ndarray) -> Task:
    """Return a task that needs no CRF and whose mask is all background."""
    return Task([], lambda _: np.zeros(image.shape[:2], np.uint8))


def _values(index: np.ndarray) -> np.ndarray:
    """Return the mask value of each CRF label, (P+1,) uint8: background, then present classes."""
    return np.concatenate([np.zeros(1, np.uint8), index])
