"""`transcam`: a classifier whose score maps are spread by the attention of a transformer.

Source: TransCAM (R. Li, Z. Mai, C. Trabelsi, Z. Zhang, J. Jang, S. Sanner, JVCIR 2023).
Differs from the release: with pretrained weights no norm takes its statistics from the batch, so
that a result depends neither on the number of ranks nor on the other images; on a backbone without
attention the cosines of its cells spread the maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from network.backbones import AFFINITY
from network.losses import classification
from network.maps import min_max, resize, sum_of_mirrors
from network.methods import Batch, Method, Recipe, option
from network.spreading import INITS, centred_affinity, score_head, spread
from tool.crf.post import Post, alpha_at
from tool.progress import Progress

_TOKEN = "token"  # the tap of a backbone's class token, (N, D), if it has one
_THRESHOLD = 0.44  # the authors', whose curve on VOC peaks there


class TransCam(Method):
    """A 3x3 convolution to score maps, and a linear layer on the class token if there is one.

    Both heads have K + 1 outputs as published, of which the first one, the background's, is not
    used. The CAMs are M* = A* M, the score maps spread by the summed attention of all blocks.
    """

    recipe = Recipe(
        epochs=20,
        batch_size=8,
        backbone="conformer_s",
        crop=512,
        long_side=(320, 640),
        optimizer="adamw",
        lr=5e-5,
        rates=(1, 1, 1, 1),
        weight_decay=5e-4,
        power=0.0,
        sides=(256, 512, 768),
        short={
            "steps": 200,
            "batch_size": 8,
            "crop": 224,
            "long_side": (224, 384),
            "lr": 5e-4,
            "warmup": 50,
            "clip": 1.0,
        },
        short_options={"head_init": "xavier"},
        post=Post(preset="label50", threshold=_THRESHOLD, alpha=alpha_at(_THRESHOLD)),
    )
    released: Mapping[str, str] = {
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in (("conv_cls_head", "head"), ("trans_cls_head", "token_head"))
        for part in ("weight", "bias")
    }

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of TransCAM.

        Attributes:
            head_init: First weights of the 3x3 convolutions: kaiming as published, or xavier, with
                smaller ones. A short run needs the latter: it cannot unlearn a large random map.
            centred: On a backbone without attention, compare cells by how they differ from the mean
                of their image. Otherwise most cells look alike, and the spread maps are flat.
        """

        head_init: str = option("kaiming", choices=INITS)
        centred: bool = True

    def build(self) -> None:
        """Make the heads."""
        taps = self.backbone.taps
        self.head = score_head(
            taps["high"].channels, self.num_classes + 1, init=self.config.head_init
        )
        self.has_token = _TOKEN in taps
        if self.has_token:
            self.token_head = nn.Linear(taps[_TOKEN].channels, self.num_classes + 1)
            nn.init.trunc_normal_(self.token_head.weight, std=0.02)
            nn.init.zeros_(self.token_head.bias)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls`, the only term, in which the attention plays no part."""
        del progress
        return {"cls": classification(self.logit(self.taps(batch["image"])), batch["label"])}

    def weights(self) -> dict[str, float]:
        """Return {"cls": 1}: there is one term."""
        return {"cls": 1.0}

    def taps(self, image: Tensor, *, affinity: bool = False) -> dict[str, Tensor]:
        """Compute the taps that the heads read, and the affinity that spreads their maps.

        Args:
            image: (N, 3, H, W), normalised.
            affinity: Whether to return the affinity too.

        Returns:
            {tap: tensor}: `high` (N, D, h, w), `token` (N, D) if the backbone has a class token,
            and `affinity` (N, p, p) with p = h w if it is wanted. That is A*, not negative: the
            summed attention of the backbone, or how alike its cells are if it has no attention.

        Raises:
            ValueError: The backbone takes only squares, and the images are none.
        """
        names = ["high", *([_TOKEN] if self.has_token else [])]
        centred = self.config.centred and AFFINITY not in self.backbone.taps
        taps = self.backbone(image, names + [AFFINITY] * (affinity and not centred))
        if affinity and centred:
            taps[AFFINITY] = centred_affinity(taps["high"])
        return taps

    def logit(self, taps: dict[str, Tensor]) -> Tensor:
        """Return the logits (N, K): the mean of the score maps, plus the class token's."""
        logit = self.head(taps["high"]).float().mean(dim=(-2, -1))
        if self.has_token:
            logit = logit + self.token_head(taps[_TOKEN]).float()
        return logit[:, 1:]

    def spread_maps(self, taps: dict[str, Tensor]) -> Tensor:
        """Return M* of the K classes, (N, K, h, w) of any sign."""
        return spread(self.head(taps["high"])[:, 1:], taps[AFFINITY])

    def score(self, batch: Batch) -> Tensor:
        """Return the spread score maps (2B, K, h, w), of any sign."""
        return self.spread_maps(self.taps(batch["image"], affinity=True))

    def classify(self, batch: Batch) -> Tensor:
        """Return the sigmoid of the logits, (N, K)."""
        return self.logit(self.taps(batch["image"])).sigmoid()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Sum the raw maps over scales and mirrors, and stretch what is positive to [0, 1].

        So negative values cancel positive ones of another scale before anything is clamped.

        Args:
            scores: One (2, C, h, w) per scale, or (1, C, h, w) without mirrors; of any sign.
            batch: `size` (H, W) and `label` (1, K).

        Returns:
            {"cam": (C, *size)} in [0, 1], 0 for absent classes; C as for `score`.
        """
        kept = self._kept(scores[0], batch)
        total = scores[0].new_zeros((len(kept), *batch["size"]))
        for score in scores if len(kept) else ():
            total += sum_of_mirrors(resize(score[:, kept], batch["size"]))
        cam = total.new_zeros((scores[0].shape[1], *batch["size"]))
        return {"cam": cam.index_copy_(0, kept, min_max(total[None])[0]) if len(kept) else cam}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the CAM of the first image at one scale."""
        score = self.score({"image": batch["image"][:1]})
        return {"cam": min_max(score)[0] * batch["label"][0, :, None, None]}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return one group; norms and biases decay, too."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "lr": lr, "weight_decay": weight_decay}]
