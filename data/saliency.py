"""Make saliency maps for the images of a list with a network of the U2-Net family.

By default it is U2-Netp, which comes from the Python package index. The command needs
`pip install onnxruntime`. If it is stopped and started again, it goes on where it was.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import argparse
import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.catalog import Catalog
from data.files import all_found
from data.readable import ListFlags, open_list
from tool.bar import counted
from tool.cli import run_stage
from tool.download import fetch
from tool.files import atomic_path, file_hash
from tool.flags import flag, parse_flags
from tool.formats.image import IMAGENET_MEAN, IMAGENET_STD, decode
from tool.formats.mask import is_whole
from tool.parallel.processes import cores, map_processes
from tool.provenance import PHOTOGRAPHS, check_photographs, claim
from tool.ranges import SOME_WORKERS

NETWORKS = ("u2netp", "u2net")  # names of tool.download
_MEAN, _STD = np.array([IMAGENET_MEAN, IMAGENET_STD], np.float32)
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SIDE = 320  # of U2-Net's input, if the file does not fix it


def shard(text: str) -> tuple[int, int]:
    """Parse `I/N` to (I, N), as an `argparse` type.

    Raises:
        ArgumentTypeError: The text is not I/N with I below N.
    """
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I below N")
    return int(index), int(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        model: Network that makes the maps: u2netp (4.6 MB) or u2net (168 MB), fetched once, or an
            ONNX file of that family.
        out: Folder that receives one ID.png per image. By default the dataset's own.
        if_missing: Do nothing if every image has a map there already, whoever made it.
        shard: Make share I of N, counted from 0, if several machines divide the list. By default
            all.
        workers: Processes. Each holds the network, about 1 GB.
    """

    data: ListFlags
    model: str = flag(NETWORKS[0], metavar="|".join((*NETWORKS, "FILE")))
    out: Path | None = None
    if_missing: bool = False
    shard: tuple[int, int] | None = flag(None, type=shard, nargs=None, metavar="I/N")
    workers: int = flag(cores, type=SOME_WORKERS, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the missing maps."""
    command = parse_flags(
        Command, argv, example="--root my-photos --list train", defaults={"dataset": "folder"}
    )
    if command.if_missing and all_there(command):
        return
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("data.saliency needs onnxruntime: pip install onnxruntime")
    catalog, images = open_list(command.data)
    out = command.out or catalog.saliency_root
    model = fetch.get(command.model) if command.model in NETWORKS else Path(command.model)
    if not model.is_file():
        raise FileNotFoundError(f"--model {model} is no file, nor one of {', '.join(NETWORKS)}")
    saliency_of(open_model(model), Image.new("RGB", (64, 64)))  # fail before anything is claimed
    share, parts = command.shard or (0, 1)
    ids = images.ids[share::parts]
    claim(out, {"model_sha256": file_hash(model)})
    remove_stale(catalog, out, ids)
    work = SaliencyWriter(catalog, out, model)
    done = map_processes(work, ids, workers=command.workers)
    written = sum(counted(done, len(ids), "saliency", unit="image"))
    print(f"{out}: {written} maps written, {len(ids) - written} were there")


def remove_stale(catalog: Catalog, out: Path, image_ids: Sequence[str]) -> None:
    """Remove the maps of images whose photograph has changed; see `check_photographs`."""
    paths = {image_id: catalog.image_path(image_id) for image_id in image_ids}
    check_photographs(out, paths, lambda image_id: [out / f"{image_id}.png"])


def all_there(command: Command) -> bool:
    """Return whether every image has a map, and say so.

    Maps that this command made of photographs that have changed are removed first.
    """
    catalog, images = open_list(command.data)
    if command.out is not None:
        catalog = dataclasses.replace(catalog, saliency_folder=command.out)
    if (catalog.saliency_root / PHOTOGRAPHS).exists():
        remove_stale(catalog, catalog.saliency_root, images.ids)
    try:
        all_found(images.ids, catalog.saliency_path)
    except FileNotFoundError:
        return False
    print(f"{catalog.saliency_root}: all {len(images.ids)} maps are there")
    return True


@functools.cache
def open_model(path: Path) -> Any:
    """Return the onnxruntime session of a file; each process has one, with one thread.

    Raises:
        ValueError: The file is no ONNX model that can run, or does not take a single RGB image.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except runtime_errors() as error:
        raise ValueError(f"{path} is not an ONNX model that can run here: {error}") from error
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    named = len(shape) == 4 and all(isinstance(side, int) for side in shape[:2])
    if len(shape) != 4 or (named and shape[:2] != [1, 3]) or inputs[0].type not in _TYPES:
        raise ValueError(f"{path} does not take one RGB image of floats: it is no U2-Net")
    return session


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of onnxruntime, whose classes have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [item for item in vars(state).values() if isinstance(item, type)]
    return tuple(item for item in found if issubclass(item, Exception))


def saliency_of(session: Any, image: Image.Image) -> np.ndarray:
    """Compute the saliency map of an image.

    Args:
        session: From `open_model`.
        image: RGB.

    Returns:
        (H, W) uint8: the model's first output, stretched to 0..255; all 0 if it is constant.

    Raises:
        ValueError: The model fails, or its first output is no map.
    """
    # The image at the model's size, over its maximum and normalised.
    node = session.get_inputs()[0]
    height, width = (side if isinstance(side, int) else _SIDE for side in node.shape[2:])
    small = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    small = (small / max(float(small.max()), 1e-6) - _MEAN) / _STD
    pixels = small.transpose(2, 0, 1)[None].astype(_TYPES[node.type])
    try:
        output = session.run(None, {node.name: pixels})[0]
    except runtime_errors() as error:
        raise ValueError(f"the model cannot run on {pixels.shape}: {error}") from error
    output = output.astype(np.float32)
    if output.ndim != 4 or output.shape[:2] != (1, 1) or not np.isfinite(output).all():
        raise ValueError(f"the model gives {output.shape}, not one finite map: it is no U2-Net")
    # Its map, stretched and at the image's size.
    low, high = float(output.min()), float(output.max())
    scaled = (output[0, 0] - low) * (255 / (high - low) if high > low else 0.0)
    full = Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(full).round().astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class SaliencyWriter:
    """A writer of one saliency map per image; it can be sent to another process.

    Attributes:
        catalog: Of the dataset.
        out: Folder of the maps.
        model: ONNX file.
    """

    catalog: Catalog
    out: Path
    model: Path

    def __call__(self, image_id: str) -> bool:
        """Write the map of an image unless a whole one is there; return whether it was written."""
        path = self.out / f"{image_id}.png"
        size = self.catalog.image_size(image_id)[::-1]
        if is_whole(path, size, read=lambda path: np.asarray(decode(path, "L"))):
            return False
        saliency = saliency_of(open_model(self.model), self.catalog.read_image(image_id))
        with atomic_path(path) as temporary:
            Image.fromarray(saliency).save(temporary, format="PNG")
        return True


if __name__ == "__main__":
    run_stage(main)
