"""The tasks of stage 3 for a CRF: pseudo masks and confident seeds from CAMs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tool.crf.dense import DenseCRF, Preset, label_unary, score_unary
from tool.formats.cam import Cam, cam_mask
from tool.formats.image import check_size


def with_background(cam: Cam, alpha: float) -> np.ndarray:
    """Return scores (P+1, H, W) float32 of the background, first, and the P foreground classes.

    The background is the CAM's own row if it has one, else (1 - max)^alpha.
    """
    if cam.has_background:
        return cam.cam
    ground = (1 - np.clip(cam.cam.max(0), 0, 1)) ** np.float32(alpha)
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

    Args:
        image: (H, W, 3) uint8.
        cam: Of the image's size. Without any foreground class the mask is background.
        preset: Kernels, iterations and the kind of unary.
        alpha: Exponent of the background score; not used if the CAM has a background row.

    Raises:
        ValueError: The CAM and the image differ in size.

    Source: FBR (TCSVT 2024), inference: fbr80, alpha 8.
    """
    index = cam.foreground().class_index
    if not index.size:
        return _nothing_to_ask(image)
    check_size("the CAM", cam.size, "its image", image.shape[:2])
    score = with_background(cam, alpha)
    if preset.from_labels:
        unary = label_unary(score.argmax(0), n_labels=len(score), gt_prob=preset.gt_prob)
    else:
        unary = score_unary(score)
    return Task([unary], lambda labellings: _values(index)[labellings[0]])


def threshold_task(image: np.ndarray, cam: Cam, threshold: float) -> Task:
    """Return the task of a CAM's mask without a CRF; it has no labellings.

    Args:
        image: (H, W, 3) uint8.
        cam: Of the image's size.
        threshold: What the best class must exceed; not used if the CAM has a background row.

    Raises:
        ValueError: The CAM and the image differ in size.
    """
    if not cam.foreground().class_index.size:
        return _nothing_to_ask(image)
    check_size("the CAM", cam.size, "its image", image.shape[:2])
    return Task([], lambda _: cam_mask(cam, threshold))


def seed_task(
    image: np.ndarray, cam: Cam, preset: Preset, *, fg: float, bg: float, n_labels: int
) -> Task:
    """Return the task of a confident seed: foreground, 0 = background, 255 = unknown.

    There are two labellings. Each is the argmax over the CAMs and a constant background, which is
    `fg` in the first and `bg` in the second. Each goes through the CRF. Foreground is what the
    first one says. Background is what both say. The rest is unknown.

    Args:
        image: (H, W, 3) uint8.
        cam: Of the image's size. If it has a background row, `fg` and `bg` multiply that row.
        preset: A labelling preset (`label50` in IRN).
        fg: Background score of the strict foreground, at least `bg`.
        bg: Background score of the strict background.
        n_labels: Number of labels that sets the unary's strength: P + 1 in IRN for P foreground
            classes, at least that.

    Raises:
        ValueError: The CAM and the image differ in size.

    Source: IRN (CVPR 2019).
    """
    foreground = cam.foreground()
    if not foreground.class_index.size:
        return _nothing_to_ask(image)
    check_size("the CAM", cam.size, "its image", image.shape[:2])
    row = cam.cam[0] if cam.has_background else np.ones(cam.size, np.float32)
    values = _values(foreground.class_index)

    # The energies (n_labels, H, W) of the argmax with the background at `level`.
    def energies(level: float) -> np.ndarray:
        score = np.concatenate([(row * np.float32(level))[None], foreground.cam])
        return label_unary(score.argmax(0), n_labels=n_labels, gt_prob=preset.gt_prob)

    # Unknown is what only the strict labelling calls background.
    def finish(labellings: list[np.ndarray]) -> np.ndarray:
        strict, loose = (values[labelling] for labelling in labellings)
        return np.where((strict == 0) & (loose != 0), np.uint8(255), strict)

    return Task([energies(fg), energies(bg)], finish)


def solve(image: np.ndarray, task: Task, crf: DenseCRF, *, backend: str = "auto") -> np.ndarray:
    """Return the mask (H, W) uint8 of one task.

    Args:
        image: (H, W, 3) uint8.
        task: The task of this image.
        crf: The CRF that computes each labelling.
        backend: As for `DenseCRF`.
    """
    return task.finish([crf(image, u, backend=backend).argmax(0) for u in task.unaries])


def solve_batch(
    images: Sequence[np.ndarray], tasks: Sequence[Task], crf: DenseCRF, *, device: str
) -> list[np.ndarray]:
    """Return the masks of several tasks, with all their labellings in one batch.

    Args:
        images: (H, W, 3) uint8, all of one size.
        tasks: One task per image.
        crf: The CRF that computes the labellings.
        device: The torch device that computes.
    """
    # The labellings of all tasks, each with the index of its task.
    asked = [(i, unary) for i, task in enumerate(tasks) for unary in task.unaries]
    found: list[list[np.ndarray]] = [[] for _ in tasks]
    if asked:
        marginals = crf.batch([images[i] for i, _ in asked], [u for _, u in asked], device=device)
        for (i, _), marginal in zip(asked, marginals, strict=True):
            found[i].append(marginal.argmax(0))
    return [task.finish(labellings) for task, labellings in zip(tasks, found, strict=True)]


def _nothing_to_ask(image: np.ndarray) -> Task:
    """Return a task that needs no CRF and gives a mask of background."""
    return Task([], lambda _: np.zeros(image.shape[:2], np.uint8))


def _values(index: np.ndarray) -> np.ndarray:
    """Return the mask value of each CRF label: background, then the present classes."""
    return np.concatenate([np.zeros(1, np.uint8), index])
