"""FBR's hyper-parameters that do not depend on the host."""

from __future__ import annotations

import dataclasses

from network.options import option
from tool.ranges import POSITIVE, UNIT, Range


@dataclasses.dataclass(frozen=True)
class NroiConfig:
    """FBR's hyper-parameters that do not depend on the host.

    Attributes:
        temperature: Temperature T of nce_fg and nce_nroi, at least 0.03. A lower one weighs the
            hardest negatives more.
        quantile: Cells that score above this quantile of their class are confident and cannot be
            queries.
        floor: Only scores above this count for the quantile.
        max_queries: Largest number of queries per class and view.
        num_negatives: Number of negatives per class and view.
        num_clusters: Number of NROIs per image, which are the clusters of k-means.
        kmeans_iterations: Iterations of k-means.
        bank_size: Largest number of NROIs in the bank. The oldest are overwritten first.
        bank_share: Largest share of all NROIs of the run that the bank may hold, so that those of
            the first steps do not stay. 0 for no such limit, as in the release.
        nroi_space: Space of the NROIs. With bg they are the centroids that k-means finds in Z_bg,
            of both views on the contrast grid, as in the release. With fg each is the mean Z_fg of
            the cells of a cluster, of the first view on its own grid. Then queries and NROIs are in
            one space. With f the clusters are found in the features, as those of the gate are, and
            the rest is as with fg.
        bg_threshold_seg: Cells whose CAMs sum to less than this are background for bg_seg.
        weight_nce_fg: Weight of the contrast within the foreground.
        weight_nce_nroi: Weight of the contrast of pixels to NROIs.
        weight_bg_seg: Weight of the background segmentation.
        weight_bg_sim: Weight of the decorrelation of Z_fg and Z_bg. The release has 0.1 in `fbr`.
    """

    temperature: float = option(0.5, within=Range(0.03, 1e9))
    quantile: float = option(0.6, within=UNIT)
    floor: float = option(0.05, within=UNIT)
    max_queries: int = option(256, within=POSITIVE)
    num_negatives: int = option(256, within=POSITIVE)
    num_clusters: int = option(8, within=POSITIVE)
    kmeans_iterations: int = 10
    bank_size: int = option(50_000, within=POSITIVE)
    bank_share: float = option(0.25, within=UNIT)
    nroi_space: str = option("fg", choices=("bg", "fg", "f"))
    bg_threshold_seg: float = option(0.05, within=UNIT)
    weight_nce_fg: float = 0.1
    weight_nce_nroi: float = 0.01
    weight_bg_seg: float = 0.1
    weight_bg_sim: float = 0.0
