"""A trained network that segments photographs: load it once, then call it.

    from network.predict.predictor import load

    predictor = load("out/toy-fbr-seed0/checkpoint.pth")
    found = predictor.predict("photo.jpg", classes=["cat"])
    found.mask  # (H, W) uint8

A mask is the one that stages 2 and 3 make: the same copies of the image, gate, CRF and threshold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from network.contrast.gate import NroiGate
from network.methods import Method
from network.predict.choose import (
    chosen_classes,
    gate_of,
    is_segmentation_network,
    label_of,
    likeliest,
    likelihood,
)
from network.weights.restore import restore
from tool.crf.flags import CrfFlags, crf_settings
from tool.crf.stage import PostProcess
from tool.formats.cam import Cam, as_stored
from tool.formats.image import decode, reduced
from tool.formats.mask import resized
from tool.infer.multiscale import infer_images, present_rows
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views
from tool.parallel.dist import pick_device
from tool.parallel.processes import Pool, default_workers

SURE = 0.5  # probability from which on `classify` is sure of a class
Source = str | Path | Image.Image | np.ndarray
_FEW = 4  # photographs that do not pay for processes of their own


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found in one photograph of H x W pixels.

    Attributes:
        mask: (H, W) uint8: 0 background, then 1 + the index in `class_names`.
        cams: {class name: (h, w) float32 in [0, 1]}, the maps that the mask is made of, in the
            order of the classes; "background" if the method has a map for it. They have the size
            that the network saw, which is the photograph's if that is not too large.
        scores: {class name: probability} of the image as a whole; {} if the method does not
            classify.
        classes: Names of the classes that the mask may have.
        given: Whether the caller named these classes. Otherwise they are those of which the method
            is sure (a probability of at least `SURE`, or the likeliest one), or all classes of a
            segmentation network.
        class_names: The K foreground names of the network.
    """

    mask: np.ndarray
    cams: dict[str, np.ndarray]
    scores: dict[str, float]
    classes: tuple[str, ...]
    given: bool
    class_names: tuple[str, ...]


def load(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    gate: str | None = None,
    max_side: int | None = None,
) -> Predictor:
    """Load a checkpoint.

    Args:
        checkpoint: The `checkpoint.pth` of a run, or what `network.export` wrote.
        device: auto, cpu, cuda or cuda:N.
        gate: "nroi" or "none"; None for the method's own gate, if the run has regions.
        max_side: Larger photographs are reduced first, so that their longer side has this many
            pixels. None for that of the gate's regions, else 1024.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read, or has no gate and `gate` is "nroi".
    """
    path, where = Path(checkpoint), pick_device(device)
    method, config = restore(path)
    method.to(where).to(memory_format=torch.channels_last).eval()
    regions, views = gate_of(path, method, config, where, wanted=gate, max_side=max_side)
    return Predictor(method, config, where, views, regions)


class Predictor:
    """A method with its weights, ready for photographs. Make one with `load`.

    Attributes:
        method: The method, on its device, in evaluation mode.
        class_names: The K foreground names.
    """

    def __init__(
        self,
        method: Method,
        config: Mapping[str, Any],
        device: torch.device,
        views: Views,
        gate: NroiGate | None,
    ) -> None:
        """Keep the parts that `load` made."""
        self.method, self.device, self._views, self._gate = method, device, views, gate
        self.class_names = tuple(config["class_names"])
        self._name = config["method"]
        settings = crf_settings(CrfFlags(), method.recipe.post)
        unused: Any = None  # images come from memory
        self._post = PostProcess(unused, Path(), Path(), max_side=views.max_side, **settings)

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
                list of results, whose CRFs run in processes of their own. If a path has the name of
                an image that the gate has regions of, its own regions are left out, as in stage 2.
            classes: Names of the classes that are in the photograph; of a list, one list of names
                per photograph. None lets the method choose (see `Prediction.given`).
            seed: Path of the photograph's seed, which `amn` and its kin read.
            cam: Path of the photograph's CAM, which `irn` and its kin read.

        Raises:
            FileNotFoundError: The photograph, the seed or the CAM does not exist.
            ValueError: The photograph cannot be read, a class is unknown, or the method needs
                classes, a seed or a CAM that was not given.
        """
        if not isinstance(image, (list, tuple)):
            maps = self._maps(image, classes, {"seed": seed, "cam": cam})
            return maps.prediction(self._mask(maps))
        if seed is not None or cam is not None:
            raise ValueError("seed and cam are files of one photograph: give one photograph")
        if classes is not None and len(classes) != len(image):
            raise ValueError(f"{len(classes)} lists of classes for {len(image)} photographs")
        named = classes or [None] * len(image)
        return self._many([(one, names, {}) for one, names in zip(image, named, strict=True)])

    def _many(self, calls: Sequence[tuple[Source, Any, dict[str, Any]]]) -> list[Prediction]:
        """Return the predictions of several photographs; the CRF of one runs beside the next."""
        if len(calls) < _FEW or self._post.device != "cpu":
            found = (self._maps(*call) for call in calls)
            return [maps.prediction(self._mask(maps)) for maps in found]
        with Pool(default_workers(), self._post.mask) as pool:
            waiting = []
            for call in calls:
                maps = self._maps(*call)
                waiting.append((maps, pool.submit(maps.image, maps.rows)))
            return [maps.prediction(mask.result()) for maps, mask in waiting]

    def _mask(self, maps: _Maps) -> np.ndarray:
        """Return the mask (h, w) uint8 of a photograph, as stage 3 makes it."""
        return self._post.mask(maps.image, maps.rows)

    def _maps(
        self, source: Source, classes: Sequence[str] | None, files: Mapping[str, str | None]
    ) -> _Maps:
        """Return the maps of a photograph, as stage 2 makes them."""
        photograph = as_photograph(source)
        image = reduced(photograph, self._views.max_side)
        whole, size = (photograph.height, photograph.width), (image.height, image.width)
        chosen, scores = self._chosen(image, classes)
        label = label_of(chosen, len(self.class_names))
        # The gate leaves out what it collected of this very image, which it knows by its id.
        name = Path(source).stem if isinstance(source, (str, Path)) else ""
        sample: dict[str, Any] = {"image_id": name, "size": size}
        sample["images"] = self._views.of(image)
        if "label" in self.method.infer_inputs:
            sample["label"] = torch.from_numpy(label)
        sample |= self._previous(files, whole, size, label)
        maps = infer_images(
            self.method,
            [sample],
            device=self.device,
            mirror=self._views.mirror,
            refine=self._gate,
        )[0][self.method.maps[0]]
        present = torch.from_numpy(label) if "label" in sample else None
        rows = as_stored(present_rows(maps, present, has_background=self.method.has_background))
        return _Maps(
            np.asarray(image),
            rows,
            whole,
            scores,
            tuple(self.class_names[index] for index in chosen),
            bool(classes),
            self.class_names,
        )

    def _chosen(
        self, image: Image.Image, classes: Sequence[str] | None
    ) -> tuple[list[int], dict[str, float]]:
        """Return the classes of a photograph, 0-based, and the probability of each by name.

        Raises:
            ValueError: A class is unknown, or the method must be given the classes.
        """
        if isinstance(classes, str):
            raise ValueError(f"classes is a list of names, such as [{classes!r}]")
        given = chosen_classes(classes or (), list(self.class_names))
        if is_segmentation_network(self.method):
            return given or list(range(len(self.class_names))), {}
        found = None if self.method.conditioned else likelihood(self.method, image, self.device)
        if found is None:
            if not given:
                raise ValueError(
                    f"method {self._name!r} does not tell the classes of a photograph: give "
                    f"classes, of {', '.join(self.class_names)}"
                )
            return given, {}
        scores = dict(zip(self.class_names, found.tolist(), strict=True))
        sure = np.flatnonzero(found >= SURE).tolist() or likeliest(found, 1)
        return given or sure, scores

    def _previous(
        self,
        files: Mapping[str, str | None],
        whole: tuple[int, int],
        size: tuple[int, int],
        label: np.ndarray,
    ) -> dict[str, torch.Tensor]:
        """Return the inputs of the method that come from files of previous stages.

        Raises:
            ValueError: The method reads a file that was not given, or none of its kind.
        """
        found: dict[str, torch.Tensor] = {}
        for key in ("seed", "cam"):
            path = files.get(key)
            reads = key in self.method.infer_inputs
            if path is None and not reads:
                continue
            if path is None:
                raise ValueError(f"method {self._name!r} reads the photograph's {key}: give {key}=")
            if not reads:
                raise ValueError(f"method {self._name!r} reads no {key}: leave out {key}=")
            file = Path(path)
            outputs = PreviousOutputs({key: file.parent})
            if self.method.whole_cams:
                outputs = outputs.whole([file.stem], label=lambda _: label)
            found |= outputs.read(
                (key,),
                file.stem,
                whole=whole,
                size=size,
                label=lambda: label,
                num_classes=len(label),
            )
        return found


@dataclasses.dataclass(frozen=True)
class _Maps:
    """The maps of a photograph before its CRF.

    Attributes:
        image: (h, w, 3) uint8, the photograph as the network saw it.
        rows: The CAM, of that size.
        whole: (H, W) of the photograph.
        scores: As in `Prediction`, and so are the others.
    """

    image: np.ndarray
    rows: Cam
    whole: tuple[int, int]
    scores: dict[str, float]
    classes: tuple[str, ...]
    given: bool
    class_names: tuple[str, ...]

    def prediction(self, mask: np.ndarray) -> Prediction:
        """Return the result, with a mask (h, w) enlarged to the photograph."""
        names = ("background", *self.class_names)
        cams = {names[i]: one for i, one in zip(self.rows.class_index, self.rows.cam, strict=True)}
        return Prediction(
            resized(mask, self.whole), cams, self.scores, self.classes, self.given, self.class_names
        )


def as_photograph(source: Source) -> Image.Image:
    """Return a photograph as an RGB image, upright.

    Args:
        source: A path, a PIL image, or an array (H, W, 3) uint8 in RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or the array has another shape or type.
        TypeError: The source is something else.
    """
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise FileNotFoundError(f"photograph {source} does not exist")
        return decode(Path(source), "RGB", upright=True)
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if not isinstance(source, np.ndarray):
        raise TypeError(f"a photograph is a path, a PIL image or an array, not {type(source)}")
    if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
        raise ValueError(f"a photograph is (H, W, 3) uint8, not {source.shape} {source.dtype}")
    return Image.fromarray(source)
