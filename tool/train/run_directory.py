"""The `config.json` and `checkpoint.pth` of a run directory, and checks that they fit a command."""

from __future__ import annotations

import math
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tool.documents import read_dict
from tool.files import as_json, file_hash, first_few, write_json
from tool.formats.checkpoint import load_checkpoint, save_checkpoint
from tool.formats.checkpoint_content import LARGEST_INT, plain_tensors
from tool.parallel import dist
from tool.provenance import commit, cpu_model, version

CHECKPOINT = "checkpoint.pth"
# Entries of a run's configuration that identify its data. Checkpoints of older versions lack them.
DATA = {
    "labels_sha256": "labels",
    "photographs_sha256": "photographs",
    "saliency_sha256": "saliency maps",
    "truth_sha256": "ground-truth masks",
    "mask_files_sha256": "masks (--mask-dir)",
    "seed_files_sha256": "seeds (--seed-dir)",
    "cam_files_sha256": "CAMs (--cam-dir)",
    "boundary_files_sha256": "boundary labels (--boundary-dir)",
}
NO_LONGER = {"images_sha256"}  # an entry of older versions, the files' sizes; it is not compared
COUNTER = "num_batches_tracked"  # a norm's counter is no weight, and a frozen norm has none
_SHOWN = 4  # settings that differ, in a message
_LARGEST_LACK = 2**28  # how many numbers a file may lack, which are then made: the bank's
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless")


def write_config(
    directory: Path,
    config: dict[str, Any],
    flags: dict[str, Any],
    *,
    weights: Path | None,
    loaded: str | None = None,
    resumed: bool = False,
) -> None:
    """Write `config.json`: what the run is, from which weights, by which code and processor.

    Args:
        directory: The run directory.
        config: The configuration of the run.
        flags: The flags of the command.
        weights: The file that the run starts from; None if it starts from scratch.
        loaded: What the run took of that file, as it was printed.
        resumed: Whether the run started earlier. Then what was noted about its weights stays.
    """
    path = directory / "config.json"
    start = weights and {"file": str(weights), "sha256": file_hash(weights), "loaded": loaded}
    content = {
        "config": config,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        **({"weights": start} if not resumed else _noted_weights(path)),
        "flags": flags,
        "commit": commit(),
        "cpu": cpu_model(),
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
    }
    write_json(path, as_json(content))


def _noted_weights(path: Path) -> dict[str, Any]:
    """Return {"weights": ...} from `config.json`, or {} if it has none."""
    return {k: v for k, v in (read_dict(path) or {}).items() if k == "weights"}


def save_run(
    directory: Path,
    step: int,
    *,
    method: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
) -> None:
    """Write `checkpoint.pth`, from which `resume_run` goes on; only the main rank writes.

    The file holds the state of the method and of the optimizer, the configuration and `step`. It
    needs no state of random generators or of the loader, because all draws depend on the seed and
    the step alone.

    Args:
        directory: The run directory.
        step: The number of steps done.
        method: The method. Its state includes what is not weights, such as a bank.
        optimizer: Its optimizer.
        config: The configuration of the run.

    Raises:
        OSError: The file could not be written. An earlier checkpoint is then still whole.
    """
    if not dist.is_main():
        return
    content = {
        "method": config["method"],
        "config": config,
        "model": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    save_checkpoint(directory / CHECKPOINT, content)


def resume_run(
    directory: Path,
    *,
    method: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
) -> int:
    """Load the checkpoint in `directory`, if there is one.

    Args:
        directory: The run directory.
        method: Receives the saved state.
        optimizer: Receives the saved state. Its groups keep their settings, such as the rate.
        config: The configuration of this run.

    Returns:
        The number of steps that the checkpoint has done, 0 without a checkpoint.

    Raises:
        ValueError: The checkpoint is corrupt, belongs to a run with other settings or data, or has
            more steps than this run; says what differs. The file stays as it is.
    """
    path = directory / CHECKPOINT
    if not path.exists():
        return 0
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"{error}, or remove it, and the run starts anew") from error
    theirs = checkpoint["config"]
    differing: dict[str, tuple[Any, Any]] = {}  # name -> the values of the checkpoint and the run
    for name in dict.fromkeys((*config, *theirs)):  # a setting that is not used may be left out
        if name in NO_LONGER or (name in DATA and name not in theirs):
            continue
        their, own = as_json(theirs.get(name)), as_json(config.get(name))
        if their == own or (differing and (name == "list_sha256" or name in DATA)):
            continue  # another list has other data, too
        if name == "list_sha256":
            raise ValueError(
                f"the image list has changed since {path} was made: resume with the list it was "
                "made with, or choose another --out"
            )
        if name in DATA:
            raise ValueError(
                f"the {DATA[name]} of the list have changed since {path} was made: resume with "
                "those it was made with, or choose another --out"
            )
        if isinstance(their, dict) and isinstance(own, dict):  # name the options that differ
            names = [one for one in {**own, **their} if own.get(one) != their.get(one)]
            their, own = ({one: some.get(one) for one in names} for some in (their, own))
        differing[name] = their, own
    if differing:
        few = list(differing.items())[:_SHOWN]
        was = ", ".join(f"{name} = {their!r}" for name, (their, _) in few)
        has = ", ".join(f"{name} = {own!r}" for name, (_, own) in few)
        raise ValueError(
            f"{path} was made with {was}, this run has {has}: use the same settings to resume, or "
            "another --out"
        )
    if checkpoint["step"] > config.get("steps", LARGEST_INT):
        raise ValueError(
            f"{path} says step {checkpoint['step']}, this run has {config['steps']} steps"
        )
    check_optimizer(optimizer, checkpoint.get("optimizer"), path)
    load_state(method, checkpoint["model"], path)
    groups = optimizer.state_dict()["param_groups"]  # the saved ones differ only in the rate
    optimizer.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": groups})
    return checkpoint["step"]


NOT_COMPARED = {"lr", "fused", "foreach", "capturable", "differentiable"}


def check_optimizer(optimizer: torch.optim.Optimizer, theirs: Any, path: Path) -> None:
    """Check that a saved optimizer has the groups of this one, and state of its parameters' shapes.

    Groups of two runs with the same settings are equal except for the rate, which each step sets.

    Args:
        optimizer: The optimizer of this run.
        theirs: The saved optimizer.
        path: The checkpoint, for the message.

    Raises:
        ValueError: The saved optimizer does not fit; says what does not.
    """
    parts = ("param_groups", list), ("state", dict)
    if not isinstance(theirs, dict) or not all(isinstance(theirs.get(n), k) for n, k in parts):
        raise ValueError(f"{path} holds no optimizer: training cannot resume from it")
    own = optimizer.state_dict()["param_groups"]
    groups = theirs["param_groups"]
    if len(groups) != len(own) or not all(map(_same_group, groups, own)):
        raise ValueError(f"{path}: its optimizer does not fit this run (other parameter groups)")
    parameters = dict(enumerate(p for g in optimizer.param_groups for p in g["params"]))
    for index, state in theirs["state"].items():
        if type(index) is not int or index not in parameters or not isinstance(state, dict):
            raise ValueError(f"{path}: its optimizer does not fit this run (other parameters)")
        tensors = {name: value for name, value in state.items() if value is not None}
        plain_tensors(tensors, path)
        shape = parameters[index].shape
        # The shape () is Adam's count of steps.
        if any(tensor.shape not in (shape, ()) for tensor in tensors.values()):
            raise ValueError(f"{path}: its optimizer does not fit this run (other shapes)")


def _same_group(group: Any, own: dict[str, Any]) -> bool:
    """Return whether a saved group is `own`, except for the rate and how torch computes it.

    Versions of torch add keys. A run may go on with another version, or on another device.
    """
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    values = [*group["params"]]
    for name, value in group.items():
        pair = isinstance(value, tuple)  # Adam's betas
        values += [] if name == "params" else value if pair else [value]
    if not all(value is None or isinstance(value, int | float | str) for value in values):
        return False
    if type(group.get("lr")) not in (int, float) or not math.isfinite(group["lr"]):
        return False
    return all(group[name] == own[name] for name in own.keys() & group.keys() - NOT_COMPARED)


def load_state(
    method: torch.nn.Module,
    state: dict[str, torch.Tensor],
    path: Path | str,
    *,
    may_lack: Sequence[str] = (),
) -> None:
    """Load a state dict after checking that it fits a method.

    Args:
        method: Receives the state.
        state: The tensors by name.
        path: The file that they came from.
        may_lack: Names that begin like one of these may be missing; no other name may.

    Raises:
        ValueError: The state does not fit; names what does not.
    """
    own = method.state_dict()
    lacking = {n for n in own if n not in state and n.startswith(tuple(may_lack))}
    wrong = [n for n in own if n not in lacking and not _fits(state.get(n), own[n])]
    _refuse(path, wrong + [n for n in state if n not in own])
    method.load_state_dict(state, strict=False)


def check_sizes(method: torch.nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> None:
    """Check that `state` fits the shapes of `method`, and lacks no huge part of it.

    Args:
        method: On the meta device, so it takes no memory.
        state: The tensors by name. Names that `method` lacks are ignored.
        path: The file that they came from.

    Raises:
        ValueError: A tensor has another shape in the file, or the file lacks more than 2^28 numbers
            in all.
    """
    own = method.state_dict()
    _refuse(path, [n for n in own if n in state and not _fits(state[n], own[n])])
    lacking = sum(tensor.numel() for name, tensor in own.items() if name not in state)
    if lacking > _LARGEST_LACK:
        raise ValueError(f"{path} describes {lacking} numbers that are not in it")


def check_complete(
    method: torch.nn.Module, state: dict[str, torch.Tensor], path: Path | str
) -> None:
    """Check that `state` has every weight of `method`, and no tensor that `method` lacks.

    Norm counters may be missing, because a frozen norm has none.

    Raises:
        ValueError: A name is missing or unknown; names it.
    """
    wrong = [n for n in weight_names(method) if n not in state and not n.endswith(COUNTER)]
    own = set(method.state_dict())
    _refuse(path, wrong + [name for name in state if name not in own])


def _refuse(path: Path | str, wrong: Sequence[str]) -> None:
    """Raise `ValueError` if any name is wrong."""
    if wrong:
        raise ValueError(
            f"{path} does not fit this method and number of classes: {len(wrong)} tensors differ, "
            f"first {first_few(wrong)}"
        )


def _fits(value: torch.Tensor | None, own: torch.Tensor) -> bool:
    """Return whether a tensor can replace `own`. Whole numbers are counters, which go up from 0."""
    if value is None or value.shape != own.shape:
        return False
    if own.is_floating_point():
        return value.is_floating_point()
    if value.is_floating_point():
        return False
    # as Python's ints: torch would wrap the limit to the type of the tensor, such as uint8
    return value.numel() == 0 or (int(value.min()) >= 0 and int(value.max()) < LARGEST_INT)


def weight_names(method: torch.nn.Module) -> list[str]:
    """Return the names of the weights in a state dict: everything that is not declared as state.

    The scale and shift of a frozen norm are buffers, and weights.
    """
    state = set(state_names(method))
    return [name for name in method.state_dict() if name not in state]


def state_names(method: torch.nn.Module) -> list[str]:
    """Return the names of what is saved and resumed but is not weights: a bank, a teacher.

    A module with `is_state = True` declares that all it holds is such state.
    """
    declared = [n for n, module in method.named_modules() if getattr(module, "is_state", False)]
    inside = tuple(f"{name}." for name in declared)
    return [name for name in method.state_dict() if name.startswith(inside)]
