"""`gate`: the NROI gate alone, on the CAMs of any method or codebase, with a frozen backbone.

`infer_cam.py --method gate --cam-dir CAMS --backbone NAME --weights W` multiplies CAMs that lie on
disk, in any layout that `tool.formats.cam` reads, by the gate of `network.contrast.gate`. The
features are those of a pretrained backbone. There is no checkpoint, and nothing is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from network.methods import Batch, Method
from network.recipe import Recipe


class Gate(Method):
    """The CAMs of a previous stage, for the gate of stage 2."""

    trained = False
    infer_inputs = ("image", "label", "cam")
    recipe = Recipe().gated()

    def score(self, batch: Batch) -> Tensor:
        """Return the previous CAMs (2B, K, h, w), each followed by its mirror."""
        cam, images = batch["cam"].float(), batch["image"]
        if len(images) == len(cam):
            return cam
        return torch.stack([cam, cam.flip(-1)], dim=1).flatten(0, 1)

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return {"cam": (K, H, W)}: the previous CAMs, enlarged; 0 for absent classes."""
        del scores
        cam = F.interpolate(
            batch["cam"].float(), size=batch["size"], mode="bilinear", align_corners=False
        )[0]
        return {"cam": cam * batch["label"][0, :, None, None]}
