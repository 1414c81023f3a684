"""`gate`: the NROI gate alone, on the CAMs of any method or codebase, with a frozen backbone.

`infer_cam.py --method gate --cam-dir CAMS --backbone NAME --weights W` reads CAMs from disk, in any
layout that `tool.formats.cam` reads, and multiplies them by the gate of `network.contrast.gate`. A
background row is not changed. The features are those of a pretrained backbone. There is no
checkpoint, and nothing is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from network.maps import resize
from network.methods import Batch, Method
from network.recipe import Recipe


class Gate(Method):
    """The CAMs of a previous stage, which stage 2 multiplies by the gate."""

    trained = False
    infer_inputs = ("image", "label", "cam")
    whole_cams = True
    recipe = Recipe(mirror=False).gated()

    def score(self, batch: Batch) -> Tensor:
        """Return the previous CAMs (B, C, H, W), or (2B, C, H, W), each followed by its mirror."""
        cam, images = batch["cam"].float(), batch["image"]
        if len(images) == len(cam):
            return cam
        return torch.stack([cam, cam.flip(-1)], dim=1).flatten(0, 1)

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return {"cam": (C, H, W)}: the previous CAMs, resized to the image; 0 if absent.

        Args:
            scores: Not used.
            batch: `size` (H, W), `cam` (1, C, h, w) with or without a background row, and `label`
                (1, K).
        """
        del scores
        cam, label = resize(batch["cam"].float(), batch["size"])[0], batch["label"][0]
        background = label.new_ones(len(cam) - len(label))
        return {"cam": cam * torch.cat([background, label])[:, None, None]}
