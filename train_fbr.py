"""Stage 1: an image list and a pretrained backbone -> a run directory with a checkpoint.

Resumes by itself when the directory holds a checkpoint of the same run.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.catalog import Catalog
from data.colour import DeviceTransform
from data.dataset import TrainDataset
from data.fields import TRUTH, FieldFlags
from data.identity import data_hashes
from data.loader import step_batches
from data.masks import survey, write_survey
from data.readable import ImageList, ListFlags, open_list
from data.shown import shown_images
from data.transforms import resize_of
from network.backbones import check_squares
from network.flags import (
    StartFlags,
    add_network_flags,
    default_recipe,
    noted_recipe,
    recipe_flags,
    recipe_from,
    start_from,
)
from network.methods import Method, build_method, find_method, trained_names
from network.options import add_option_flags, option_names, options_from
from network.recipe import Recipe
from network.weights.initialise import initialise
from network.weights.pixel_truth import FACT
from network.weights.pretrained import load_pretrained, source_file
from tool.cli import Parser, run_stage
from tool.files import file_hash, locked
from tool.flags import add_flags, flag, flags_as
from tool.infer.previous import KINDS, PREVIOUS, PreviousOutputs
from tool.noted import checked, other_settings, read_noted, take_defaults, to_repeat
from tool.parallel import dist
from tool.parallel.machine import cpp_compiler
from tool.progress import Progress
from tool.provenance import fingerprint
from tool.train.batch import Batch
from tool.train.engine import Settings, fit
from tool.train.flags import RunFlags
from tool.train.log import RunLog
from tool.train.run_directory import resume_run, save_run, write_config

# The part of a recipe that two runs in one directory share.
IDENTIFYING: tuple[str, ...] = ("steps", "batch_size", "accumulate", "crop", "long_side", "scale")
IDENTIFYING += ("lr", "momentum", "warmup", "weight_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodFlags:
    """The flags that decide which other flags there are.

    Attributes:
        method: What to train. cam is a plain classifier; eps and ppc are hosts that use saliency;
            fbr is the main method; sfc, transcam and bao are others from labels alone; amn, irn,
            fbr_amn, sfc_irn, bes and sbe refine the results of an earlier run; deeplab1 and
            deeplab2 are networks that are trained on masks.
        short: Take the method's recipe for a few hundred images on a CPU as the defaults.
        config: Start the run of this config.json again: its flags are the defaults of all flags but
            --out and --num-workers. A flag on the command line wins.
    """

    method: str = flag("fbr", choices=trained_names)
    short: bool = False
    config: Path | None = flag(None, metavar="FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        method_name: Name of the method.
        method: Its class.
        options: Its hyper-parameters by name.
        recipe: Its recipe, with the flags in place of the defaults.
        data: The dataset and the list.
        previous: Folders of files of previous stages.
        start: Where the first weights come from.
        run: Where and how to run.
        given: Every flag by name, for `config.json`.
        config: The `config.json` of the run to start again; None for a run of its own.
    """

    method_name: str
    method: type[Method]
    options: dict[str, Any]
    recipe: Recipe
    data: ListFlags
    previous: PreviousOutputs
    start: StartFlags
    run: RunFlags
    given: dict[str, Any]
    config: Path | None = None

    def __post_init__(self) -> None:
        recipe, compiler = self.recipe, self.run.compile
        if compiler == "inductor" and not (torch.cuda.is_available() or cpp_compiler()):
            raise ValueError("--compile needs a C++ compiler on a CPU: install g++, or set CXX")
        if recipe.batch_size % (recipe.accumulate * dist.env_world_size()):
            raise ValueError("--batch-size must divide by the ranks times --accumulate")


def main(argv: Sequence[str] | None = None) -> int:
    """Train one method. Return 0 when it is complete, or 128 + the signal that interrupted it."""
    command = parse(argv)
    device = dist.pick_device(command.run.device)
    dist.start(device)
    if not dist.is_main():
        return train(command, device)
    with locked(command.run.out):
        return train(command, device)


def train(command: Command, device: torch.device) -> int:
    """Build data, method and optimizer, resume, train; return the exit status of `main`."""
    out = command.run.out
    catalog, images = open_images(command)
    steps = command.recipe.steps_for(len(images.all_ids))
    recipe = dataclasses.replace(command.recipe, steps=steps, epochs=None)
    warn_of_recipe(recipe, len(images.ids))
    config = run_config(command, recipe, catalog, images)
    method = build_method(config)
    check_squares(method.backbone, (recipe.crop, recipe.crop), "--crop")
    dataset = dataset_from(command, catalog, images.ids)
    command.previous.warn_of_unread(method.inputs)
    weights = start_file(method, command.start)
    loaded = load_start(method, command, config, weights)
    compare_settings(command, config, weights)
    method = prepared(method, command, device)
    study(method, catalog, images, device)
    optimizer = build_optimizer(method, recipe, device)
    step = resume_run(out, method=method, optimizer=optimizer, config=config)
    if step == 0 and "mask" in method.inputs:
        look_at_masks(dataset, out)
    if step >= steps:
        dist.print_once(f"{out} is complete: {step} steps")
        return 0
    dist.print_once(
        f"{command.method_name} on {images.name} of {catalog.name}: {len(images.ids)} images, "
        f"{catalog.num_classes} classes, steps {step} to {steps} on {device}"
    )
    start = Progress(
        step=step,
        steps=steps,
        steps_per_epoch=max(1, len(images.ids) // recipe.batch_size),
        seed=command.run.seed,
        accumulate=recipe.accumulate,
        rank=dist.rank(),
        world_size=dist.world_size(),
    )
    save = functools.partial(save_run, out, method=method, optimizer=optimizer, config=config)
    mean, std = method.backbone.mean, method.backbone.std
    transform = DeviceTransform(mean, std, device)
    shown = None
    with dist.all_or_none():
        if command.run.picture_every and dist.is_main():
            shown = shown_images(dataset, device, transform)
    with contextlib.ExitStack() as closing:
        log = None
        if dist.is_main():
            resumed = step > 0
            write_config(
                out, config, command.given, weights=weights, loaded=loaded, resumed=resumed
            )
            log = RunLog(out, start_step=step, mean=mean, std=std, shown=shown)
            closing.enter_context(contextlib.closing(log))
            log.settings(config)
        ended_by = fit(
            method,
            optimizer,
            batches_from(dataset, recipe, command.run, step, device),
            start=start,
            settings=settings_from(recipe, command.run),
            device=device,
            transform=transform,
            log=log,
            save=save,
        )
    dist.stop()
    if ended_by is not None:
        dist.print_once(f"interrupted; saved in {out}: the same command continues")
        return 128 + ended_by
    return 0


def warn_of_recipe(recipe: Recipe, images: int) -> None:
    """Print a warning if the learning rate rises for the whole run, or if images are few.

    Args:
        recipe: The recipe.
        images: Number of images to train on.
    """
    if recipe.batch_size > images:
        dist.print_once(
            f"note: --batch-size {recipe.batch_size} is more than the {images} images, so a batch "
            "has images more than once"
        )
    if recipe.warmup >= recipe.steps and recipe.warmup > 1 and dist.is_main():
        print(
            f"warning: --warmup {recipe.warmup} is not shorter than the run of {recipe.steps} "
            "steps, so the learning rate never reaches --lr: lower --warmup, or raise --steps",
            file=sys.stderr,
        )


def reads_truth(command: Command) -> bool:
    """Return whether the run trains on the dataset's own masks."""
    return "mask" in command.method.inputs and command.previous.folders.get("mask") == TRUTH


def open_images(command: Command) -> tuple[Catalog, ImageList]:
    """Return the dataset and the images to train on."""
    inputs, on_truth = command.method.inputs, reads_truth(command)
    if on_truth:
        dist.print_once(
            "--mask-dir truth: trained on ground truth, an upper bound and no weak supervision"
        )
    who = f"method {command.method_name!r}"
    return open_list(command.data, saliency="saliency" in inputs, masks=on_truth, who=who)


def look_at_masks(dataset: TrainDataset, out: Path) -> None:
    """Print the share of each class in the masks of the list, and note it in the run directory.

    Raises:
        ValueError: A mask is broken, or none has a foreground pixel.
    """
    with dist.all_or_none():
        if dist.is_main():
            found = survey(dataset.sources, dataset.ids)
            for line in found.lines():
                print(line, flush=True)
            write_survey(found, out)


def study(method: Method, catalog: Catalog, images: ImageList, device: torch.device) -> None:
    """Show the method the labels of the whole list, if it reads labels; see `Method.study`."""
    if "label" in method.inputs:
        labelled = filter(catalog.has_label, images.all_ids)
        labels = np.stack([catalog.label(image_id) for image_id in labelled])
        method.study(torch.from_numpy(labels).to(device))


def batches_from(
    dataset: TrainDataset, recipe: Recipe, run: RunFlags, step: int, device: torch.device
) -> Iterator[Batch]:
    """Return this rank's batches, from a step on."""
    return step_batches(
        dataset,
        batch_size=recipe.batch_size,
        start_step=step,
        steps=recipe.steps,
        seed=run.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        accumulate=recipe.accumulate,
        num_workers=run.num_workers,
        pin_memory=device.type == "cuda",
    )


def dataset_from(command: Command, catalog: Catalog, ids: Sequence[str]) -> TrainDataset:
    """Return the images, and what else the method reads, augmented as the recipe says."""
    recipe = command.recipe
    return TrainDataset(
        catalog,
        ids,
        inputs=command.method.inputs,
        crop=recipe.crop,
        resize=resize_of(recipe.scale, recipe.long_side),
        jitter=recipe.jitter,
        seed=command.run.seed,
        previous=command.previous,
    )


def start_file(method: Method, start: StartFlags) -> Path | None:
    """Return the file of the first weights, fetched once if it is a published one."""
    if start.init is not None or not start.pretrained:
        return start.init
    path = None
    with dist.all_or_none():
        if dist.is_main():
            path = source_file(method.backbone, start.source)
    return path or source_file(method.backbone, start.source)


def load_start(
    method: Method, command: Command, config: dict[str, Any], weights: Path | None
) -> str | None:
    """Load the first weights, print what was loaded, and return it; None if there are none.

    If the weights have seen pixel truth, `config` gets a note of it. It is then a part of the
    identity of the run, and of its checkpoints.
    """
    start, allowed = command.start, command.start.allow_pixel_truth
    if weights is None:
        return None
    if start.init is not None:
        loaded = initialise(
            method,
            weights,
            class_names=tuple(config["class_names"]),
            background=start.background,
            allow_pixel_truth=allowed,
        )
    else:
        loaded = load_pretrained(
            method.backbone,
            start.source,
            weights,
            num_classes=method.num_classes,
            allow_pixel_truth=allowed,
        )
    if method.backbone.saw_masks:
        config[FACT] = True
    dist.print_once(f"{loaded}; SHA-256 {file_hash(weights)}")
    return loaded


def compare_settings(command: Command, config: dict[str, Any], weights: Path | None) -> None:
    """With `--config`, print which settings of this run differ from those in its file.

    Args:
        command: The flags.
        config: The settings of this run, as `run_config` returns them.
        weights: The file of the first weights; None if the run starts from scratch.
    """
    if command.config is not None and dist.is_main():
        other = other_settings(read_noted(command.config), config, weights)
        print(f"as {command.config}" + (f", but for {', '.join(other)}" if other else ""))


def prepared(method: Method, command: Command, device: torch.device) -> Method:
    """Return the method on the device, compiled if requested."""
    method = dist.synchronise_norms(method, device)
    method.to(device).to(memory_format=torch.channels_last)
    if command.run.compile:
        method.backbone.compile(backend=command.run.compile, dynamic=False)
    return method


def build_optimizer(method: Method, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; each group notes its initial rate for the schedule."""
    groups, fused = method.param_groups(recipe.lr, recipe.weight_decay), device.type == "cuda"
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if recipe.optimizer in kinds:
        optimizer = kinds[recipe.optimizer](groups, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def parse(argv: Sequence[str] | None, *, module: str = __name__) -> Command:
    """Return what the command line says. Its defaults are the method's recipe and options.

    Args:
        argv: The arguments; None for those of the process.
        module: Name of the module that is the program, for messages.
    """
    argv = sys.argv[1:] if argv is None else argv
    known, noted = first_flags(argv)
    method = find_method(known.method)
    recipe = default_recipe(method, short=known.short)
    more = f"The options and defaults below are those of --method {known.method}."
    parser = Parser(module, example="--method fbr --short --out out/my-run", more=more)
    add_flags(parser.add_argument_group("method"), MethodFlags)
    add_flags(parser.add_argument_group("data"), ListFlags)
    add_flags(parser.add_argument_group(PREVIOUS), FieldFlags)
    add_network_flags(parser, recipe)
    options = method.recipe.short_options if known.short else {}
    add_option_flags(parser, method.Config, known.method, defaults=options)
    add_flags(parser.add_argument_group("run"), RunFlags)
    if known.config is not None:
        values = checked(parser, noted, known.config)
        take_defaults(parser, values)
        recipe = noted_recipe(values, recipe)

    args = parser.parse_args(argv)
    try:
        recipe = recipe_from(args, recipe)
        return Command(
            method_name=known.method,
            method=method,
            options=options_from(method.Config, args),
            recipe=recipe,
            data=flags_as(ListFlags, args),
            previous=flags_as(FieldFlags, args).outputs(),
            start=start_from(args, recipe.backbone),
            run=flags_as(RunFlags, args),
            given={**recipe_flags(recipe), **vars(args)},
            config=known.config,
        )
    except ValueError as error:
        parser.error(str(error))


def first_flags(argv: Sequence[str]) -> tuple[MethodFlags, dict[str, Any]]:
    """Return the flags that decide which other flags there are, and those that `--config` notes.

    Raises:
        FileNotFoundError: As `read_noted`.
        ValueError: As `read_noted` and `checked`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(first, MethodFlags)
    try:
        known = flags_as(MethodFlags, first.parse_known_args(argv)[0])
    except argparse.ArgumentError:
        return MethodFlags(), {}  # the whole parser will say what is wrong
    if known.config is None:
        return known, {}
    noted = to_repeat(read_noted(known.config)["flags"], argv)
    deciding = {name: value for name, value in noted.items() if name in ("method", "short")}
    take_defaults(first, checked(first, deciding, known.config))
    known = flags_as(MethodFlags, first.parse_known_args(argv)[0])
    # With another --method, the options that it does not have are left out.
    theirs = find_method(deciding.get("method", known.method)).Config
    lost = option_names(theirs) - option_names(find_method(known.method).Config)
    return known, {name: value for name, value in noted.items() if name not in lost}


def run_config(
    command: Command, recipe: Recipe, catalog: Catalog, images: ImageList
) -> dict[str, Any]:
    """Return what identifies the run: two commands that differ here do not share a checkpoint.

    The list is the whole one, so that a run that met a bad image goes on with `--skip-bad-images`.
    """
    start = command.start
    return {
        "method": command.method_name,
        "backbone": recipe.backbone,
        "output_stride": recipe.output_stride,
        "method_config": command.options,
        "dataset": catalog.name,
        "list": images.name,
        **{name: getattr(recipe, name) for name in IDENTIFYING},
        "seed": command.run.seed,
        "amp": command.run.amp,
        "num_classes": catalog.num_classes,
        "class_names": list(catalog.class_names),
        "pretrained": start.pretrained,
        "init_sha256": start.init and file_hash(start.init),
        "init_background": start.background,
        "seeds": None,
        **({"clip": recipe.clip} if recipe.clip else {}),
        **({"norm": start.norm} if start.norm != "frozen" else {}),
        **dist.on_main(lambda: fingerprints(command.previous, command.method.inputs)),
        "jitter": None if recipe.jitter == command.method.recipe.jitter else recipe.jitter,
        "list_sha256": images.sha256,
        **data_hashes(
            catalog,
            images.all_ids,
            command.method.inputs,
            with_masks=reads_truth(command),
            previous=command.previous,
        ),
    }


def fingerprints(previous: PreviousOutputs, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what identifies the files of previous stages that the run reads."""
    return {
        KINDS[key].plural: str(folder) if (key, folder) == ("mask", TRUTH) else fingerprint(folder)
        for key, folder in previous.folders.items()
        if key in inputs
    }


def settings_from(recipe: Recipe, run: RunFlags) -> Settings:
    """Return the settings of the engine."""
    values = {**vars(recipe), **vars(run)}
    return Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})


if __name__ == "__main__":
    run_stage(main)
