"""`ppc`: EPS with two views, a refined CAM (PCM) and pixel-to-prototype contrast.

Source: PPC (Y. Du et al., CVPR 2022) on the EPS host; ER, ECR and PCM from SEAM (Y. Wang et al.,
CVPR 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from network.calibration.maps import contrast_kept
from network.contrast.cells import Cells, view_cells
from network.contrast.prototypes import intra_loss, prototype_losses
from network.heads import projection
from network.losses import (
    add_up,
    classification,
    cross_refinement,
    equivariance,
    full_precision,
    mean_of_views,
    min_pool,
)
from network.maps import image_cells, min_max, over_maximum, resize
from network.methods import Batch
from network.methods.eps import Eps
from network.options import option, weights_of
from network.pixel_correlation import PixelCorrelation, normal_cam
from tool.progress import Progress
from tool.ranges import UNIT
from tool.train.batch import part


@dataclasses.dataclass(frozen=True)
class View:
    """One view of the batch and what the network computes from it.

    Attributes:
        label: (N, K), image-level {0, 1}.
        saliency: (N, 1, H, W) in [0, 1].
        high: (N, D', h, w), the high tap.
        score: (N, K+1, h, w), raw scores, background first.
        refined_cam: (N, K+1, h, w) in [0, 1), background first.
        embedding: (N, D, h, w), the paper's Z_fg.
    """

    label: Tensor
    saliency: Tensor
    high: Tensor
    score: Tensor
    refined_cam: Tensor
    embedding: Tensor


@dataclasses.dataclass(frozen=True)
class HostConfig(Eps.Config):
    """The hyper-parameters that PPC adds to EPS and FBR keeps.

    Attributes:
        width: Number of channels D of the embedding.
        centred: Subtract the mean of the image from each cell before the pixel correlation compares
            cells. It keeps the refined CAMs of a short run from being flat, because the correlation
            finds any two cells alike until it is trained.
        host_views: Views on which `cls`, `sal` and their refined forms are computed: both, as
            published, or the first. The second view of a short run has 8 cells per side, in which
            an object is a cell or two, and its terms let CAMs spread over what surrounds it.
        bg_score: Score of the background in the pseudo labels of cells. A higher one gives more
            background. A short run needs a higher one, because its refined CAMs are wider.
        temperature_ppc: Temperature of the contrasts with prototypes and with pseudo labels.
        weight_cls_refined: Weight of the minimum pooling of the refined CAM.
        weight_sal_refined: Weight of the saliency loss of the refined CAM.
        weight_er: Weight of the equivariance of the two views' CAMs.
        weight_ecr: Weight of the cross refinement of the two views.
        weight_nce_prototype: Weight of the contrast with the other view's prototypes.
        weight_nce_pseudo: Weight of the contrast by the other view's pseudo labels.
    """

    width: int = 128
    centred: bool = False
    host_views: str = option("both", choices=("both", "first"))
    bg_score: float = option(0.10, within=UNIT)
    temperature_ppc: float = 0.1
    weight_cls_refined: float = 1.0
    weight_sal_refined: float = 1.0
    weight_er: float = 1.0
    weight_ecr: float = 1.0
    weight_nce_prototype: float = 0.1
    weight_nce_pseudo: float = 0.1


class Ppc(Eps):
    """EPS on two views of each image.

    The terms of the host are computed on both views, and the contrast between the views and within
    each of them.

    Attributes:
        background_prototype: Whether the background has a prototype.
    """

    recipe = dataclasses.replace(
        Eps.recipe, short_options={"bg_score": 0.22, "host_views": "first"}
    )
    background_prototype = True
    released: Mapping[str, str] = {
        **Eps.released,
        "f8_3.weight": "correlation.low.weight",
        "f8_4.weight": "correlation.mid.weight",
        "f9.weight": "correlation.embed.weight",
    }
    training_only: tuple[str, ...] = ("correlation.", "project_")

    @dataclasses.dataclass(frozen=True)
    class Config(HostConfig):
        """The hyper-parameters of EPS and PPC.

        Attributes:
            weight_nce_intra: Weight of the contrast within a view.
        """

        weight_nce_intra: float = 0.1

    def build(self) -> None:
        """Build the heads of the host, the projection and the pixel correlation."""
        super().build()
        taps = self.backbone.taps
        self.project_foreground = projection(taps["high"].channels, self.config.width)
        self.correlation = PixelCorrelation(
            taps["low"].channels, taps["mid"].channels, centred=self.config.centred
        )

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute the terms of the host and of the contrast, on both views.

        Args:
            batch: `image` (N, 3, H, W), `label` (N, K), `saliency` and `valid` (N, 1, H, W).
            progress: The step, which keys the draws.

        Returns:
            {name: scalar}, this rank's shares: the terms of `host_losses` and `contrast_losses`.
        """
        views = self.views(batch)
        terms = self.host_losses(views)
        with full_precision(views[0].score):
            return terms | self.contrast_losses(views, batch["valid"], progress)

    def weights(self) -> dict[str, float]:
        """Return the weights: 1 for `cls`, and `weight_NAME` of the config for the other terms."""
        return {"cls": 1.0} | weights_of(self.config)

    def views(self, batch: Batch) -> tuple[View, View]:
        """Run the network on the crop, and on a smaller copy of it.

        Args:
            batch: `image` (N, 3, H, W), `saliency` and `valid` (N, 1, H, W), and `label` (N, K).

        Returns:
            The two views. The second one has 2 / 7 of the cells of the first per side, at least 8.
            Its grid is the contrast grid.
        """
        image, saliency, label = batch["image"], batch["saliency"], batch["label"]
        first = self.view(image, saliency, label, batch["valid"])
        # The size in pixels at which the network gives the wanted number of cells.
        stride = self.backbone.taps["high"].stride
        size = tuple(stride * max(8, round(cells * 2 / 7)) for cells in first.score.shape[-2:])
        second = self.view(resize(image, size), resize(saliency, size), label, batch["valid"])
        return first, second

    def view(self, image: Tensor, saliency: Tensor, label: Tensor, valid: Tensor) -> View:
        """Run the network on one view.

        Args:
            image: (N, 3, H, W), normalised.
            saliency: (N, 1, H, W) in [0, 1].
            label: (N, K), image-level {0, 1}.
            valid: (N, 1, H', W') bool, False on padding; of any size.
        """
        taps = self.backbone(image, ("low", "mid", "high"))
        score = self.classifier(taps["high"]).float()
        # Which cells are padding matters only to the mean that a centred correlation subtracts.
        inside = image_cells(valid, score.shape[-2:]) if self.config.centred else None
        refined_cam = self.correlation(
            score, label, image, taps["low"], taps["mid"], inside
        ).float()
        embedding = F.relu(self.project_foreground(taps["high"])).float()
        return View(label, saliency, taps["high"], score, refined_cam, embedding)

    def image_logit(self, view: View) -> Tensor:
        """Compute the image-level logits (N, K+1) of a view: the mean of each score map."""
        return view.score.mean(dim=(-2, -1))

    def host_losses(self, views: tuple[View, View]) -> dict[str, Tensor]:
        """Compute `cls`, `cls_refined`, `sal`, `sal_refined`, `er` and `ecr`.

        To log: `refined_contrast`, the share of the CAMs' deviation that the pixel correlation
        leaves in the first view. If it is near 0, the refined CAMs are flat and teach nothing.

        Args:
            views: The two views.

        Returns:
            {name: scalar}, this rank's shares. Terms of one view are the mean of those that
            `host_views` names.
        """
        first, label, grid = views[0], views[0].label, views[1].score.shape[-2:]
        cams = normal_cam(first.score.detach(), label)[:, 1:]
        kept = contrast_kept(first.refined_cam.detach()[:, 1:], cams)
        self._metrics = self._metrics | {"refined_contrast": kept}
        cam = [resize(view.score, grid) for view in views]
        refined = [resize(view.refined_cam, grid) for view in views]
        count = 2 if self.config.host_views == "both" else 1
        terms = mean_of_views([self.view_losses(view) for view in views[:count]])
        terms["er"] = equivariance(views[0].score, views[1].score, label)
        terms["ecr"] = cross_refinement(cam[1], refined[0], label) + cross_refinement(
            cam[0], refined[1], label
        )
        return terms

    def view_losses(self, view: View) -> dict[str, Tensor]:
        """Compute the terms of the host that need one view only.

        Args:
            view: The view.

        Returns:
            `cls`, `cls_refined`, `sal` and `sal_refined`, as scalars.
        """
        label, refined_cam = view.label, view.refined_cam
        # The saliency loss takes probabilities, so the refined CAM is scaled to sum to 1 per cell.
        shares = refined_cam / (refined_cam.sum(dim=1, keepdim=True) + 1e-5)
        return {
            "cls": classification(self.image_logit(view)[:, 1:], label),
            "cls_refined": min_pool(refined_cam, label),
            "sal": self.saliency_loss(view.score.softmax(dim=1), label, view.saliency),
            "sal_refined": self.saliency_loss(shares, label, view.saliency),
        }

    def cells(self, views: tuple[View, View], valid: Tensor) -> tuple[list[Tensor], list[Cells]]:
        """Resize the embedding of each view to the contrast grid, and make its cells.

        Args:
            views: The two views.
            valid: (N, 1, H, W) bool, False on padding.

        Returns:
            Per view, the embedding (N, D, g, g), with gradient, and the cells of the global batch,
            without gradient.
        """
        grid = views[1].score.shape[-2:]
        inside = image_cells(valid, grid)
        embeddings = [resize(view.embedding, grid) for view in views]
        cells = [
            view_cells(
                embedding,
                self.pseudo_score(view, grid),
                view.label,
                inside,
                bg_score=self.config.bg_score,
                background=self.background_prototype,
            )
            for embedding, view in zip(embeddings, views, strict=True)
        ]
        return embeddings, cells

    def pseudo_score(self, view: View, grid: Sequence[int]) -> Tensor:
        """Return the maps of which pseudo labels and prototypes are made: the refined CAM.

        Args:
            view: The view.
            grid: Height and width of the result in cells.

        Returns:
            (N, K, *grid) in [0, 1), stretched per image and class.
        """
        return min_max(resize(view.refined_cam[:, 1:], grid))

    def contrast_losses(
        self, views: tuple[View, View], valid: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Compute `nce_prototype`, `nce_pseudo` and `nce_intra`.

        Args:
            views: The two views.
            valid: (N, 1, H, W) bool, False on padding.
            progress: The step, which keys the draws.

        Returns:
            {name: scalar}, this rank's shares.
        """
        embeddings, cells = self.cells(views, valid)
        temperature = self.config.temperature_ppc
        terms = prototype_losses(
            embeddings,
            cells,
            progress,
            temperature=temperature,
            background=self.background_prototype,
        )
        intra = [
            intra_loss(
                embeddings[i],
                cells[i],
                progress,
                f"nce_intra.{i}",
                temperature=temperature,
                num_classes=self.num_classes,
            )
            for i in (0, 1)
        ]
        return terms | {"nce_intra": add_up(intra) / 2}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the CAM and the refined CAM of the first image, (K, h, w) in [0, 1] each."""
        first = part(batch, slice(1), (*self.inputs, "valid"))
        view = self.view(first["image"], first["saliency"], first["label"], first["valid"])
        mask = first["label"][0, :, None, None]
        return {
            "cam": over_maximum(view.score.softmax(dim=1)[:, 1:])[0] * mask,
            "refined CAM": over_maximum(view.refined_cam[:, 1:])[0] * mask,
        }
