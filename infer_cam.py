"""Stage 2: a checkpoint -> one CAM file or mask per image. A restart skips finished images."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from data.catalog import add_dataset_flags, catalog_from
from data.dataset import InferDataset
from data.loader import infer_loader
from data.usable import add_skip_flag, ids_from
from network.methods import Method, method_names
from network.weights.channel_order import BACKGROUND_HELP, PLACES
from network.weights.restore import restore
from tool.cli import Parser, positive_int, run_stage
from tool.crf.stage import add_crf_flags, crf_settings
from tool.files import file_hash, locked
from tool.formats.cam import strided_size
from tool.infer.multiscale import infer_images
from tool.infer.outputs import Outputs, Plan
from tool.infer.previous import add_previous_flags, previous_outputs_from
from tool.infer.scales import Views
from tool.parallel import dist
from tool.parallel.machine import is_out_of_memory, spare_cores
from tool.parallel.processes import default_workers
from tool.provenance import origin


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
    """Build the method, the dataset and the outputs, and claim the folders."""
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
    views, mirror = views_from(args, method)
    outputs = Outputs(catalog, plan_from(args, method))
    ids = ids_from(args, catalog)
    dataset = InferDataset(
        catalog,
        ids,
        views=views,
        inputs=method.infer_inputs,
        previous=previous_outputs_from(args),
    )
    if dist.is_main():
        made_from = {"checkpoint_sha256": file_hash(args.checkpoint)} | views.note()
        if not mirror:
            made_from["mirror"] = False
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


def views_from(args: argparse.Namespace, method: Method) -> tuple[Views, bool]:
    """Return the sizes of the copies of each image, and whether they are mirrored too."""
    mirror = method.recipe.mirror if args.mirror is None else args.mirror
    if args.scales or args.sides:
        return Views(tuple(args.scales or ()), args.sides and tuple(args.sides)), mirror
    return method.recipe.views(), mirror


def plan_from(args: argparse.Namespace, method: Method) -> Plan:
    """Return what is written where; how masks are made is the method's, if no flag says so."""
    return Plan(
        maps=method.maps,
        has_background=method.has_background,
        post=method.recipe.post,
        map_dir=args.out,
        mask_dir=args.masks,
        map_stride=args.cam_stride,
        crf=crf_settings(args, method.recipe.post) if args.masks else {},
        crf_workers=args.crf_workers,
    )


def infer(
    args: argparse.Namespace,
    device: torch.device,
    method: Method,
    dataset: InferDataset,
    outputs: Outputs,
) -> None:
    """Infer the images of this rank's share that are not done."""
    ids, mirror = dataset.ids, views_from(args, method)[1]
    mine = dist.share(range(len(ids)))
    remaining = [index for index in mine if not outputs.are_whole(ids[index])]
    print(
        f"{len(mine) - len(remaining)} of {len(mine)} images are done, {len(remaining)} to go",
        flush=True,
    )
    batches = dataset.batches(remaining, args.batch_size or (8 if device.type == "cuda" else 1))
    loader = infer_loader(dataset, batches=batches, num_workers=args.num_workers)
    bar = tqdm(total=len(remaining), disable=not dist.is_main(), mininterval=1.0)
    with outputs, bar, contextlib.closing(dist.watched(loader)) as watched:
        for samples in watched:
            size = strided_size(tuple(samples[0]["size"]), args.cam_stride)
            with named_if_too_large(samples):
                merged = infer_images(
                    method, samples, size=size, device=device, amp=args.amp, mirror=mirror
                )
            for sample, maps in zip(samples, merged, strict=True):
                outputs.put(sample["image_id"], sample.get("label"), maps)
            bar.update(len(samples))


@contextlib.contextmanager
def named_if_too_large(samples: Sequence[dict[str, object]]) -> Iterator[None]:
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the values of the flags."""
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
    add_previous_flags(parser)
    add("--out", type=Path, help="folder for the .npy files")
    add("--masks", type=Path, help="folder for masks: the CRF in the same pass, as stage 3 does it")
    add(
        "--cam-stride",
        type=positive_int,
        default=1,
        help="pixels per stored value; with 4 a file has a 16th of the size, and stages 3 and 4 "
        "enlarge it",
    )
    size = parser.add_mutually_exclusive_group().add_argument
    size(
        "--scales", type=float, nargs="+", help="factors on an image's size; default: the recipe's"
    )
    size(
        "--sides",
        type=positive_int,
        nargs="+",
        help="sides of squares that an image is resized to, in place of --scales",
    )
    add(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="infer the mirror of each image too; default: the recipe's",
    )
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
