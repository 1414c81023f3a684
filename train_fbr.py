"""Stage 1: an image list and a pretrained backbone -> a run directory with a checkpoint.

Resumes by itself when the directory holds a checkpoint of the same run.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

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
from data.identity import data_hashes, fingerprints
from data.loader import step_batches
from data.masks import look_at_masks
from data.readable import ImageList, ListFlags, open_list
from data.shown import shown_images
from data.transforms import resize_of
from network.backbones import check_squares
from network.flags import (
    MethodFlags,
    StartFlags,
    add_network_flags,
    default_recipe,
    first_flags,
    noted_recipe,
    recipe_flags,
    recipe_from,
    start_from,
    warn_of_recipe,
)
from network.methods import Method, build_method, find_method
from network.optimizer import build_optimizer
from network.options import add_option_flags, options_from
from network.recipe import Recipe
from network.start import load_start, start_file
from tool.cli import Parser, run_stage
from tool.files import file_hash, locked
from tool.flags import add_flags, flags_as
from tool.infer.kinds import PREVIOUS
from tool.infer.previous import PreviousOutputs
from tool.noted import checked, compare_settings, take_defaults
from tool.parallel import dist
from tool.parallel.device import pick_device, synchronise_norms
from tool.parallel.machine import cpp_compiler
from tool.progress import Progress
from tool.train.batch import Batch
from tool.train.engine import Settings, fit
from tool.train.flags import RunFlags
from tool.train.log import RunLog
from tool.train.run_directory import resume_run, save_run, write_config

# The part of a recipe that two runs in one directory share.
IDENTIFYING: tuple[str, ...] = ("steps", "batch_size", "accumulate", "crop", "long_side", "scale")
IDENTIFYING += ("lr", "momentum", "warmup", "weight_decay")


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
    device = pick_device(command.run.device)
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
    loaded = load_start(method, command.start, config, weights)
    compare_settings(command.config, config, weights)
    method = prepared(method, command, device)
    study(method, catalog, images, device)
    optimizer = build_optimizer(method, recipe, device)
    step = resume_run(out, method=method, optimizer=optimizer, config=config)
    if step == 0 and "mask" in method.inputs:
        look_at_masks(dataset.sources, dataset.ids, out)
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


def prepared(method: Method, command: Command, device: torch.device) -> Method:
    """Return the method on the device, compiled if requested."""
    method = synchronise_norms(method, device)
    method.to(device).to(memory_format=torch.channels_last)
    if command.run.compile:
        method.backbone.compile(backend=command.run.compile, dynamic=False)
    return method


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


def settings_from(recipe: Recipe, run: RunFlags) -> Settings:
    """Return the settings of the engine."""
    values = {**vars(recipe), **vars(run)}
    return Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})


if __name__ == "__main__":
    run_stage(main)
