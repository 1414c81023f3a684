"""Stage 2: a checkpoint -> one CAM file or mask per image. A restart skips finished images."""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.dataset import InferDataset
from data.identity import source_hashes
from data.loader import infer_loader
from data.readable import ListFlags, bad_images, open_list
from data.regions import RegionSource, region_source
from network.contrast.gate import NroiGate, RegionCollector
from network.contrast.gate_steps import GateSettings
from network.methods import Method
from network.weights.choice import NetworkFlags, network_from
from tool.bar import Bar
from tool.cli import run_stage
from tool.crf.flags import CrfFlags, crf_settings
from tool.crf.post import GATES
from tool.files import locked
from tool.flags import flag, parse_flags
from tool.formats.regions import load_regions, save_regions
from tool.infer.flags import OutputFlags, RunFlags, ViewFlags
from tool.infer.kinds import PREVIOUS
from tool.infer.multiscale import Refine, infer_images
from tool.infer.outputs import Outputs, Plan, keeping_plain
from tool.infer.previous import PreviousFlags
from tool.infer.scales import Views
from tool.limits import is_out_of_memory
from tool.parallel import dist
from tool.parallel.device import pick_device
from tool.provenance import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        gate: With nroi, CAMs are kept as far as a cell is nearer to its class than to background
            regions of other images; a first pass over some training images collects them in
            nroi.npz. By default the method's: nroi for fbr and fbr_amn, none for the others.
        keep_plain: Write the CAMs as they are before the gate too, to plain/ in the folder of
            --out, from the same pass.
    """

    output: OutputFlags
    gate: str | None = flag(None, choices=GATES)
    keep_plain: bool = False
    data: ListFlags
    network: NetworkFlags
    previous: PreviousFlags = flag(title=PREVIOUS)
    views: ViewFlags = flag(title="scales")
    crf: CrfFlags = flag(title="masks")
    run: RunFlags

    def __post_init__(self) -> None:
        self.crf.refuse_unused()
        if self.keep_plain and (self.output.out is None or self.gate == "none"):
            raise ValueError("--keep-plain is for --out with the gate")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the CAMs or masks of an image list; under torchrun each rank infers its share."""
    command = parse(argv)
    device = pick_device(command.run.device)
    with dist.ranks(device), contextlib.ExitStack() as held:
        with dist.all_or_none():
            if dist.is_main():
                for folder in command.output.folders():
                    held.enter_context(locked(folder))
            work = prepare(command, device)
        with dist.all_or_none():
            if dist.is_main():
                work.outputs.claim(work.made_from, work.dataset.ids, source_hashes(work.dataset))
                collect(command, work)
        with dist.all_or_none():
            infer(command, work, gate=work.load_gate())


@dataclasses.dataclass(frozen=True)
class Work:
    """The objects that a command line describes.

    Attributes:
        method: The method with its weights, on `device`, in evaluation mode.
        dataset: The images to infer.
        outputs: The files to write.
        made_from: The note of the provenance of the maps, which `outputs` stores.
        gate: The source of the gate's regions; None without a gate.
        device: The device that computes.
    """

    method: Method
    dataset: InferDataset
    outputs: Outputs
    made_from: dict[str, Any]
    gate: RegionSource | None
    device: torch.device

    def load_gate(self) -> NroiGate | None:
        """Read the regions of the gate that `collect` has made; return None without a gate."""
        if self.gate is None:
            return None
        regions, _ = load_regions(self.gate.path, self.gate.made_from)
        return NroiGate(
            regions, self.device, seed=self.gate.seed, has_background=self.method.has_background
        )


def prepare(command: Command, device: torch.device) -> Work:
    """Build the method, the dataset, the outputs and the source of the gate's regions.

    Raises:
        FileNotFoundError: The checkpoint, the list or a file of a previous stage does not exist.
        ValueError: The checkpoint is invalid, or a flag does not fit the method.
    """
    catalog, images = open_list(command.data)
    method, config, made_from = network_from(
        command.network, catalog.class_names, report=dist.print_once
    )
    method.to(device).to(memory_format=torch.channels_last).eval()
    previous = command.previous.outputs()
    previous.warn_of_unread(method.infer_inputs)
    if method.whole_cams:
        previous.require(method.infer_inputs, images.ids)
        previous = previous.whole(images.ids, label=catalog.label)
        method.has_background = bool(previous.with_background)
    if command.crf.threshold is not None and method.has_background and dist.is_main():
        print(
            "warning: --threshold has no effect: the maps of this method have a background row, "
            "and the best row wins",
            file=sys.stderr,
        )
    views = method.inference_views(command.views, max_side=catalog.layout.max_side)
    outputs = Outputs(catalog, plan_from(command, method, views))
    inputs = method.infer_inputs
    if command.output.with_labels:
        if "label" in inputs:
            raise ValueError("--with-labels: this method reads the labels in any case")
        inputs = (*inputs, "label")
    dataset = InferDataset(catalog, images.ids, views=views, inputs=inputs, previous=previous)
    made_from |= inference_note(command, method, views, config["method_config"])
    gate = None
    if command.keep_plain and gate_name(command, method) == "none":
        raise ValueError("--keep-plain: this method has no gate by default, pass --gate nroi")
    if gate_name(command, method) == "nroi":
        facts = made_from | {"settings": dataclasses.asdict(GateSettings())}
        gate = region_source(
            dataset,
            images,
            config,
            facts,
            checkpoint=command.network.checkpoint,
            folder=command.output.folders()[0],
            report=dist.print_once,
        )
        made_from["gate"] = gate.note()
    return Work(method, dataset, outputs, made_from, gate, device)


def gate_name(command: Command, method: Method) -> str:
    """Return the gate of the flags, else the method's."""
    return command.gate or method.recipe.post.gate


def collect(command: Command, work: Work) -> None:
    """Collect the regions of the gate, unless their file exists, and print their source."""
    source = work.gate
    if source is None:
        return
    if source.sample is None or source.path.is_file():
        print(f"gate: the regions in {source.path}", flush=True)
        return
    sample = source.sample
    bad = bad_images(sample.catalog, sample.ids) if command.data.skip_bad_images else {}
    indices = [number for number, image_id in enumerate(sample.ids) if image_id not in bad]
    print(f"gate: regions of {len(indices)} images of {source.of}", flush=True)
    collector = RegionCollector(
        work.method.num_classes, seed=source.seed, has_background=work.method.has_background
    )
    for _ in inferred(command, work, sample, indices, collector, what="regions", stride=1):
        pass
    save_regions(source.path, collector.regions(sample.ids), source.made_from)


def plan_from(command: Command, method: Method, views: Views) -> Plan:
    """Return the plan of the files to write. The method's recipe fills in what no flag gives."""
    output, post = command.output, method.recipe.post
    wants_masks = output.masks is not None or output.argmax is not None
    return Plan(
        maps=method.maps,
        plain=command.keep_plain,
        has_background=method.has_background,
        post=dataclasses.replace(post, gate=gate_name(command, method)),
        map_dir=output.out,
        mask_dir=output.masks,
        argmax_dir=output.argmax,
        map_stride=output.cam_stride,
        crf=crf_settings(command.crf, post) if wants_masks else {},
        threshold=post.threshold if command.crf.threshold is None else command.crf.threshold,
        max_side=views.max_side,
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
    if command.output.with_labels:
        made_from["with_labels"] = True
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
    refine = keeping_plain(gate) if gate is not None and command.keep_plain else gate
    with outputs:
        for sample, maps in inferred(command, work, work.dataset, remaining, refine):
            outputs.put(sample["image_id"], sample.get("label"), maps)
            del maps  # no use to keep them while the next ones are computed


def inferred(
    command: Command,
    work: Work,
    dataset: InferDataset,
    indices: Sequence[int],
    refine: Refine | None,
    *,
    what: str | None = None,
    stride: int | None = None,
) -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Yield the sample and the maps of images of a dataset.

    Args:
        command: The command.
        work: The method and the device.
        dataset: The images.
        indices: Which of them.
        refine: See `infer_images`.
        what: Name of the progress bar.
        stride: Pixels per value of the maps; by default the command's.
    """
    stride = stride or command.output.cam_stride
    batch_size = command.run.batch_size or (8 if work.device.type == "cuda" else 1)
    batches = dataset.batches(indices, batch_size, stride=stride)
    loader = infer_loader(dataset, batches=batches, num_workers=command.run.num_workers)
    bar = Bar(len(indices), what or "infer", unit="image", quiet=not dist.is_main())
    with bar, contextlib.closing(dist.until_a_rank_fails(loader)) as loaded:
        for samples in loaded:
            with named_if_too_large(samples):
                merged = infer_images(
                    work.method,
                    samples,
                    size=dataset.views.map_size(samples[0]["whole"], stride),
                    device=work.device,
                    amp=command.run.amp,
                    mirror=dataset.views.mirror,
                    refine=refine,
                )
            yield from zip(samples, merged, strict=True)
            del merged
            bar.update(len(samples))


@contextlib.contextmanager
def named_if_too_large(samples: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a `ValueError`.

    Its message names the images and the flags that help.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        names = ", ".join(str(sample["image_id"]) for sample in samples[:3])
        height, width = samples[0]["size"]
        raise ValueError(
            f"too little memory for {len(samples)} images of {width}x{height} at once ({names}): "
            "give fewer or smaller --scales or --sides, a smaller --batch-size, --gate none, or "
            "--max-side"
        ) from error


def parse(argv: Sequence[str] | None) -> Command:
    """Return what the command line says."""
    run = "out/toy-fbr-seed0"
    return parse_flags(Command, argv, example=f"--checkpoint {run}/checkpoint.pth --out {run}/cam")


if __name__ == "__main__":
    run_stage(main)
