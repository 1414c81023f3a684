"""The contract of a method: what a file of `network/methods` must define."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import RAW, Backbone, check_squares
from network.dropout import begin_step
from network.maps import over_maximum, sum_of_mirrors
from network.recipe import Recipe
from tool.infer.flags import ViewFlags
from tool.infer.scales import Views
from tool.progress import Progress
from tool.train.batch import Batch, part


class Method(nn.Module):
    """A method, as the stages see it.

    Attributes:
        inputs: Keys of the batch that the method needs in training. Without "label" a run needs no
            labels.
        infer_inputs: Keys of the batch that it needs in inference.
        maps: Names of the maps that `merge` returns. Stage 2 writes and checks all of them. The
            first one goes to the output folder, and masks are made of it. Each other one goes to a
            subfolder of its name.
        has_background: Whether the maps have K + 1 channels, background first.
        conditioned: Whether `score` reads the label, so that there are maps of given classes only.
        trained: Whether train_fbr.py trains the method. If not, stage 2 makes it from a pretrained
            backbone alone, and it has no `losses` and `weights`.
        whole_cams: Whether inference reads the CAMs of a previous stage at full size and with their
            background row, if they have one. Stage 2 sets `has_background` accordingly.
        recipe: Defaults of the flags.
        released: {name in the released code's files: name here} of the heads.
        released_unused: Beginnings of names in those files that have no counterpart here.
        released_background: A place ("first" or "last") and a set of names. A released file that
            has all these names has its background at that place.
        training_only: Beginnings of the names of weights that inference does not need. A foreign
            file may lack them.

    Args:
        backbone: The backbone, with its weights loaded, and frozen if they are pretrained.
        num_classes: K, without background.
        config: The method's hyper-parameters, an instance of its `Config`.
        pretrained: Whether the backbone's weights were pretrained. If not, every parameter has the
            learning rate of new layers.
    """

    inputs: tuple[str, ...] = ("image", "label")
    infer_inputs: tuple[str, ...] = ("image", "label")
    maps: tuple[str, ...] = ("cam",)
    has_background = False
    conditioned = False
    trained = True
    whole_cams = False
    recipe = Recipe()
    released: Mapping[str, str] = {"fc8.weight": "classifier.weight"}
    released_unused: tuple[str, ...] = ()
    released_background: tuple[str, frozenset[str]] | None = None
    training_only: tuple[str, ...] = ()

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Hyper-parameters in the paper's symbols; each becomes a flag."""

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.config = config
        self.pretrained = pretrained
        self._metrics: dict[str, Tensor] = {}
        self.build()

    def build(self) -> None:
        """Build the modules beside the backbone, and check the hyper-parameters.

        Raises:
            ValueError: A hyper-parameter is out of range, or the method cannot use the backbone.
        """

    def study(self, labels: Tensor) -> None:
        """Study the labels of the training list.

        This is called once, before the first step of a new or resumed run, and not at all if
        `inputs` does not name "label".

        Args:
            labels: (n, K) float32 {0, 1}, in the order of the list.
        """

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute the named, unweighted terms of a batch.

        Args:
            batch: The keys that `inputs` names.
            progress: The step, which keys random draws.

        Returns:
            {name: scalar}. With several ranks each term is this rank's share, so that the mean over
            the ranks is the term of the global batch.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return `losses`, after setting the step of every dropout.

        Training calls this in place of `losses`, because DDP's hooks see calls of the module only.
        """
        begin_step(self, progress)
        return self.losses(batch, progress)

    def weights(self) -> dict[str, float]:
        """Return {name: coefficient}, with the same names as `losses`."""
        raise NotImplementedError

    def score(self, batch: Batch) -> Tensor:
        """Compute the maps of images at one scale.

        Args:
            batch: `image` (2B, 3, H, W), B images of one size, each followed by its mirror; or
                (B, 3, H, W), without mirrors. Also the other keys that `infer_inputs` names,
                (B, ...).

        Returns:
            (2B, C, h, w) or (B, C, h, w), where C is K, or K + 1 if `has_background`. They must not
            be negative unless the method overrides `merge`.
        """
        raise NotImplementedError

    def embed(self, batch: Batch) -> Tensor | None:
        """Return the features in which the gate seeks NROIs, by default the raw high tap.

        The backbone computes each image once for both this and `score`
        (`tool.infer.multiscale.score_and_embed`).

        Args:
            batch: The batch of `score`.

        Returns:
            (2B, D, h, w) or (B, D, h, w), like `score`; None if the method has no such features.
        """
        return self.backbone(batch["image"], (RAW,))[RAW]

    def classify(self, batch: Batch) -> Tensor | None:
        """Compute the image-level probabilities of the classes.

        Args:
            batch: `image` (N, 3, H, W).

        Returns:
            (N, K) in [0, 1]. None, the default, if the method cannot classify. In that case
            `network.predict` must be given the classes, unless the method reads no label.
        """
        del batch
        return None

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Merge the scores of one image over scales and mirrors into named maps.

        By default each scale is resized to the image, mirrors are mirrored back, and all are added.
        Maps of absent classes are 0. Without a background, each map is divided by its maximum. With
        a background, the maps are the mean, so that they remain comparable with it.

        Args:
            scores: One (2, C, h, w) per scale, or (1, C, h, w) without mirrors.
            batch: `size` (H, W) of the maps, `sizes` (h, w) of the scaled images, and the keys that
                `infer_inputs` names, (1, ...). Without `label` all classes count as present.

        Returns:
            {name: (C, H, W)} with the names in `maps`; by default {"cam": (C, H, W)} in [0, 1].
        """
        # Only the P channels of the background and the present classes are resized.
        kept = self._kept(scores[0], batch)
        total = scores[0].new_zeros((len(kept), *batch["size"]))
        for score in scores if len(kept) else ():
            sized = F.interpolate(
                score[:, kept], size=batch["size"], mode="bilinear", align_corners=False
            )  # (2, P, H, W)
            total += sum_of_mirrors(sized)
        cam = total.new_zeros((scores[0].shape[1], *batch["size"]))
        cam[kept] = total / sum(map(len, scores)) if self.has_background else over_maximum(total)
        return {"cam": cam}

    def _kept(self, score: Tensor, batch: Batch) -> Tensor:
        """Return the channels of the background, if there is one, and of the present classes.

        Args:
            score: (2, C, h, w) or (1, C, h, w).
            batch: `label` (1, K); without it every channel is returned.

        Returns:
            (P,) int64, ascending.
        """
        if "label" not in batch:
            return torch.arange(score.shape[1], device=score.device)
        present = batch["label"][0].nonzero()[:, 0]
        if not self.has_background:
            return present
        return torch.cat([present.new_zeros(1), present + 1])

    def inference_views(
        self, flags: ViewFlags | None = None, *, max_side: int | None = None
    ) -> Views:
        """Return the copies of an image that pass through the network in inference.

        Args:
            flags: The user's choices; None for those of the recipe.
            max_side: The dataset's limit in pixels, in place of a flag that is not given. The
                backbone's is taken if that is lower.

        Raises:
            ValueError: The backbone does not take images of these sizes.
        """
        views, squares = self.recipe.views(), self.backbone.squares
        if squares and views.sides is None:
            views = dataclasses.replace(views, sides=self.backbone.sides)
        if flags is not None:
            limit = max_side and min(max_side, self.backbone.max_side)
            views = flags.changed(views, max_side=limit)
        if squares and views.sides is None:
            shown = " ".join(map(str, self.backbone.sides))
            raise ValueError(
                f"--scales: {self.backbone.name} takes squares: give --sides, such as {shown}"
            )
        for side in views.sides or ():
            check_squares(self.backbone, (side, side), "--sides")
        return views

    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch that `losses` gets: by default the same one.

        SFC's image bank adds images here.

        Args:
            batch: The batch as it was loaded, with the keys that `inputs` names.
            progress: The step, which keys random draws.
        """
        del progress
        return batch

    def after_step(self, progress: Progress) -> None:
        """Write the values that `losses` left pending (bank, EMA) after the optimizer's step.

        With `--accumulate` this follows several calls of `losses`. So `losses` must collect pending
        values over the calls, and drop those of an earlier step if `progress.micro` is 0.

        State that is not weights belongs in a module of its own with `is_state = True`.
        """

    def metrics(self) -> dict[str, Tensor]:
        """Return {name: detached scalar} of the last `losses`: logged, but no part of the loss."""
        return self._metrics

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return maps of the batch's first image to draw in the log.

        Args:
            batch: A training batch.

        Returns:
            {name: (C, h, w) in [0, 1]}. By default `cam`, from the image's scores; nothing if the
            batch lacks a key that `infer_inputs` names.
        """
        if not set(self.infer_inputs) <= set(batch):
            return {}
        score = self.score(part(batch, slice(1), self.infer_inputs))
        if self.has_background:
            return {"cam": score[0].clamp(0, 1)}
        cam = over_maximum(score.clamp(min=0))[0]
        return {"cam": cam * batch["label"][0, :, None, None] if "label" in batch else cam}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups of parameters that train.

        There are up to four groups: weights and biases, of the backbone and of new layers. Each has
        its factor of the recipe's `rates` on the learning rate. Only weights decay. The scales of
        norms count as biases. A backbone that was not pretrained counts as new.

        Args:
            lr: Learning rate.
            weight_decay: Weight decay of the groups that decay.

        Returns:
            {"params", "lr", "weight_decay"} per group that is not empty.
        """
        old = {id(p) for p in self.backbone.parameters()} if self.pretrained else set()
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                key = (id(parameter) not in old, parameter.ndim <= 1)
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * self.recipe.rates[2 * new + bias],
                "weight_decay": 0.0 if bias else weight_decay,
            }
            for (new, bias), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]
