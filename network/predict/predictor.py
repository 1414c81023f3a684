"""A trained network that segments photographs: load it once, then call it.

    from network.predict.predictor import load

    predictor = load("out/toy-fbr-seed0/checkpoint.pth")
    found = predictor.predict("photo.jpg", classes=["cat"])
    found.mask  # (H, W) uint8

A mask is the one that stages 2 and 3 make: the same copies of the image, gate, CRF and threshold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from network.contrast.gate import NroiGate
from network.methods import Method
from network.predict.choose import (
    SURE,
    chosen_classes,
    gate_of,
    is_segmentation_network,
    label_of,
    likeliest,
    likelihood,
    region_id,
)
from network.predict.maps import PhotographMaps, maps_of
from network.predict.request import Request, Source, as_photograph
from network.weights.restore import restore
from tool.crf.flags import CrfFlags, crf_settings
from tool.crf.masking import MaskMaker
from tool.formats.image import reduced
from tool.formats.mask import resized
from tool.infer.kinds import INFERABLE, takes_previous_outputs
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views
from tool.parallel.device import pick_device


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one photograph of H x W pixels.

    Attributes:
        mask: (H, W) uint8: 0 background, then 1 + the index in `class_names`.
        maps: The maps that the mask is made of.
        scores: {class name: probability} of the image as a whole; {} if the method does not
            classify.
        classes: Names of the classes that the mask may have.
        given: Whether the caller named these classes. Otherwise they are those of which the method
            is sure (a probability of at least `SURE`, or the likeliest one), or all classes of a
            segmentation network.
        class_names: The K foreground names of the network.
    """

    mask: np.ndarray
    maps: PhotographMaps
    scores: dict[str, float]
    classes: tuple[str, ...]
    given: bool
    class_names: tuple[str, ...]

    @property
    def cams(self) -> dict[str, np.ndarray]:
        """Return {class name: (h, w) float32 in [0, 1]}, the maps that the mask is made of.

        They are in the order of the classes, after "background" if the method has a map for it.
        They have the size that the network saw, the photograph's if that is not too large.
        """
        names, rows = ("background", *self.class_names), self.maps.rows
        return {names[value]: row for value, row in zip(rows.class_index, rows.cam, strict=True)}


def load(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    gate: str | None = None,
    max_side: int | None = None,
    crf: CrfFlags | None = None,
) -> Predictor:
    """Load a checkpoint.

    Args:
        checkpoint: The `checkpoint.pth` of a run, or what `network.export` wrote.
        device: auto, cpu, cuda or cuda:N.
        gate: "nroi" or "none"; None for the method's own gate, if the run has regions.
        max_side: Larger photographs are reduced first, so that their longer side has this many
            pixels. None for that of the gate's regions, else 1024.
        crf: How masks are made, as flags of stage 3; None for the method's own way.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read, or has no gate and `gate` is "nroi".
    """
    path, where = Path(checkpoint), pick_device(device)
    method, config = restore(path)
    method.to(where).to(memory_format=torch.channels_last).eval()
    regions, views = gate_of(path, method, config, where, wanted=gate, max_side=max_side)
    settings = crf_settings(crf or CrfFlags(), method.recipe.post)
    masks = MaskMaker(max_side=views.max_side, **settings)
    return Predictor(method, config, where, views, regions, masks)


class Predictor:
    """A method with its weights, ready for photographs. Make one with `load`.

    Attributes:
        method: The method, on its device, in evaluation mode.
        class_names: The K foreground names.
        device: The device that computes.
        views: The sizes of the copies of a photograph.
        gate: The gate of the run; None for none.
    """

    def __init__(
        self,
        method: Method,
        config: Mapping[str, Any],
        device: torch.device,
        views: Views,
        gate: NroiGate | None,
        masks: MaskMaker,
    ) -> None:
        """Keep the parts that `load` made."""
        self.method, self.device, self.views, self.gate = method, device, views, gate
        self.class_names = tuple(config["class_names"])
        self._name, self._masks = config["method"], masks

    @overload
    def predict(self, image: Source, classes: Sequence[str] | None = ...) -> Prediction: ...
    @overload
    def predict(
        self, image: Sequence[Source], classes: Sequence[Sequence[str]] | None = ...
    ) -> list[Prediction]: ...
    def predict(self, image, classes=None, *, seed=None, cam=None):
        """Segment a photograph, or several.

        Args:
            image: A path, a PIL image, or an array (H, W, 3) uint8 in RGB. A list of these gives a
                list of results. If a path has the name of an image that the gate has regions of,
                its own regions are left out, as in stage 2.
            classes: Names of the classes that the photograph may have; of a list, one list of names
                per photograph. None lets the method choose (see `Prediction.given`).
            seed: Path of the photograph's seed, which `amn` and its kin read; of a list, one path
                per photograph.
            cam: Path of the photograph's CAM, which `irn` and its kin read; likewise.

        Raises:
            FileNotFoundError: The photograph, the seed or the CAM does not exist.
            ValueError: The photograph cannot be read, a class is unknown, or the method needs
                classes, a seed or a CAM that was not given.
        """
        if not isinstance(image, (list, tuple)):
            found = self.each([_request(image, classes, {"seed": seed, "cam": cam})])
            return next(found)
        for values, what in ((classes, "lists of classes"), (seed, "seeds"), (cam, "CAMs")):
            if values is not None and (isinstance(values, str) or len(values) != len(image)):
                raise ValueError(f"{values!r:.60} are no {what} for {len(image)} photographs")
        none = [None] * len(image)
        rows = zip(image, classes or none, seed or none, cam or none, strict=True)
        return list(self.each([_request(i, c, {"seed": s, "cam": m}) for i, c, s, m in rows]))

    def each(self, requests: Sequence[Request]) -> Iterator[Prediction]:
        """Yield the predictions of photographs, in their order, one photograph in memory at a time.

        The CRF of a photograph does not run beside the network on the next one: on two cores that
        took three times as long, because the network's threads wait for each other.

        Args:
            requests: The photographs.

        Raises:
            FileNotFoundError: As `predict`.
            ValueError: As `predict`.
        """
        for request in requests:
            maps, rest = self._maps(request)
            yield _prediction(self._masks.mask(maps.image, maps.rows), maps, rest)

    def _maps(self, request: Request) -> tuple[PhotographMaps, dict[str, Any]]:
        """Return the maps of a photograph, and what else its `Prediction` says."""
        photograph = as_photograph(request.image)
        whole = (photograph.height, photograph.width)
        image = reduced(photograph, self.views.max_side)
        chosen, scores = self._chosen(image, request)
        label = label_of(chosen, len(self.class_names))
        given = bool(request.classes)
        is_path = isinstance(request.image, (str, Path))
        maps = maps_of(
            self.method,
            image,
            whole=whole,
            image_id=region_id(Path(request.image), self.gate) if is_path else "",
            label=label if given or "label" in self.method.infer_inputs else None,
            previous=self._previous(request.files, whole, label),
            device=self.device,
            views=self.views,
            gate=self.gate,
            explained=request.explained,
        )
        return maps, {
            "scores": scores,
            "classes": tuple(self.class_names[index] for index in chosen),
            "given": given,
            "class_names": self.class_names,
        }

    def _chosen(self, image: Image.Image, request: Request) -> tuple[list[int], dict[str, float]]:
        """Return the classes of a photograph, 0-based, and the probability of each by name.

        Raises:
            ValueError: A class is unknown, or the method must be given the classes.
        """
        if isinstance(request.classes, str):
            raise ValueError(f"classes is a list of names, such as [{request.classes!r}]")
        given = chosen_classes(request.classes or (), list(self.class_names))
        if is_segmentation_network(self.method):
            return given or list(range(len(self.class_names))), {}
        found = None
        if not self.method.conditioned and not takes_previous_outputs(self.method.infer_inputs):
            found = likelihood(self.method, image, self.device)
        if found is None:
            if not given:
                raise ValueError(
                    f"method {self._name!r} does not tell the classes of a photograph: pass "
                    f"--classes, or classes=[...], of {', '.join(self.class_names)}"
                )
            return given, {}
        scores = dict(zip(self.class_names, found.tolist(), strict=True))
        if given or request.top is not None:
            return given or likeliest(found, request.top), scores
        return np.flatnonzero(found >= SURE).tolist() or likeliest(found, 1), scores

    def _previous(
        self, files: Mapping[str, Path], whole: tuple[int, int], label: np.ndarray
    ) -> dict[str, Tensor]:
        """Return the inputs of the method that come from files of previous stages.

        Args:
            files: As in `Request`.
            whole: (H, W) of the photograph.
            label: (K,) float32.

        Raises:
            ValueError: The method reads a file that was not given, or none of its kind.
        """
        found: dict[str, Tensor] = {}
        for key in INFERABLE:
            reads = key in self.method.infer_inputs
            if reads and key not in files:
                raise ValueError(f"method {self._name!r} reads the photograph's {key}: give {key}=")
            if not reads and key in files:
                raise ValueError(f"method {self._name!r} reads no {key}: leave out {key}=")
            if not reads:
                continue
            file = files[key]
            if not file.is_file():
                raise FileNotFoundError(f"{key} {file} does not exist")
            outputs = PreviousOutputs({key: file.parent})
            if self.method.whole_cams:
                outputs = outputs.whole([file.stem], label=lambda _: label)
                self.method.has_background = bool(outputs.with_background)
            found |= outputs.read(
                (key,),
                file.stem,
                whole=whole,
                size=self.views.seen_size(whole),
                label=lambda: label,
                num_classes=len(label),
            )
        return found


def _request(
    image: Source, classes: Sequence[str] | None, files: Mapping[str, str | Path | None]
) -> Request:
    """Return the request for a photograph; files that are None are left out."""
    there = {key: Path(file) for key, file in files.items() if file is not None}
    return Request(image, classes, files=there)


def _prediction(mask: np.ndarray, maps: PhotographMaps, rest: dict[str, Any]) -> Prediction:
    """Return the result of a photograph, with its mask (h, w) enlarged to its own size."""
    return Prediction(mask=resized(mask, maps.whole), maps=maps, **rest)
