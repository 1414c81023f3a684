"""Stage 2: a checkpoint -> one CAM file (or mask) an image. Restarted, it skips what is done."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from data.catalog import Catalog, add_dataset_flags, catalog_from
from data.dataset import InferDataset
from data.loader import infer_loader
from data.usable import add_skip_flag, ids_from
from network.methods import Method, method_names
from network.weights.channel_order import BACKGROUND_HELP, PLACES
from network.weights.restore import restore
from tool.cli import Parser, positive_int, run_stage
from tool.crf.stage import PostProcess, add_crf_flags, crf_settings
from tool.files import file_hash, locked
from tool.formats.cam import is_whole, save_cam, strided_size
from tool.infer.multiscale import infer_images, present_rows
from tool.infer.previous import add_earlier_flags, earlier_from
from tool.parallel import dist
from tool.parallel.machine import is_out_of_memory, spare_cores
from tool.parallel.processes import default_workers
from tool.parallel.writer import BackgroundWriter
from tool.provenance import claim, origin


def main(argv: Sequence[str] | None = None) -> None:
    """Write the CAMs, or the masks, of a list."""
    args = parse(argv)
    device = dist.pick_device(args.device)
    with dist.ranks(device), contextlib.ExitStack() as held:
        with dist.agreed():
            if dist.is_main():
                for folder in filter(None, (args.out, args.masks)):
                    held.enter_context(locked(folder))
            method, dataset, outputs = prepare(args, device)
        with dist.agreed():
            infer(args, device, method, dataset, outputs)


def prepare(args: argparse.Namespace, device: torch.device) -> tuple[Method, InferDataset, Outputs]:
    """Build what infers, from what, to where; the folders are claimed."""
    catalog = catalog_from(args)
    method, config = restore(
        args.checkpoint,
        method=args.method,
        backbone=args.backbone,
        class_names=catalog.class_names,
        options=args.option,
        background=args.background,
        tell=print if dist.is_main() else lambda line: None,
    )
    method.to(device, memory_format=torch.channels_last).eval()
    scales = tuple(args.scales or method.recipe.scales)
    outputs = Outputs(catalog, args, has_background=method.has_background)
    ids = ids_from(args, catalog)
    dataset = InferDataset(
        catalog, ids, scales=scales, inputs=method.infer_inputs, earlier=earlier_from(args)
    )
    if dist.is_main():
        made_from = {"checkpoint_sha256": file_hash(args.checkpoint), "scales": list(scales)}
        for name, folder in (("seed", args.seed_dir), ("cam", args.cam_dir)):
            if name in method.infer_inputs:
                made_from[f"{name}s"] = origin(folder)
        if args.background:
            made_from["background"] = args.background
        if args.option:
            names = sorted(one.partition("=")[0] for one in args.option)
            made_from["options"] = {name: config["method_config"][name] for name in names}
        outputs.claim(made_from)
    return method, dataset, outputs


def infer(
    args: argparse.Namespace,
    device: torch.device,
    method: Method,
    dataset: InferDataset,
    outputs: Outputs,
) -> None:
    """Infer this rank's share of the images that are not done."""
    ids = dataset.ids
    mine = dist.share(range(len(ids)))
    left = [index for index in mine if not outputs.are_whole(ids[index])]
    print(f"{len(mine) - len(left)} of {len(mine)} images are done, {len(left)} to go", flush=True)
    batches = dataset.batches(left, args.batch_size or (8 if device.type == "cuda" else 1))
    loader = infer_loader(dataset, batches=batches, num_workers=args.num_workers)
    bar = tqdm(total=len(left), disable=not dist.is_main(), mininterval=1.0)
    with outputs, bar, contextlib.closing(dist.watched(loader)) as watched:
        for samples in watched:
            size = strided_size(tuple(samples[0]["size"]), args.cam_stride)
            with told_if_too_large(samples):
                merged = infer_images(method, samples, size=size, device=device, amp=args.amp)
            for sample, maps in zip(samples, merged, strict=True):
                outputs.put(sample, maps)
            bar.update(len(samples))


@contextlib.contextmanager
def told_if_too_large(samples: Sequence[dict[str, object]]) -> Iterator[None]:
    """Inside, lack of memory becomes a `ValueError` that names the images and what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        names = ", ".join(str(sample["image_id"]) for sample in samples[:3])
        height, width = samples[0]["size"]
        raise ValueError(
            f"too little memory for {len(samples)} images of {width}x{height} at once ({names}): "
            "give fewer or smaller --scales, a smaller --batch-size, or a smaller copy of the image"
        ) from error


class Outputs(contextlib.ExitStack):
    """Where maps go: `--out` gets a CAM file an image, `--masks` its mask, in the background."""

    def __init__(self, catalog: Catalog, args: argparse.Namespace, *, has_background: bool) -> None:
        super().__init__()
        self.args, self.has_background = args, has_background
        self.masks = None
        if args.masks is not None:
            self.masks = PostProcess(
                catalog, args.out or args.masks, args.masks, **crf_settings(args)
            )

    def __enter__(self) -> Outputs:
        self._cams = self.enter_context(BackgroundWriter())
        if self.masks is not None:
            processes = self.args.crf_workers if self.masks.device == "cpu" else 0
            self._masks = self.enter_context(BackgroundWriter(threads=1, processes=processes))
        return super().__enter__()

    def claim(self, made_from: dict[str, object]) -> None:
        """Note what the folders are made from."""
        if self.args.cam_stride > 1:
            made_from = made_from | {"cam_stride": self.args.cam_stride}
        if self.args.out is not None:
            claim(self.args.out, made_from)
        if self.masks is not None:
            claim(self.args.masks, made_from | self.masks.settings())

    def are_whole(self, image_id: str) -> bool:
        """Whether everything of an image is there."""
        cam = self.args.out is None or is_whole(cam_path(self.args.out, image_id))
        return cam and (self.masks is None or self.masks.is_whole(image_id))

    def put(self, sample: dict[str, object], maps: dict[str, torch.Tensor]) -> None:
        """Write the maps of an image."""
        for name, values in maps.items():
            rows = present_rows(values, sample.get("label"), has_background=self.has_background)
            if self.args.out is not None:
                path = cam_path(self.args.out, sample["image_id"], name)
                self._cams.submit(save_cam, path, rows)
            if self.masks is not None and name == "cam":
                self._masks.submit(self.masks.write, sample["image_id"], rows)


def cam_path(out: Path, image_id: str, name: str = "cam") -> Path:
    """`OUT/ID.npy`; maps beside the CAM have a folder of their own."""
    return (out if name == "cam" else out / name) / f"{image_id}.npy"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="infer_cam.py", description=__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="checkpoint.pth of train_fbr.py, .safetensors of network.export, or a .pth of "
        "the released code or its kin, which needs --method and --backbone",
    )
    add("--method", choices=method_names(), help="refuse a checkpoint of another method")
    add("--backbone", help="refuse a checkpoint of another backbone")
    add("--background", choices=PLACES, help=BACKGROUND_HELP)
    add(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="hyper-parameters that inference alone uses, such as irn's beta=5, in place of those "
        "it was trained with",
    )
    add_dataset_flags(parser)
    add_skip_flag(parser)
    add_earlier_flags(parser)
    add("--out", type=Path, help="folder for the .npy files")
    add("--masks", type=Path, help="folder for masks: the CRF in the same pass, as stage 3 does it")
    add(
        "--cam-stride",
        type=positive_int,
        default=1,
        help="pixels a stored value; 4: files a 16th of the size, which stages 3 and 4 enlarge",
    )
    add("--scales", type=float, nargs="+", default=None, help="default: the method's recipe")
    add(
        "--batch-size",
        type=positive_int,
        help="images of one size at once; default: 8 on a GPU, 1 on a CPU",
    )
    add("--num-workers", type=int, default=spare_cores(), help="processes that decode ahead")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    add("--amp", action="store_true", help="bf16 autocast")
    add_crf_flags(parser.add_argument_group("masks"))
    add("--crf-workers", type=positive_int, default=default_workers(), help="CRF processes a rank")
    args = parser.parse_args(argv)
    if args.out is None and args.masks is None:
        parser.error("--out for CAMs, --masks for masks, or both")
    if args.cam_stride > 32:
        parser.error("--cam-stride is at most 32")
    return args


if __name__ == "__main__":
    run_stage(main)
