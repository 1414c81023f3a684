"""The terms FBR adds to any host: hard queries against other classes and a bank of NROIs.

Source: FBR (X. Yin et al., IEEE TCSVT 2024, arXiv 2406.15755).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from network.contrast.background import RegionView, background_cells, image_nrois
from network.contrast.cells import Cells, class_ids_of, l2_normalize, take
from network.contrast.gate import gate_of_first
from network.contrast.info_nce import class_balanced_mean, class_mean, info_nce, mean_query
from network.contrast.nroi import NROIBank
from network.contrast.queries import draw_queries, foreground_negatives, hard_cells, query_embedding
from network.heads import BackgroundSegmentation, projection
from network.losses import mean_of_views
from network.maps import over_maximum, resize
from tool.parallel.dist import gather
from tool.progress import Progress
from tool.train.batch import Batch, part


class NroiContrast(nn.Module):
    """The part of a method that computes `nce_fg`, `nce_nroi`, `bg_seg` and `bg_sim`.

    It owns the background projection phi_bg, the background segmentation phi_seg and the bank. A
    method that inherits from it has the fields of `NroiConfig` in its `config`, and calls
    `add_background` in its `build`.

    Attributes:
        two_views: Whether the method contrasts two views of each image.
    """

    two_views = True
    config: Any  # the method's own `Config`
    _metrics: dict[str, Tensor]

    def add_background(self, channels: int) -> None:
        """Add the heads and the empty bank.

        Args:
            channels: Number of channels of the feature map that phi_bg reads.

        Raises:
            ValueError: The number of queries, negatives, clusters or rows of the bank is below 1;
                `bank_share` is not in [0, 1]; or `temperature` is below 0.03, where the
                exponentials of `info_nce` could overflow.
        """
        for name in ("max_queries", "num_negatives", "num_clusters"):
            if getattr(self.config, name) < 1:
                raise ValueError(f"{name} {getattr(self.config, name)} is not at least 1")
        if not 0 <= self.config.bank_share <= 1:
            raise ValueError(f"bank_share {self.config.bank_share} is not in [0, 1]")
        if self.config.temperature < 0.03:
            raise ValueError(f"temperature {self.config.temperature} is not at least 0.03")
        self.project_background = projection(channels, self.config.width)
        self.segment_background = BackgroundSegmentation(self.config.width)
        self.bank = NROIBank(self.config.bank_size, self.config.width)
        self._pending: list[tuple[Tensor, Tensor]] = []  # NROIs of this step, and which are valid

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the host's maps of the first image, the gate of its CAM, and the gated CAM.

        The NROIs are those of the batch's other images. In inference they come from a sample of the
        training list instead.

        Args:
            batch: A training batch.

        Returns:
            {name: (K, h, w) in [0, 1]}: the host's maps, `gate` and `gated CAM`.
        """
        # The host makes maps of the first image only, so it gets one image at a time.
        count = len(batch["image"])
        first, *others = (
            super(NroiContrast, self).pictures(part(batch, slice(i, i + 1)))  # type: ignore[misc]
            for i in range(count)
        )
        cams = [maps["cam"] for maps in (first, *others)]
        gate = gate_of_first(self.embed(batch), cams, batch["label"])  # type: ignore[operator]
        gate = resize(gate[None], cams[0].shape[-2:])[0]
        return first | {"gate": gate, "gated CAM": over_maximum(cams[0] * gate)}

    def region_view(
        self, background: Tensor, high: Tensor, member: Tensor, embedding: Tensor
    ) -> RegionView:
        """Return the cells in which NROIs are found, with the vectors that `nroi_space` clusters.

        Args:
            background: (N, D, h, w), the output of phi_bg before its ReLU.
            high: (N, C, h, w), the features that phi_bg reads.
            member: (N, h, w) bool, the background cells.
            embedding: (N, D, h, w), Z_fg.

        Returns:
            The cells. Their `feature` is `high`, normalised per cell, if `nroi_space` is f; else it
            is Z_bg, the ReLU of `background`.
        """
        if self.config.nroi_space == "f":
            feature = F.normalize(high.detach().float(), dim=1)
        else:
            feature = F.relu(background.detach())
        return RegionView(feature, member, embedding.detach())

    def fbr_contrast(
        self,
        embeddings: Sequence[Tensor],
        cells: Sequence[Cells],
        label: Tensor,
        background: Sequence[Tensor],
        first: RegionView | None,
        progress: Progress,
        *,
        eligible: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute `nce_fg` and `nce_nroi` on the contrast grid, and this step's NROIs.

        The NROIs stay pending until `after_step` puts them into the bank.

        Args:
            embeddings: (N, D, g, g) per view; receive the gradient.
            cells: The cells of the same views.
            label: (N, K), image-level {0, 1}.
            background: (N, D, h, w) per view, the output of phi_bg before its ReLU.
            first: The first view on its own grid, of which the NROIs are made. If None, they are
                made of both views on the contrast grid, as in the release.
            progress: The step.
            eligible: (N, 1, g, g) bool per view, the cells that may be queries of both terms and
                negatives of `nce_fg`. None for all cells.

        Returns:
            {`nce_fg`, `nce_nroi`: scalar}, this rank's shares, each the mean of the views.
        """
        self.limit_bank(len(label), progress)
        class_ids = class_ids_of(label)  # (P,)
        views = range(len(embeddings))
        # Per view, the eligible cells of all ranks, (T,), or None.
        may: Sequence[Tensor | None] = [None] * len(cells)
        if eligible is not None:
            may = [gather(one).flatten() for one in eligible]
        # The terms and the metrics of each view. The bank has NROIs of earlier steps only.
        both = [
            self.fbr_losses(embeddings[i], cells[i], class_ids, progress, i, eligible=may[i])
            for i in views
        ]
        self._metrics = self._metrics | mean_of_views([metrics for _, metrics in both])
        # The NROIs of this step. The later micro-batches of a step add to those of the first.
        if progress.micro == 0:
            self._pending = []
        if first is not None:
            regions = [first]
        else:
            grid = embeddings[0].shape[-2:]
            regions = [
                RegionView(
                    resize(F.relu(background[i].detach()), grid),
                    background_cells(cells[i], progress).view(len(label), *grid),
                    embeddings[i].detach(),
                )
                for i in views
            ]
        self._pending += image_nrois(regions, self.config, progress)
        return mean_of_views([terms for terms, _ in both])

    def limit_bank(self, images: int, progress: Progress) -> None:
        """Limit the bank to `bank_share` of the NROIs that the run can make.

        The limit is at least one row, and at most the size of the bank. If `bank_share` is 0, it
        remains the size of the bank.

        Args:
            images: Number of images in this rank's micro-batch.
            progress: The step, which knows the number of steps and of ranks.
        """
        if self.config.bank_share > 0:
            # A step makes `num_clusters` rows per image of the global batch and per view that makes
            # NROIs.
            views = 2 if self.config.nroi_space == "bg" and self.two_views else 1
            batch = images * progress.accumulate * progress.world_size
            rows = progress.steps * batch * views * self.config.num_clusters
            self.bank.limit = min(self.bank.size, max(1, int(self.config.bank_share * rows)))

    def fbr_losses(
        self,
        embedding: Tensor,
        cells: Cells,
        class_ids: Tensor,
        progress: Progress,
        index: int,
        *,
        eligible: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute `nce_fg` and `nce_nroi` of one view, and the mean cosines of their queries.

        Both terms are the InfoNCE loss of the same queries, the hard cells of a class, with the
        prototype of the class as positive. The negatives of `nce_fg` are cells of other classes,
        and those of `nce_nroi` are NROIs of the bank.

        Args:
            embedding: (N, D, g, g); receives the gradient.
            cells: The cells of the view, of all ranks.
            class_ids: (P,) 0-based classes for which the terms are computed.
            progress: The step, which keys the draws.
            index: Index of the view, which names its draws.
            eligible: (T,) bool, the cells that may be queries of both terms and negatives of
                `nce_fg`. None for all cells.

        Returns:
            {term: scalar}, this rank's shares, and {metric: scalar}: the mean cosines of each
            term's queries with their positive and with their negatives.

        Source: FBR (TCSVT 2024), intra-foreground and pixel-to-NROI contrast.
        """
        config, name = self.config, f"view{index}"
        # 1. Find the hard cells of each class. A cell that is not eligible counts as background
        # from here on, so that it is no negative either.
        hard = hard_cells(cells, class_ids, quantile=config.quantile, floor=config.floor)  # (P, T)
        if eligible is not None:
            hard &= eligible
            cells = dataclasses.replace(cells, pseudo=cells.pseudo * eligible)
        # 2. Sample the queries among them. This changes the order of the classes.
        queries = draw_queries(
            cells, hard, class_ids, progress, f"query.{name}", cap=config.max_queries
        )
        class_ids = queries.class_ids
        query, is_local = query_embedding(embedding, queries, progress)  # (P, M, D), (P, M)
        # 3. The positive of a class is its prototype. Sample n negatives per class and term.
        positive = l2_normalize(cells.prototype[class_ids + 1])  # (P, D)
        negatives, has_negatives = self.negatives(cells, class_ids, progress, name)
        # 4. Compute both losses of every query, one (P, M) per term. The blocks leave out rows
        # without a query.
        mean, blocks = mean_query(query.detach(), is_local, queries), queries.blocks()
        losses = info_nce(query, positive, negatives, temperature=config.temperature, blocks=blocks)
        # 5. Average them over the queries of each class, then over the classes.
        terms, metrics = {}, {}
        for term, loss, negative, has_negative in zip(
            ("nce_fg", "nce_nroi"), losses, negatives, has_negatives, strict=True
        ):
            terms[term] = class_balanced_mean(loss, is_local, queries, has_negative, progress)
            # To log: the mean cosine of several vectors with a unit vector is the product of their
            # mean with it.
            for side, other in (("positive", positive), ("negative", negative.mean(dim=1))):
                cosine = (mean * other).sum(dim=1)  # (P,)
                metrics[f"{term}_cos_{side}"] = class_mean(cosine, queries, has_negative, progress)
        return terms, metrics

    def negatives(
        self, cells: Cells, class_ids: Tensor, progress: Progress, name: str
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sample the negatives of `nce_fg` and of `nce_nroi` for each class.

        Args:
            cells: The cells of the view, of all ranks.
            class_ids: (P,) 0-based classes.
            progress: The step, which keys the draws.
            name: Name of the view, which names its draws.

        Returns:
            Two lists with one entry per term: (P, n, D) unit vectors, and (P,) bool, which classes
            have negatives. The vectors of the other classes mean nothing.
        """
        # Of `nce_fg`: cells of other classes, of similar classes more often.
        count = self.config.num_negatives
        cell, has_other = foreground_negatives(
            cells,
            class_ids,
            progress,
            f"fg.{name}",
            count=count,
            temperature=self.config.temperature,
        )
        # Of `nce_nroi`: rows of the bank. The draw is made for all K classes, so that the rows of a
        # class do not depend on which other classes are present.
        shape = (len(cells.valid) - 1, count)  # (K, n)
        nroi = self.bank.sample(shape, progress, f"nroi.{name}", rows=class_ids)  # (P, n, D)
        has_nroi = (self.bank.filled > 0).expand(len(class_ids))  # (P,)
        vectors = [l2_normalize(take(cells.embedding, cell)), l2_normalize(nroi)]
        return vectors, [has_other, has_nroi]

    def after_step(self, progress: Progress) -> None:
        """Put the step's NROIs of all ranks into the bank, in the order of views and images."""
        del progress
        for vector, valid in self._pending:
            vector, valid = gather(vector), gather(valid)
            self.bank.enqueue(vector.flatten(0, 1), valid.flatten())
        self._pending = []
