"""Stage 2: a checkpoint -> one CAM file or mask per image. A restart skips finished images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.dataset import InferDataset
from data.loader import infer_loader
from data.readable import ListFlags, open_list
from network.methods import Method, method_names
from network.recipe import Recipe
from network.weights.channel_order import PLACES
from network.weights.restore import restore
from tool.cli import DEVICES, positive_int, run_stage
from tool.crf.flags import CrfFlags, crf_settings
from tool.files import file_hash, locked
from tool.flags import flag, parse_flags
from tool.formats.cam import strided_size
from tool.infer.multiscale import infer_images
from tool.infer.outputs import Outputs, Plan
from tool.infer.previous import PREVIOUS, PreviousFlags
from tool.infer.scales import Views
from tool.parallel import dist
from tool.parallel.machine import is_out_of_memory, spare_cores
from tool.parallel.processes import default_workers
from tool.provenance import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """The flags of the network.

    Attributes:
        checkpoint: File with the weights: a checkpoint.pth of train_fbr.py, a .safetensors of
            network.export, or a .pth of the released code or its kin, which needs --method and
            --backbone.
        method: Refuse a checkpoint of another method. A file of other code does not say its method,
            so give it here.
        backbone: Refuse a checkpoint of another backbone. A file of other code does not say its
            backbone, so give it here.
        background: Position of the background map in a foreign classifier, if the file does not
            show it: first (SEAM, PPC), last (EPS) or none (PSA).
        set: Change hyper-parameters that only inference uses, such as the exponent of IRN's walk
            (beta=5). Those of training stay as they were.
    """

    checkpoint: Path
    method: str | None = flag(None, choices=method_names)
    backbone: str | None = None
    background: str | None = flag(None, choices=PLACES)
    set: list[str] = flag(list, action="extend", metavar="NAME=VALUE", renamed="--option")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewFlags:
    """The flags of the copies of an image that pass through the network.

    Attributes:
        scales: Factors on an image's size, whose maps are summed. By default the recipe's; fewer
            and smaller ones are faster.
        sides: Sides of squares that an image is resized to, in place of --scales. Networks of one
            input size need them.
        mirror: Infer the mirror of each image too, which takes twice the time. By default as the
            recipe says.
    """

    scales: tuple[float, ...] | None = flag(None, exclusive="size", metavar="FACTOR")
    sides: tuple[int, ...] | None = flag(
        None, exclusive="size", type=positive_int, metavar="PIXELS"
    )
    mirror: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags that say where and how to run.

    Attributes:
        batch_size: Images of one size that are computed together. By default 8 on a GPU and 1 on a
            CPU; give fewer if memory is short.
        num_workers: Processes that decode images in advance. With 0 the main process does.
        crf_workers: CRF processes per rank, for --masks.
        device: Where to compute. With auto it is a GPU if there is one.
        amp: Compute in bf16, which is faster on a GPU.
    """

    batch_size: int | None = flag(None, type=positive_int, metavar="IMAGES")
    num_workers: int = flag(spare_cores, metavar="N")
    crf_workers: int = flag(default_workers, type=positive_int, metavar="N")
    device: str = flag("auto", choices=DEVICES)
    amp: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        out: Folder that receives the CAMs, one ID.npy per image.
        masks: Folder that receives masks, made in the same pass as stage 3 makes them. Give it
            without --out if you want no CAM files.
        cam_stride: Pixels per stored value. With 4 a file has a 16th of the size, and stages 3 and
            4 enlarge it.
    """

    out: Path | None = None
    masks: Path | None = None
    cam_stride: int = flag(1, type=positive_int, metavar="PIXELS")
    data: ListFlags
    network: NetworkFlags
    previous: PreviousFlags = flag(title=PREVIOUS)
    views: ViewFlags = flag(title="scales")
    crf: CrfFlags = flag(title="masks")
    run: RunFlags

    def __post_init__(self) -> None:
        if self.out is None and self.masks is None:
            raise ValueError("--out for CAMs, --masks for masks, or both")
        if self.cam_stride > 32:
            raise ValueError("--cam-stride is at most 32")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the CAMs, or the masks, of a list."""
    command = parse(argv)
    device = dist.pick_device(command.run.device)
    with dist.ranks(device), contextlib.ExitStack() as held:
        with dist.all_or_none():
            if dist.is_main():
                for folder in filter(None, (command.out, command.masks)):
                    held.enter_context(locked(folder))
            method, dataset, outputs = prepare(command, device)
        with dist.all_or_none():
            infer(command, device, method, dataset, outputs)


def prepare(command: Command, device: torch.device) -> tuple[Method, InferDataset, Outputs]:
    """Build the method, the dataset and the outputs, and claim the folders."""
    catalog, images = open_list(command.data)
    method, config = restore(
        command.network.checkpoint,
        method=command.network.method,
        backbone=command.network.backbone,
        class_names=catalog.class_names,
        options=command.network.set,
        background=command.network.background,
        report=dist.print_once,
    )
    method.to(device).to(memory_format=torch.channels_last).eval()
    views = views_from(command.views, method.recipe)
    outputs = Outputs(catalog, plan_from(command, method))
    inputs, previous = method.infer_inputs, command.previous.outputs()
    dataset = InferDataset(catalog, images.ids, views=views, inputs=inputs, previous=previous)
    if dist.is_main():
        outputs.claim(origin_of(command, method, views, config["method_config"]))
    return method, dataset, outputs


def views_from(given: ViewFlags, recipe: Recipe) -> Views:
    """Return the copies of each image: those of the flags, else the recipe's."""
    views = recipe.views()
    if given.scales or given.sides:
        views = Views(given.scales or (), given.sides)
    mirror = recipe.mirror if given.mirror is None else given.mirror
    return dataclasses.replace(views, mirror=mirror)


def plan_from(command: Command, method: Method) -> Plan:
    """Return what is written where; how masks are made is the method's, if no flag says so."""
    return Plan(
        maps=method.maps,
        has_background=method.has_background,
        post=method.recipe.post,
        map_dir=command.out,
        mask_dir=command.masks,
        map_stride=command.cam_stride,
        crf=crf_settings(command.crf, method.recipe.post) if command.masks else {},
        crf_workers=command.run.crf_workers,
    )


def origin_of(
    command: Command, method: Method, views: Views, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what the maps are made from, for the note in their folder.

    Args:
        command: The command.
        method: The method.
        views: The sizes of the copies of each image.
        options: The method's hyper-parameters.
    """
    made_from: dict[str, Any] = {
        "checkpoint_sha256": file_hash(command.network.checkpoint)
    } | views.note()
    for key, folder in command.previous.outputs().folders.items():
        if key in method.infer_inputs:
            made_from[f"{key}s"] = fingerprint(folder)
    if command.network.background:
        made_from["background"] = command.network.background
    if command.network.set:
        names = sorted(one.partition("=")[0] for one in command.network.set)
        made_from["options"] = {name: options[name] for name in names}
    return made_from


def infer(
    command: Command,
    device: torch.device,
    method: Method,
    dataset: InferDataset,
    outputs: Outputs,
) -> None:
    """Infer the images of this rank's share that are not done."""
    ids = dataset.ids
    mine = dist.share(range(len(ids)))
    remaining = [index for index in mine if not outputs.are_whole(ids[index])]
    print(
        f"{len(mine) - len(remaining)} of {len(mine)} images are done, {len(remaining)} to go",
        flush=True,
    )
    batch_size = command.run.batch_size or (8 if device.type == "cuda" else 1)
    batches = dataset.batches(remaining, batch_size)
    loader = infer_loader(dataset, batches=batches, num_workers=command.run.num_workers)
    bar = tqdm(total=len(remaining), disable=not dist.is_main(), mininterval=1.0)
    with outputs, bar, contextlib.closing(dist.until_a_rank_fails(loader)) as loaded:
        for samples in loaded:
            size = strided_size(samples[0]["size"], command.cam_stride)
            with named_if_too_large(samples):
                merged = infer_images(
                    method,
                    samples,
                    size=size,
                    device=device,
                    amp=command.run.amp,
                    mirror=dataset.views.mirror,
                )
            for sample, maps in zip(samples, merged, strict=True):
                outputs.put(sample["image_id"], sample.get("label"), maps)
            bar.update(len(samples))


@contextlib.contextmanager
def named_if_too_large(samples: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Turn a lack of memory inside into a `ValueError` that names the images and what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        names = ", ".join(str(sample["image_id"]) for sample in samples[:3])
        height, width = samples[0]["size"]
        raise ValueError(
            f"too little memory for {len(samples)} images of {width}x{height} at once ({names}): "
            "give fewer or smaller --scales or --sides, a smaller --batch-size, or a smaller copy "
            "of the image"
        ) from error


def parse(argv: Sequence[str] | None) -> Command:
    """Return what the command line says."""
    run = "out/toy-fbr-seed0"
    return parse_flags(Command, argv, example=f"--checkpoint {run}/checkpoint.pth --out {run}/cam")


if __name__ == "__main__":
    run_stage(main)
