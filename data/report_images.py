"""The images of a report: what their masks are like, and small pictures of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.catalog import Catalog
from tool.crf.post import post_of
from tool.formats.cam import Cam, at_size, cam_mask, check_maps, load_cam
from tool.formats.image import check_size
from tool.formats.predictions import read_mask
from tool.report.html import Row
from tool.report.measure import Measures, classes_in, difference, measure
from tool.report.run import Run
from tool.report.thumbnail import LONGEST, class_indices, grey_map, photograph

CAMS = 6  # per image: the strongest classes, of a method that infers without labels
FAINT = 0.05  # the gate is not shown where the CAM was fainter: there is nothing to gate


@dataclasses.dataclass(frozen=True)
class ReportImages:
    """The files of the images of a page.

    Attributes:
        catalog: The dataset.
        runs: The runs.
        thresholds: Of the CAMs of each run, those of the method.
        has_labels: Whether the dataset has image-level labels.
    """

    catalog: Catalog
    runs: Sequence[Run]
    thresholds: Sequence[float]
    has_labels: bool

    @classmethod
    def of(cls, catalog: Catalog, runs: Sequence[Run]) -> ReportImages:
        """Look at what there is."""
        thresholds = [post_of(run.cam_dir or run.mask_dir).threshold for run in runs]
        try:
            has_labels = catalog.labels_path.exists()
        except FileNotFoundError:
            has_labels = False
        return cls(catalog, runs, thresholds, has_labels)

    def mask_path(self, run: Run, image_id: str) -> Path:
        """Return the path of a mask."""
        return run.mask_dir / f"{image_id}.png"

    def mask(self, run: Run, image_id: str) -> np.ndarray | None:
        """Return a mask (H, W) uint8; None if the run has none of the image.

        Raises:
            ValueError: The file is broken, or of another size than the image; names it.
        """
        path = self.mask_path(run, image_id)
        if not path.is_file():
            return None
        mask = read_mask(path, self.catalog.num_classes)
        size = self.catalog.image_size(image_id)[::-1]
        check_size(path, mask.shape, f"image {image_id!r}", size)
        return mask

    def label(self, image_id: str) -> np.ndarray:
        """Return the image-level label, (K,)."""
        return self.catalog.label(image_id)

    def cam(self, folder: Path | None, image_id: str, size: tuple[int, int]) -> Cam | None:
        """Return the CAM of an image at a size; None if there is none with a class."""
        path = folder and folder / f"{image_id}.npy"
        if path is None or not path.is_file():
            return None
        cam = load_cam(path, label=functools.partial(self.label, image_id))
        check_maps(cam, size, path)
        return at_size(cam, size) if cam.class_index.size else None

    def row(self, image_id: str) -> Row:
        """Measure an image.

        Raises:
            ValueError: A file is broken, or of another size than its image; names it.
        """
        truth = self.catalog.mask_if_there(image_id)
        saliency = self.catalog.saliency_if_there(image_id)
        masks = [self.mask(run, image_id) for run in self.runs]
        measures: list[Measures | None] = []
        for run, mask, threshold in zip(self.runs, masks, self.thresholds, strict=True):
            if mask is None:
                measures.append(None)
                continue
            cam = self.cam(run.cam_dir, image_id, mask.shape)
            own = None if cam is None else cam_mask(cam, threshold)
            measures.append(measure(mask, truth=truth, saliency=saliency, cam_mask=own))
        first = masks[0]
        differ = [
            None if first is None or other is None else difference(first, other)
            for other in masks[1:]
        ]
        return Row(image_id, self.classes(image_id, truth, masks), measures, differ)

    def classes(self, image_id: str, truth: np.ndarray | None, masks: Sequence[Any]) -> list[int]:
        """Return the classes of an image: of its label, else of its truth, else of its masks."""
        if self.has_labels and self.catalog.has_label(image_id):
            return [int(k) + 1 for k in np.flatnonzero(self.label(image_id))]
        maps = [truth] if truth is not None else [mask for mask in masks if mask is not None]
        return sorted({value for values in maps for value in classes_in(values)})

    def picture(self, row: Row) -> dict[str, Any]:
        """Return the small pictures of an image, as `tool/report/page/draw.js` reads them."""
        image = self.catalog.read_image(row.id)
        truth, size = self.catalog.mask_if_there(row.id), (image.height, image.width)
        found: dict[str, Any] = {"image": photograph(image), "truth": None, "saliency": None}
        sides = (max(1, round(LONGEST * side / max(size))) for side in image.size)
        found["w"], found["h"] = sides
        if truth is not None:
            found |= {"truth": class_indices(truth), "found": classes_in(truth)}
        elif (saliency := self.catalog.saliency_if_there(row.id)) is not None:
            found["saliency"] = grey_map(saliency / 255)
        found["runs"] = [self.of_run(run, row.id, size) for run in self.runs]
        return found

    def of_run(self, run: Run, image_id: str, size: tuple[int, int]) -> dict[str, Any] | None:
        """Return the small pictures of one run; None if it has no mask of the image."""
        mask = self.mask(run, image_id)
        if mask is None:
            return None
        cam, plain = self.cam(run.cam_dir, image_id, size), self.cam(run.plain_dir, image_id, size)
        cams = [] if cam is None else cam_pictures(cam.foreground(), plain and plain.foreground())
        return {"mask": class_indices(mask), "found": classes_in(mask), "cams": cams}


def cam_pictures(cam: Cam, plain: Cam | None) -> list[dict[str, Any]]:
    """Return the small pictures of the strongest classes of a CAM.

    Args:
        cam: (P, H, W), without a background row.
        plain: The same before the gate, if that was kept.
    """
    strength = cam.cam.max((1, 2))
    found = []
    for place in sorted(np.argsort(-strength, kind="stable")[:CAMS].tolist()):
        index, after = int(cam.class_index[place]), cam.cam[place]
        one = {"class": index, "map": grey_map(after)}
        if plain is not None and plain.cam.shape == cam.cam.shape:
            before = plain.cam[place]
            one |= {"plain": grey_map(before), "gate": grey_map(gate_between(before, after))}
        found.append(one)
    return found


def gate_between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the gate between two maps, (H, W) in [0, 1]; 0 where there was nothing to gate.

    Args:
        before: (H, W) in [0, 1].
        after: (H, W), the map times the gate, rescaled.
    """
    gate = np.where(before > FAINT, after / np.maximum(before, FAINT), 0)
    return gate / max(1.0, float(gate.max()))
