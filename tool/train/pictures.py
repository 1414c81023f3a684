"""The pictures of a run: the same images each time, and what the method makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tool.formats.mask import UNKNOWN, resized
from tool.train.batch import Batch, Trainable

CELL = 192  # pixels of a panel
OTHERS = 4  # images that a method sees at once: the gate of FBR compares an image with others
GIVEN = ("seed", "mask")  # label maps of the batch that are shown, if the method reads them
Panels = dict[str, tuple[str, np.ndarray]]  # per column a caption and a panel (h, w, 3) uint8


@dataclasses.dataclass(frozen=True)
class Shown:
    """The images of the pictures.

    Attributes:
        batch: As a method sees it, on its device; each image is whole, and padded.
        class_names: The K foreground names.
        truth: Per image its ground truth (H, W) uint8; None if there is none.
        saliency: Per image its saliency map (H, W) uint8; None if there is none.
    """

    batch: Batch
    class_names: Sequence[str]
    truth: Sequence[np.ndarray | None]
    saliency: Sequence[np.ndarray | None]

    def draw(self, method: Trainable, *, mean: Tensor, std: Tensor) -> np.ndarray:
        """Return a picture with a row per image.

        Args:
            method: Makes the maps in evaluation mode; left in training mode.
            mean: (3, 1, 1), of the network's input.
            std: (3, 1, 1), of the network's input.

        Returns:
            (H, W, 3) uint8. A row has the image with the names of its classes, the method's maps,
            their pseudo label, what the method is given, the truth and the saliency map.
        """
        from tool.report.picture import grid  # imports OpenCV, which only pictures need

        method.eval()
        with torch.no_grad():
            count = len(self.batch["image_id"])
            rows = [self._row(method, index, mean, std) for index in range(count)]
        method.train()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return grid([[row.get(name) for name in columns] for row in rows], CELL)

    def _row(self, method: Trainable, index: int, mean: Tensor, std: Tensor) -> Panels:
        """Return the panels of one image."""
        batch = beginning_with(self.batch, index)
        maps = {name: v.float().cpu() for name, v in method.pictures(batch).items()}
        image = (batch["image"][0].float().cpu() * std + mean).clamp(0, 1)
        inside = box_of(batch["valid"][0, 0].cpu())
        base = reduced(image[:, *inside])
        # The maps are those of the padded image: enlarge them to it, and cut the padding off.
        whole = tuple(image.shape[1:])
        maps = {name: enlarged(values, whole)[:, *inside] for name, values in maps.items()}
        threshold = None if method.has_background else method.recipe.post.threshold
        present = batch["label"][0].nonzero()[:, 0].tolist() if "label" in batch else []
        classes = ", ".join(self.class_names[k] for k in present)
        title = batch["image_id"][0] + (f": {classes}" if classes else "")
        panels: Panels = {"image": (title, base)}
        panels |= map_panels(base, maps, bg_threshold=threshold, class_names=self.class_names)
        values: dict[str, Any] = dict(batch)
        for key in GIVEN:
            if key in values:
                label = values[key][0].cpu().numpy().astype(np.uint8)[inside]
                panels[key] = self._label_panel(key, base, label)
        truth, saliency = self.truth[index], self.saliency[index]
        if truth is not None:
            panels["truth"] = self._label_panel("truth", base, truth)
        if saliency is not None:
            panels["saliency"] = ("saliency", grey_panel(saliency, base.shape[:2]))
        return panels

    def _label_panel(self, name: str, base: np.ndarray, label: np.ndarray) -> Any:
        """Return the caption and the panel of a label map of any size."""
        return label_panel(name, base, resized(label, base.shape[:2]), self.class_names)


def beginning_with(batch: Batch, index: int) -> Batch:
    """Return an image of a batch and a few of those after it, in a circle."""
    count = len(batch["image_id"])
    order = [(index + step) % count for step in range(min(count, OTHERS))]
    some = {
        key: value[order] if isinstance(value, Tensor) else [value[place] for place in order]
        for key, value in cast(dict[str, Any], batch).items()
    }
    return cast(Batch, some)


def box_of(valid: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of the pixels that are no padding; they are a rectangle."""
    rows, columns = valid.any(dim=1).nonzero()[:, 0], valid.any(dim=0).nonzero()[:, 0]
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def enlarged(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps (C, h, w) at a size."""
    return torch.nn.functional.interpolate(
        values[None], size=size, mode="bilinear", align_corners=False
    )[0]


def reduced(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W) in [0, 1] as (h, w, 3) uint8 that fits a panel."""
    longest = max(image.shape[1:])
    size = [max(1, round(side * CELL / longest)) for side in image.shape[1:]]
    small = torch.nn.functional.interpolate(
        image[None], size=size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    return (small.permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8)


def grey_panel(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map (H, W) uint8 in grey, (h, w, 3) uint8."""
    grey = enlarged(torch.from_numpy(values.astype(np.float32))[None], size)[0].numpy()
    return np.repeat(grey.round().astype(np.uint8)[:, :, None], 3, axis=2)


def map_panels(
    base: np.ndarray,
    maps: dict[str, Tensor],
    *,
    bg_threshold: float | None,
    class_names: Sequence[str],
) -> Panels:
    """Return the panels of a method's maps: the best class of each as heat, the pseudo label.

    Args:
        base: (H, W, 3) uint8, the image.
        maps: name -> (K, h, w) in [0, 1], or (K+1, h, w) with the background first.
        bg_threshold: Where the CAM is not above it, the pseudo label is background. None if the
            maps have a background row, which comes first.
        class_names: The K foreground names.

    Returns:
        The pseudo label is that of the map `gated CAM`, else of `cam`. If there is `prob` instead,
        a segmentation network's, it is called a mask. Without any of them there is none.
    """
    from tool.report.picture import heat

    sized = {name: enlarged(values, base.shape[:2]) for name, values in maps.items()}
    panels: Panels = {}
    # The heat of a pixel is the largest value over the classes.
    for name, values in sized.items():
        skipped = bg_threshold is None and len(values) > 1  # the background row
        panels[name] = (name, heat(base, values[skipped:].amax(dim=0).numpy()))
    shown = next((name for name in ("gated CAM", "cam", "prob") if name in sized), None)
    if shown is not None:
        best, index = sized[shown].max(dim=0)
        if bg_threshold is not None:
            index = torch.where(best > bg_threshold, index + 1, 0)
        name = "mask" if shown == "prob" else "pseudo label"
        label = index.numpy().astype(np.uint8)
        panels["label"] = label_panel(name, base, label, class_names)
    return panels


def label_panel(
    name: str, base: np.ndarray, label: np.ndarray, class_names: Sequence[str]
) -> tuple[str, np.ndarray]:
    """Return a caption that names the classes of a label map, and the map over an image."""
    from tool.report.picture import outlined

    found = [int(value) for value in np.unique(label) if value not in (0, UNKNOWN)]
    names = ", ".join(class_names[value - 1] for value in found)
    return f"{name}: {names or 'background'}", outlined(base, label)
