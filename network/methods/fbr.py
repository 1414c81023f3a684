"""`fbr`: fine-grained background representation, PPC plus NROIs and active foreground sampling.

Source: FBR (X. Yin et al., IEEE TCSVT 2024, arXiv 2406.15755).
Differs from the released code: the queries of `nce_nroi` carry a gradient, its cosine runs over the
embedding,
prototypes come from images that have the class, there is no background prototype, one bank is fed
by both views after the step and saved with the checkpoint. The README lists the rest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from network.backbones import Backbone
from network.contrast import (
    Cells,
    class_balanced_mean,
    class_slots,
    draw_queries,
    foreground_negatives,
    full_precision,
    hard_cells,
    info_nce,
    query_embedding,
)
from network.heads import BackgroundSegmentation, projection, thresholded_average_pool
from network.losses import image_cells, over_maximum, resize
from network.methods import option
from network.methods.ppc import HostConfig, Ppc, View, mean_of_views
from network.nroi import NROIBank, kmeans
from tool.dist import gather, global_mean
from tool.progress import Progress


class Fbr(Ppc):
    """PPC with TAP, and with `nce_intra` replaced by `nce_fg` and `nce_nroi`."""

    background_prototype = False

    @dataclasses.dataclass(frozen=True)
    class Config(HostConfig):
        """EPS's, PPC's without `nce_intra`, and FBR's."""

        tap_threshold: float = option(
            0.10, "TAP keeps cells above this share of a channel's maximum"
        )
        temperature: float = option(0.5, "temperature T of nce_fg and nce_nroi, at least 0.03")
        quantile: float = option(0.6, "scores above this quantile are confident, not hard queries")
        floor: float = option(0.05, "scores above this count for the quantile")
        max_queries: int = option(256, "queries a class and view at most")
        num_negatives: int = option(256, "negatives a class and view")
        num_clusters: int = option(8, "NROIs an image and view (k-means clusters)")
        kmeans_iterations: int = option(10, "iterations of the k-means")
        bank_size: int = option(50_000, "NROIs the bank keeps")
        bg_threshold_seg: float = option(
            0.05, "cells whose CAM sums to less are background for bg_seg"
        )
        weight_nce_fg: float = option(0.1, "weight of the intra-foreground contrast")
        weight_nce_nroi: float = option(0.01, "weight of the pixel-to-NROI contrast")
        weight_bg_seg: float = option(0.1, "weight of the background segmentation")
        weight_bg_sim: float = option(0.1, "weight of the foreground-background decorrelation")

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        if config.temperature < 0.03:  # below it the exponentials of `info_nce` vanish
            raise ValueError(f"temperature {config.temperature} is not at least 0.03")
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        self.project_background = projection(backbone.taps["high"].channels, config.width)
        self.segment_background = BackgroundSegmentation(config.width)
        self.bank = NROIBank(config.bank_size, config.width)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def losses(self, batch: Any, progress: Progress) -> dict[str, Tensor]:
        """The host's terms, the contrast, and the background's own terms."""
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
        """(N, K+1) image-level logits through TAP."""
        pooled = thresholded_average_pool(view.high, threshold=self.config.tap_threshold)
        return self.classifier(pooled).float()[:, :, 0, 0]

    def background_losses(self, view: View, background: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """`bg_seg` and `bg_sim` of one view.

        Args:
            background: phi_bg's output (N, D, h, w).
            valid: (N, 1, H, W) bool, the pixels that are not padding.
        """
        normalised = self.segment_background.normalised(background)
        cam = over_maximum(view.score.detach()[:, 1:]) * view.label[:, :, None, None]
        target = (cam.sum(dim=1, keepdim=True) < self.config.bg_threshold_seg).float()
        logit = self.segment_background(normalised).float()
        loss = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
        inside = image_cells(valid, logit.shape[-2:])
        similarity = F.cosine_similarity(view.embedding, normalised.float(), dim=1, eps=1e-4)
        return {
            "bg_seg": global_mean((loss * inside).sum(), inside.sum()),
            "bg_sim": similarity.mean(),
        }

    def contrast(
        self,
        views: tuple[View, View],
        background: list[Tensor],
        valid: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """`nce_prototype`, `nce_pseudo`, `nce_fg` and `nce_nroi`; leaves the new NROIs pending."""
        embeddings, cells = self.cells(views)
        terms = self.prototype_losses(embeddings, cells, progress)
        label = views[0].label
        return terms | self.fbr_contrast(embeddings, cells, label, background, valid, progress)

    def fbr_contrast(
        self,
        embeddings: list[Tensor],
        cells: list[Cells],
        label: Tensor,
        background: list[Tensor],
        valid: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """`nce_fg` and `nce_nroi` of both views on the contrast grid, and the k-means."""
        slots = class_slots(label)
        both = [self.fbr_losses(embeddings[i], cells[i], slots, progress, i) for i in (0, 1)]
        self._metrics = mean_of_views([metrics for _, metrics in both])
        grid = embeddings[0].shape[-2:]
        if progress.micro == 0:  # else they belong to this step's other micro-batches
            self._pending = []
        inside = image_cells(valid, grid)
        for i in (0, 1):
            nroi = resize(F.relu(background[i].detach()), grid)
            self._pending.append(self.image_nrois(nroi, cells[i], inside, progress, i))
        return mean_of_views([terms for terms, _ in both])

    def fbr_losses(
        self, embedding: Tensor, cells: Cells, slots: Tensor, progress: Progress, index: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`nce_fg` and `nce_nroi` of one view, and the mean cosines of their queries.

        Args:
            embedding: (N, D, g, g), receives the gradient.
            slots: (P,) classes. index: of the view, names its draws.
        """
        config, name = self.config, f"view{index}"
        hard = hard_cells(cells, slots, quantile=config.quantile, floor=config.floor)
        queries = draw_queries(
            cells, hard, slots, progress, f"query.{name}", cap=config.max_queries
        )
        query, here = query_embedding(embedding, queries, progress)
        positive = cells.prototype[slots + 1]
        cell, has_other = foreground_negatives(
            cells,
            slots,
            progress,
            f"fg.{name}",
            count=config.num_negatives,
            temperature=config.temperature,
        )
        shape = (len(cells.valid) - 1, config.num_negatives)
        nroi = self.bank.sample(shape, progress, f"nroi.{name}")[slots]
        has_nroi = (self.bank.filled > 0).expand(len(slots))
        terms, metrics = {}, {}
        for term, negative, usable in (
            ("nce_fg", cells.embedding[cell], has_other),
            ("nce_nroi", nroi, has_nroi),
        ):
            loss, *cosines = info_nce(query, positive, negative, temperature=config.temperature)
            terms[term] = class_balanced_mean(loss, here, queries, usable, progress)
            for side, cosine in zip(("positive", "negative"), cosines, strict=True):
                metrics[f"{term}_cos_{side}"] = class_balanced_mean(
                    cosine, here, queries, usable, progress
                )
        return terms, metrics

    def image_nrois(
        self, background: Tensor, cells: Cells, inside: Tensor, progress: Progress, index: int
    ) -> tuple[Tensor, Tensor]:
        """Each image's NROIs: centroids of its background cells, padding left out.

        Args:
            background: (N, D, g, g), Z_bg, constant. inside: (N, 1, g, g) bool.

        Returns:
            (N, k, D) and (N, k) bool.
        """
        feature = background.flatten(2).transpose(1, 2)
        images, count, _ = feature.shape
        member = cells.local(cells.pseudo, progress).view(images, count) == 0
        member &= inside.flatten(1)
        priority = progress.uniform_per_image(
            f"kmeans.view{index}", images, (count,), feature.device
        )
        return kmeans(
            feature,
            member,
            priority,
            clusters=self.config.num_clusters,
            iterations=self.config.kmeans_iterations,
        )

    def after_step(self, progress: Progress) -> None:
        """Put the step's NROIs of all ranks into the bank, in image order."""
        del progress
        for vector, valid in self._pending:
            vector, valid = gather(vector), gather(valid)
            self.bank.enqueue(vector.flatten(0, 1), valid.flatten())
        self._pending = []
