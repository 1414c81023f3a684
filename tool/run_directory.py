"""`config.json` and `checkpoint.pth` of a run directory, and whether they fit a command."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tool.checkpoint import load_checkpoint, save_checkpoint
from tool.files import atomic_path

CHECKPOINT = "checkpoint.pth"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless")


def list_hash(image_ids: Sequence[str]) -> str:
    """SHA-256 of an image list, in its order."""
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def write_config(directory: Path, config: dict[str, Any], flags: dict[str, Any]) -> None:
    """`config.json`: what the run is, with which flags, code and versions."""
    content = {
        "config": config,
        "flags": {name: _plain(value) for name, value in flags.items()},
        "commit": _commit(),
        "versions": {name: _version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
    }
    with atomic_path(directory / "config.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_run(
    directory: Path,
    *,
    method: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    step: int,
) -> None:
    """`checkpoint.pth`: model with its bank, optimizer, and the number of steps done.

    Every draw is keyed by the step, so that the step is the state of the data and of the
    randomness.
    """
    content = {
        "method": config["method"],
        "config": config,
        "model": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "not_weights": sorted(set(method.state_dict()) - set(weight_names(method))),
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
    """Load the checkpoint in `directory`, if there is one; the number of steps it has done.

    Raises:
        ValueError: it is corrupt, or belongs to a run with other settings; names them. Nothing is
            lost.
    """
    path = directory / CHECKPOINT
    if not path.exists():
        return 0
    checkpoint = load_checkpoint(path)
    theirs = checkpoint["config"]
    for name in config:
        if _plain(theirs.get(name)) != _plain(config[name]):
            raise ValueError(
                f"{path} was made with {name} = {_plain(theirs.get(name))}, this run has "
                f"{_plain(config[name])}: use the same settings to resume, or another --out"
            )
    load_state(method, checkpoint["model"], path)
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its optimizer does not fit this run ({error})") from error
    return int(checkpoint["step"])


def load_state(
    method: torch.nn.Module,
    state: dict[str, torch.Tensor],
    path: Path | str,
    *,
    may_lack: Sequence[str] = (),
) -> None:
    """Load a state dict; names that begin like one of `may_lack` may be missing, nothing else.

    Raises:
        ValueError: names what does not fit.
    """
    own = method.state_dict()
    lacking = {n for n in own if n not in state and n.startswith(tuple(may_lack))}
    wrong = [n for n in own if n not in lacking and _shape(state.get(n)) != own[n].shape]
    wrong += [n for n in state if n not in own]
    if wrong:
        raise ValueError(
            f"{path} does not fit this method and number of classes: {len(wrong)} tensors differ, "
            f"first {', '.join(wrong[:3])}"
        )
    method.load_state_dict(state, strict=False)


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, torch.Tensor) else None


def weight_names(method: torch.nn.Module) -> list[str]:
    """The state that is weights: parameters and norms' statistics, not a bank or a teacher."""
    parameters = dict(method.named_parameters())
    norms = ("running_mean", "running_var", "num_batches_tracked")
    return [n for n in method.state_dict() if n in parameters or n.endswith(norms)]


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples become lists, paths strings."""
    return json.loads(json.dumps(value, default=str))


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
