"""`fbr_amn`: FBR on the AMN host, with image labels alone.

Source: FBR (X. Yin et al., IEEE TCSVT 2024), the setting without saliency.
Differs from the released code: both contrastive terms carry a gradient; only classes of the image
are pseudo labels; a batch of one class does not cause an error; background segmentation is on, as
in the paper's figure. The documentation lists the other differences.
"""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from network.contrast.background import background_cells, segmentation_loss, similarity_loss
from network.contrast.cells import Cells, view_cells
from network.contrast.fbr import NroiContrast
from network.contrast.nroi_config import NroiConfig
from network.heads import projection
from network.losses import full_precision
from network.maps import image_cells, resize_area
from network.methods import Batch
from network.methods.amn import Amn
from network.options import option, weights_of
from tool.progress import Progress
from tool.ranges import POSITIVE, UNIT


def above_floor(prob: Tensor, inside: Tensor) -> Tensor:
    """Subtract from the map of each class its smallest value in the image.

    AMN's label smoothing spreads the share eps of a cell's target over the K other classes. So a
    fitted network gives a class about eps / K or more in every cell: 5 % at K = 8 and eps = 0.4,
    which is 8 % of its maximum, 1 - eps. But `bg_seg` counts a cell as background only if its
    classes, each over its maximum, sum to less than 5 %. It would find no background.

    Args:
        prob: (N, K, h, w) in [0, 1], without the background.
        inside: (N, 1, h, w) bool, False on padding, which does not count for the smallest value.

    Returns:
        (N, K, h, w) in [0, 1]; 0 on padding.
    """
    least = prob.masked_fill(~inside, 1.0).amin(dim=(-2, -1), keepdim=True)
    return (prob - least) * inside


class FbrAmn(NroiContrast, Amn):
    """AMN with the projections, bank and contrast of FBR on its label-conditioned features."""

    recipe = Amn.recipe.gated()
    two_views = False

    @dataclasses.dataclass(frozen=True)
    class Config(NroiConfig, Amn.Config):
        """The hyper-parameters of AMN, and those of FBR with the defaults for this host.

        Attributes:
            width: Number of channels D of the embedding.
            query_seed: Exclude cells from the queries, and from the negatives of nce_fg, if at
                least half of their pixels are confident background in the seed. Without it all
                cells may be, as in the release.
        """

        width: int = 128
        query_seed: bool = True
        quantile: float = option(0.4, within=UNIT)
        bank_size: int = option(100_000, within=POSITIVE)
        weight_nce_nroi: float = 0.05

    def build(self) -> None:
        """Build the heads of AMN, the projection, and the heads of the background."""
        super().build()
        channels = self.backbone.taps["high"].channels
        self.project_foreground = projection(channels, self.config.width)
        self.add_background(channels)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `pixel`, `bg_seg`, `bg_sim`, `nce_fg` and `nce_nroi`.

        Args:
            batch: `image` (N, 3, H, W), `label` (N, K), `seed` (N, H, W) and `valid`
                (N, 1, H, W).
            progress: The step, which keys the draws.

        Returns:
            {name: scalar}, this rank's shares.
        """
        # 1. The probabilities of AMN.
        label, valid = batch["label"], batch["valid"]
        feature = self.conditioned_features(batch["image"], label)  # (N, C, h, w)
        logit = self.classifier(self.dropout(feature)).float()  # (N, K+1, h, w)
        prob = logit.softmax(dim=1)
        inside = image_cells(valid, logit.shape[-2:])  # (N, 1, h, w)
        # On padding the probabilities mean nothing, because padding has no seed.
        foreground = prob[:, 1:] * inside
        # 2. The terms without contrast. The projections read the features before dropout.
        background = self.project_background(feature).float()  # (N, D, h, w)
        embedding = F.relu(self.project_foreground(feature)).float()  # (N, D, h, w)
        normalised = self.segment_background.normalised(background)
        terms = {
            "pixel": self.pixel_loss(logit, batch["seed"]),
            "bg_seg": segmentation_loss(
                self.segment_background(normalised),
                above_floor(foreground, inside),
                label,
                valid,
                threshold=self.config.bg_threshold_seg,
            ),
            "bg_sim": similarity_loss(embedding, normalised, valid),
        }
        # 3. The contrast, on the cells of the only view. Cells that are mostly confident background
        # are not eligible.
        eligible = None
        if self.config.query_seed:
            ground = resize_area((batch["seed"] == 0)[:, None].float(), inside.shape[-2:])
            eligible = [ground < 0.5]  # (N, 1, h, w)
        with full_precision(embedding):
            cells = self.cells(embedding, prob, label, inside)
            member = background_cells(cells, progress).view_as(inside[:, 0])
            first = None
            if self.config.nroi_space != "bg":
                first = self.region_view(background, feature, member, embedding)
            return terms | self.fbr_contrast(
                [embedding], [cells], label, [background], first, progress, eligible=eligible
            )

    def cells(self, embedding: Tensor, prob: Tensor, label: Tensor, inside: Tensor) -> Cells:
        """Return the cells of the global batch, with the probabilities as their scores.

        Args:
            embedding: (N, D, h, w) of this rank.
            prob: (N, K+1, h, w) in [0, 1], background first.
            label: (N, K), image-level {0, 1}.
            inside: (N, 1, h, w) bool, False on padding.
        """
        return view_cells(
            embedding,
            prob[:, 1:],
            label,
            inside,
            bg_score=prob[:, 0],
            background=False,
            top_share=32,
        )

    def weights(self) -> dict[str, float]:
        """Return the weights: 1 for `pixel`, and `weight_NAME` of the config for the others."""
        return super().weights() | weights_of(self.config)
