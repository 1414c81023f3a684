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
from data.readable import ImageList, ListFlags, open_list
from network.contrast.gate import GateSettings, NroiGate, RegionCollector, sample_ids
from network.methods import Method
from network.weights.choice import NetworkFlags, network_from
from tool.cli import positive_int, run_stage
from tool.crf.flags import CrfFlags, crf_settings
from tool.crf.post import GATES
from tool.files import list_hash, locked
from tool.flags import flag, parse_flags
from tool.formats.cam import strided_size
from tool.formats.regions import REGIONS, differing_regions, load_regions, save_regions
from tool.infer.flags import RunFlags, ViewFlags
from tool.infer.multiscale import Refine, infer_images
from tool.infer.outputs import Outputs, Plan
from tool.infer.previous import PREVIOUS, PreviousFlags
from tool.infer.scales import Views
from tool.parallel import dist
from tool.parallel.machine import is_out_of_memory
from tool.provenance import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        out: Folder that receives the CAMs, one ID.npy per image.
        masks: Folder that receives masks, made in the same pass as stage 3 makes them. Give it
            without --out if you want no CAM files.
        cam_stride: Pixels per stored value. With 4 a file has a 16th of the size, and stages 3 and
            4 enlarge it.
        gate: With nroi, CAMs are kept as far as a cell is nearer to its class than to background
            regions of other images; a first pass over some training images collects them in
            nroi.npz. By default the method's: nroi for fbr and fbr_amn, none for the others.
    """

    out: Path | None = None
    masks: Path | None = None
    cam_stride: int = flag(1, type=positive_int, metavar="PIXELS")
    gate: str | None = flag(None, choices=GATES)
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
            work = prepare(command, device)
        with dist.all_or_none():
            if dist.is_main():
                work.outputs.claim(work.made_from)
                collect(command, work)
        with dist.all_or_none():
            infer(command, work, gate=work.load_gate())


@dataclasses.dataclass(frozen=True)
class Work:
    """What a command line stands for.

    Attributes:
        method: On the device, in evaluation mode.
        dataset: The images.
        outputs: The files.
        made_from: What the maps are made from.
        gate: Where the gate's regions come from; None without a gate.
        device: The device that computes.
    """

    method: Method
    dataset: InferDataset
    outputs: Outputs
    made_from: dict[str, Any]
    gate: GateSource | None
    device: torch.device

    def load_gate(self) -> NroiGate | None:
        """Return the gate, whose file exists by now."""
        if self.gate is None:
            return None
        regions = load_regions(self.gate.path, self.gate.made_from)
        return NroiGate(
            regions, self.device, seed=self.gate.seed, has_background=self.method.has_background
        )


@dataclasses.dataclass(frozen=True)
class GateSource:
    """Where the regions of the gate come from.

    Attributes:
        path: Their file.
        dataset: The sample of images that they are collected from.
        made_from: What the file says that it is made from.
        note: What the maps say of the gate.
        seed: Keys the k-means of each image.
    """

    path: Path
    dataset: InferDataset
    made_from: dict[str, Any]
    note: dict[str, Any]
    seed: int


def prepare(command: Command, device: torch.device) -> Work:
    """Build the method, the dataset, the outputs and the source of the gate."""
    catalog, images = open_list(command.data)
    method, config, made_from = network_from(
        command.network, catalog.class_names, report=dist.print_once
    )
    method.to(device).to(memory_format=torch.channels_last).eval()
    views = command.views.changed(method.recipe.views())
    outputs = Outputs(catalog, plan_from(command, method))
    inputs, previous = method.infer_inputs, command.previous.outputs()
    dataset = InferDataset(catalog, images.ids, views=views, inputs=inputs, previous=previous)
    made_from |= inference_note(command, method, views, config["method_config"])
    gate = None
    if gate_name(command, method) == "nroi":
        gate = gate_source(command, dataset, images, config, made_from)
        made_from["gate"] = gate.note
    return Work(method, dataset, outputs, made_from, gate, device)


def gate_name(command: Command, method: Method) -> str:
    """Return the gate of the flags, else the method's."""
    return command.gate or method.recipe.post.gate


def gate_source(
    command: Command,
    dataset: InferDataset,
    images: ImageList,
    config: dict[str, Any],
    made_from: dict[str, Any],
) -> GateSource:
    """Return where the gate's regions come from: a sample of the training list.

    The list is the one that is inferred if the checkpoint's list is not in the dataset. The file
    lies in the run directory. It lies in the output folder if the checkpoint is in no run
    directory, or if the run's file was made otherwise, such as at other scales.
    """
    catalog, seed = dataset.catalog, config.get("seed", 0)
    ids = images.ids
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        trained = catalog.ids(config["list"])
        if list_hash(trained) == config["list_sha256"] and trained != images.all_ids:
            ids = trained
    label = catalog.label if dataset.with_label else None
    sample = sample_ids(ids, label, seed=seed)
    about = {"sample_sha256": list_hash(sample), "settings": dataclasses.asdict(GateSettings())}
    made_from = made_from | about | {"class_names": list(catalog.class_names)}
    path = (command.out or command.masks or Path()) / REGIONS
    checkpoint = command.network.checkpoint
    if checkpoint is not None and (checkpoint.parent / "config.json").is_file():
        of_run = checkpoint.parent / REGIONS
        differ = set(differing_regions(of_run, made_from)) if of_run.is_file() else set()
        if not differ or differ & {"checkpoint_sha256", "class_names"}:
            path = of_run
    views, inputs, previous = dataset.views, dataset.inputs, dataset.previous
    chosen = InferDataset(catalog, sample, views=views, inputs=inputs, previous=previous)
    return GateSource(path, chosen, made_from, about, seed)


def collect(command: Command, work: Work) -> None:
    """Collect the regions of the gate, if there are none."""
    gate = work.gate
    if gate is None or gate.path.is_file():
        return
    has_background = work.method.has_background
    collector = RegionCollector(
        work.method.num_classes, seed=gate.seed, has_background=has_background
    )
    every = range(len(gate.dataset))
    for _ in inferred(command, work, gate.dataset, every, collector, what="regions"):
        pass
    save_regions(gate.path, collector.regions(), gate.made_from)


def plan_from(command: Command, method: Method) -> Plan:
    """Return what is written where; how masks are made is the method's, if no flag says so."""
    return Plan(
        maps=method.maps,
        has_background=method.has_background,
        post=dataclasses.replace(method.recipe.post, gate=gate_name(command, method)),
        map_dir=command.out,
        mask_dir=command.masks,
        map_stride=command.cam_stride,
        crf=crf_settings(command.crf, method.recipe.post) if command.masks else {},
        crf_workers=command.run.crf_workers,
    )


def inference_note(
    command: Command, method: Method, views: Views, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what the maps are made from, for the note in their folder.

    Args:
        command: The command.
        method: The method.
        views: The sizes of the copies of each image.
        options: The method's hyper-parameters.
    """
    made_from = views.note()
    for key, folder in command.previous.outputs().folders.items():
        if key in method.infer_inputs:
            made_from[f"{key}s"] = fingerprint(folder)
    if command.network.background:
        made_from["background"] = command.network.background
    if command.network.set:
        names = sorted(one.partition("=")[0] for one in command.network.set)
        made_from["options"] = {name: options[name] for name in names}
    return made_from


def infer(command: Command, work: Work, *, gate: NroiGate | None) -> None:
    """Infer the images of this rank's share that are not done."""
    ids, outputs = work.dataset.ids, work.outputs
    mine = dist.share(range(len(ids)))
    remaining = [index for index in mine if not outputs.are_whole(ids[index])]
    print(
        f"{len(mine) - len(remaining)} of {len(mine)} images are done, {len(remaining)} to go",
        flush=True,
    )
    with outputs:
        for sample, maps in inferred(command, work, work.dataset, remaining, gate):
            outputs.put(sample["image_id"], sample.get("label"), maps)


def inferred(
    command: Command,
    work: Work,
    dataset: InferDataset,
    indices: Sequence[int],
    refine: Refine | None,
    *,
    what: str | None = None,
) -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Yield the sample and the maps of images of a dataset.

    Args:
        command: The command.
        work: The method and the device.
        dataset: The images.
        indices: Which of them.
        refine: See `infer_images`.
        what: Name of the progress bar.
    """
    batch_size = command.run.batch_size or (8 if work.device.type == "cuda" else 1)
    batches = dataset.batches(indices, batch_size)
    loader = infer_loader(dataset, batches=batches, num_workers=command.run.num_workers)
    bar = tqdm(total=len(indices), desc=what, disable=not dist.is_main(), mininterval=1.0)
    with bar, contextlib.closing(dist.until_a_rank_fails(loader)) as loaded:
        for samples in loaded:
            with named_if_too_large(samples):
                merged = infer_images(
                    work.method,
                    samples,
                    size=strided_size(samples[0]["size"], command.cam_stride),
                    device=work.device,
                    amp=command.run.amp,
                    mirror=dataset.views.mirror,
                    refine=refine,
                )
            yield from zip(samples, merged, strict=True)
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
