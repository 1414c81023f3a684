"""`fbr`: fine-grained background representation, PPC plus NROIs and active foreground sampling.

Source: FBR (X. Yin et al., IEEE TCSVT 2024, arXiv 2406.15755).
Differs from the released code: the queries of `nce_nroi` carry a gradient, and its cosine runs over
the embedding. Prototypes come from images that have the class. There is no background prototype.
There is one bank, written after the step and saved with the checkpoint. The documentation lists the
other differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from network.contrast.background import RegionView, segmentation_loss, similarity_loss
from network.contrast.cells import pseudo_labels
from network.contrast.fbr import NroiContrast
from network.contrast.nroi_config import NroiConfig
from network.contrast.prototypes import prototype_losses
from network.heads import thresholded_average_pool
from network.losses import full_precision, mean_of_views
from network.maps import image_cells, min_max, resize, resize_area
from network.methods.ppc import HostConfig, Ppc, View
from network.options import option
from tool.progress import Progress
from tool.ranges import UNIT

_HEADS = {  # of the released code
    "proj_fg.weight": "project_foreground.weight",
    "proj_bg.weight": "project_background.weight",
    "bg_classifier.weight": "segment_background.classifier.weight",
}


class Fbr(NroiContrast, Ppc):
    """PPC with thresholded average pooling (TAP), and with FBR's contrast.

    The term `nce_intra` of PPC is replaced by `nce_fg` and `nce_nroi`, which
    `NroiContrast.fbr_losses` computes. In inference the CAMs are gated by NROIs, which the paper
    does not do (`network.contrast.gate`).
    """

    recipe = dataclasses.replace(
        Ppc.recipe.gated(),
        # TAP doubles the gradient of `cls`. Twice the weight of the saliency keeps EPS's balance
        # under the limit that a short run sets on the gradient.
        short_options={
            **Ppc.recipe.short_options,
            "pseudo_source": "cam",
            "weight_sal": 2.0,
            "weight_sal_refined": 2.0,
        },
    )
    background_prototype = False
    released: Mapping[str, str] = {**Ppc.released, **_HEADS}
    released_unused = ("bg_bn.",)  # a BatchNorm that is frozen at its initial identity
    released_background = ("last", frozenset(_HEADS))
    training_only = (*Ppc.training_only, "segment_background.", "bank.")

    @dataclasses.dataclass(frozen=True)
    class Config(NroiConfig, HostConfig):
        """The hyper-parameters of EPS, of PPC without `nce_intra`, and of FBR.

        Attributes:
            pseudo_source: Maps of which pseudo labels and prototypes are made: the refined CAM, as
                in the release, or the CAM itself. A pixel correlation that has not learned yet
                spreads the CAM over the whole image.
            pooling: Pooling of the classifier: tap averages each channel over its active cells, as
                in the release, average over all cells, as in EPS. The gradient of `cls` is twice as
                long with tap. If a recipe clips the gradient, that is at the cost of the other
                terms.
            tap_threshold: TAP averages the cells above this share of a channel's maximum.
            query_saliency: Only cells whose mean saliency is above this can be queries, or
                negatives of nce_fg. With 0 all cells can, as in the release.
        """

        pseudo_source: str = option("refined", choices=("refined", "cam"))
        pooling: str = option("tap", choices=("tap", "average"))
        tap_threshold: float = option(0.10, within=UNIT)
        query_saliency: float = option(0.5, within=UNIT)

    def build(self) -> None:
        """Build the heads of PPC, and those of the background."""
        super().build()
        self.add_background(self.backbone.taps["high"].channels)

    def losses(self, batch: Any, progress: Progress) -> dict[str, Tensor]:
        """Compute the terms of the host, of the background and of the contrast.

        Args:
            batch: `image` (N, 3, H, W), `label` (N, K), `saliency` and `valid` (N, 1, H, W).
            progress: The step, which keys the draws.

        Returns:
            {name: scalar}, this rank's shares: the terms of `host_losses`, `background_losses` and
            `contrast`.
        """
        views = self.views(batch)
        background = [self.project_background(view.high).float() for view in views]
        terms = self.host_losses(views)
        terms |= mean_of_views(
            [
                self.background_losses(v, b, batch["valid"])
                for v, b in zip(views, background, strict=True)
            ]
        )
        with full_precision(background[0]):
            return terms | self.contrast(views, background, batch["valid"], progress)

    def image_logit(self, view: View) -> Tensor:
        """Compute the image-level logits (N, K+1) of a view, by `pooling`."""
        return self.pooled_logit(view.high)

    def classify(self, batch: Any) -> Tensor:
        """Compute the image-level probabilities (N, K) of `image` (N, 3, H, W) in the batch."""
        high = self.backbone(batch["image"])["high"]
        return self.pooled_logit(high)[:, 1:].sigmoid()

    def pooled_logit(self, high: Tensor) -> Tensor:
        """Compute the image-level logits by `pooling`.

        Args:
            high: (N, D, h, w), the high tap.

        Returns:
            (N, K+1), background first.
        """
        if self.config.pooling == "tap":
            pooled = thresholded_average_pool(high, threshold=self.config.tap_threshold)
        else:
            pooled = high.mean(dim=(-2, -1), keepdim=True)
        return self.classifier(pooled).float()[:, :, 0, 0]

    def background_losses(self, view: View, background: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Compute `bg_seg` and `bg_sim` of one view.

        Args:
            view: The view.
            background: (N, D, h, w), the output of phi_bg before its ReLU.
            valid: (N, 1, H, W) bool, False on padding.

        Returns:
            {name: scalar}, this rank's shares.
        """
        normalised = self.segment_background.normalised(background)
        return {
            "bg_seg": segmentation_loss(
                self.segment_background(normalised),
                view.score[:, 1:],
                view.label,
                valid,
                threshold=self.config.bg_threshold_seg,
            ),
            "bg_sim": similarity_loss(view.embedding, normalised, valid),
        }

    def contrast(
        self,
        views: tuple[View, View],
        background: list[Tensor],
        valid: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Compute `nce_prototype`, `nce_pseudo`, `nce_fg` and `nce_nroi`.

        The first two are those of PPC; `NroiContrast.fbr_losses` has the other two. The new NROIs
        stay pending until `after_step`.

        Args:
            views: The two views.
            background: (N, D, h, w) per view, the output of phi_bg before its ReLU.
            valid: (N, 1, H, W) bool, False on padding.
            progress: The step, which keys the draws.

        Returns:
            {name: scalar}, this rank's shares.
        """
        embeddings, cells = self.cells(views, valid)
        terms = prototype_losses(
            embeddings,
            cells,
            progress,
            temperature=self.config.temperature_ppc,
            background=self.background_prototype,
        )
        first = None
        if self.config.nroi_space != "bg":
            first = self.first_region_view(views[0], background[0], valid)
        return terms | self.fbr_contrast(
            embeddings,
            cells,
            views[0].label,
            background,
            first,
            progress,
            eligible=self.eligible(views, embeddings[0].shape[-2:]),
        )

    def pseudo_score(self, view: View, grid: Sequence[int]) -> Tensor:
        """Return the maps of which pseudo labels and prototypes are made, by `pseudo_source`.

        Args:
            view: The view.
            grid: Height and width of the result in cells.

        Returns:
            (N, K, *grid) in [0, 1), stretched per image and class.
        """
        if self.config.pseudo_source == "refined":
            return super().pseudo_score(view, grid)
        return min_max(resize(view.score.softmax(dim=1)[:, 1:], grid))

    def eligible(
        self, views: tuple[View, View], grid: tuple[int, int] | torch.Size
    ) -> list[Tensor] | None:
        """Find the cells of each view that may be queries, by their saliency.

        Args:
            views: The two views.
            grid: Height and width of the contrast grid in cells.

        Returns:
            (N, 1, *grid) bool per view; None if all cells may be queries.
        """
        if self.config.query_saliency == 0:
            return None
        salient = [resize_area(view.saliency, grid) for view in views]
        return [one > self.config.query_saliency for one in salient]

    def first_region_view(self, view: View, background: Tensor, valid: Tensor) -> RegionView:
        """Return the cells of the first view, on its own grid, in which NROIs are found.

        Args:
            view: The first view.
            background: (N, D, h, w), the output of phi_bg before its ReLU.
            valid: (N, 1, H, W) bool, False on padding.

        Returns:
            The cells; background are those with the pseudo label 0 that are not padding.
        """
        score = self.pseudo_score(view, view.score.shape[-2:]).detach()  # (N, K, h, w)
        pseudo = pseudo_labels(score, view.label, bg_score=self.config.bg_score)  # (N, h, w)
        inside = image_cells(valid, pseudo.shape[-2:])[:, 0]
        member = (pseudo == 0) & inside
        return self.region_view(background, view.high, member, view.embedding)
