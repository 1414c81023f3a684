"""The way from a photograph to its maps, as stage 2 takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from network.contrast.gate import NroiGate
from network.maps import resize
from network.methods import Method
from tool.formats.cam import Cam, as_stored
from tool.infer.multiscale import infer_images, present_rows
from tool.infer.scales import Views


@dataclasses.dataclass(frozen=True, eq=False)
class PhotographMaps:
    """The maps of a photograph.

    Attributes:
        image: (h, w, 3) uint8, the photograph as the network saw it: upright, and reduced if it is
            too large.
        whole: (H, W) of the photograph itself.
        rows: The maps of which the mask is made, (P, h, w), as a file stores them.
        plain: The same maps before the gate; None without a gate, or if it is not explained.
        gate: (P, h, w) float32 in [0, 1], the gate of each foreground class of `rows`; likewise.
    """

    image: np.ndarray
    whole: tuple[int, int]
    rows: Cam
    plain: Cam | None = None
    gate: np.ndarray | None = None

    def of_class(self, value: int) -> dict[str, np.ndarray]:
        """Return the maps (h, w) of a class by what they are, for a picture.

        Args:
            value: The mask value of the class.
        """
        row = self.rows.class_index.tolist().index(value)
        if self.plain is None or self.gate is None:
            return {"CAM": self.rows.cam[row]}
        gate = self.gate[row - self.rows.has_background]
        return {"CAM": self.plain.cam[row], "gate": gate, "gated CAM": self.rows.cam[row]}


def maps_of(
    method: Method,
    image: Image.Image,
    *,
    whole: tuple[int, int],
    image_id: str,
    label: np.ndarray | None,
    previous: Mapping[str, Tensor],
    device: torch.device,
    views: Views,
    gate: NroiGate | None,
    explained: bool = False,
) -> PhotographMaps:
    """Compute the maps of a photograph.

    Args:
        method: In `eval()`, on `device`.
        image: RGB, no larger than the views reduce it to.
        whole: (H, W) of the photograph.
        image_id: Its name in the regions of the gate.
        label: (K,) float32, 1 for the classes that the photograph may have; None for all.
        previous: The inputs of the method from files of previous stages.
        device: The device that computes.
        views: The sizes of the copies of the photograph.
        gate: The gate of the run; None for none.
        explained: Whether to keep what the gate did, for a picture; it is then computed twice.
    """
    size = (image.height, image.width)
    sample = {"image_id": image_id, "size": size, "images": views.of(image), **previous}
    present = None
    if label is not None:
        sample["label"] = present = torch.from_numpy(label)
    kept: dict[str, Tensor] = {}

    def refine(
        image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """Return the gated maps, and keep the map and the gate for pictures."""
        assert gate is not None
        first = maps[method.maps[0]]
        values, _ = gate.gate(image_id, features, first, label)
        kept.update({"plain": first, "gate": resize(values[None], size)[0]})
        return gate(image_id, features, maps, label)

    found = infer_images(
        method,
        [sample],
        device=device,
        mirror=views.mirror,
        refine=refine if explained and gate is not None else gate,
    )[0][method.maps[0]]

    def rows(maps: Tensor) -> Cam:
        return as_stored(present_rows(maps, present, has_background=method.has_background))

    return PhotographMaps(
        np.asarray(image),
        whole,
        rows(found),
        rows(kept["plain"]) if kept else None,
        kept["gate"].float().cpu().numpy() if kept else None,
    )
