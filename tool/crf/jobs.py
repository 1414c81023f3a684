"""What stage 3 asks a CRF for: pseudo masks and confident seeds out of CAMs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tool.crf.dense import DenseCRF, Preset, label_unary, score_unary
from tool.formats.cam import Cam, cam_mask


def with_background(cam: Cam, alpha: float) -> np.ndarray:
    """Scores (P+1, H, W) float32, background first: the CAM's own row, else (1 - max)^alpha."""
    if cam.has_background:
        return cam.cam
    ground = (1 - np.clip(cam.cam.max(0), 0, 1)) ** np.float32(alpha)
    return np.concatenate([ground[None], cam.cam])


@dataclasses.dataclass(frozen=True)
class Task:
    """What a CRF is asked for one image.

    Attributes:
        unaries: energies (L, H, W), one a labelling; none where there is nothing to ask.
        finish: the labellings (H, W) that the CRF finds -> mask (H, W) uint8.
    """

    unaries: list[np.ndarray]
    finish: Callable[[list[np.ndarray]], np.ndarray]


def mask_task(image: np.ndarray, cam: Cam, preset: Preset, *, alpha: float) -> Task:
    """The pseudo mask: argmax of the CRF over background and present classes.

    Args:
        image: (H, W, 3) uint8.
        cam: of the image's size. Without any foreground class the mask is background.
        preset: kernels, iterations and the kind of unary.
        alpha: of the background score; not used where the CAM has a background row.

    Source: fbr.md, section 6 (psa80, 5 iterations, alpha 8).
    """
    index = cam.foreground().class_index
    if not index.size:
        return _nothing_to_ask(image)
    _same_size(image, cam)
    score = with_background(cam, alpha)
    if preset.from_labels:
        unary = label_unary(score.argmax(0), n_labels=len(score), gt_prob=preset.gt_prob)
    else:
        unary = score_unary(score)
    return Task([unary], lambda labellings: _values(index)[labellings[0]])


def threshold_task(image: np.ndarray, cam: Cam, threshold: float) -> Task:
    """The mask of a CAM without CRF: nothing to ask one for.

    Args:
        image: (H, W, 3) uint8.
        cam: of the image's size.
        threshold: what the best class must exceed, where the CAM has no background row.
    """
    if not cam.foreground().class_index.size:
        return _nothing_to_ask(image)
    _same_size(image, cam)
    return Task([], lambda _: cam_mask(cam, threshold))


def seed_task(
    image: np.ndarray, cam: Cam, preset: Preset, *, fg: float, bg: float, n_labels: int
) -> Task:
    """A confident seed: foreground, 0 = background, 255 = unknown.

    Two labellings, argmax over the CAMs and a constant background of `fg` and of `bg`, each through
    the CRF. Foreground is what the first says; background is what both say; the rest is unknown.

    Args:
        image: (H, W, 3) uint8.
        cam: of the image's size. Where it has a background row, `fg` and `bg` multiply that row.
        preset: a labelling preset (`label50` in IRN).
        fg: background score of the strict foreground, at least `bg`.
        bg: background score of the strict background.
        n_labels: number of labels that sets the unary's strength: P + 1 in IRN, at least that.

    Source: IRN (CVPR 2019), as in foundations.md 1.6.
    """
    foreground = cam.foreground()
    if not foreground.class_index.size:
        return _nothing_to_ask(image)
    _same_size(image, cam)
    row = cam.cam[0] if cam.has_background else np.ones(cam.size, np.float32)
    values = _values(foreground.class_index)

    def energies(level: float) -> np.ndarray:
        score = np.concatenate([(row * np.float32(level))[None], foreground.cam])
        return label_unary(score.argmax(0), n_labels=n_labels, gt_prob=preset.gt_prob)

    def finish(labellings: list[np.ndarray]) -> np.ndarray:
        strict, loose = (values[labelling] for labelling in labellings)
        return np.where((strict == 0) & (loose != 0), np.uint8(255), strict)

    return Task([energies(fg), energies(bg)], finish)


def solve(image: np.ndarray, task: Task, crf: DenseCRF, *, backend: str = "auto") -> np.ndarray:
    """The mask (H, W) uint8 of one task."""
    return task.finish([crf(image, u, backend=backend).argmax(0) for u in task.unaries])


def solve_batch(
    images: Sequence[np.ndarray], tasks: Sequence[Task], crf: DenseCRF, *, device: str
) -> list[np.ndarray]:
    """The masks of tasks on images of one size, all their labellings in one batch."""
    asked = [(i, unary) for i, task in enumerate(tasks) for unary in task.unaries]
    found: list[list[np.ndarray]] = [[] for _ in tasks]
    if asked:
        marginals = crf.batch([images[i] for i, _ in asked], [u for _, u in asked], device=device)
        for (i, _), marginal in zip(asked, marginals, strict=True):
            found[i].append(marginal.argmax(0))
    return [task.finish(labellings) for task, labellings in zip(tasks, found, strict=True)]


def _nothing_to_ask(image: np.ndarray) -> Task:
    return Task([], lambda _: np.zeros(image.shape[:2], np.uint8))


def _values(index: np.ndarray) -> np.ndarray:
    """Mask values by CRF label: background, then the present classes."""
    return np.concatenate([np.zeros(1, np.uint8), index])


def _same_size(image: np.ndarray, cam: Cam) -> None:
    if cam.size != image.shape[:2]:
        raise ValueError(f"a CAM of {cam.size} (H, W) for an image of {image.shape[:2]}")
