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
    """Return the file of the first weights, fetched once if it is a published one."""
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
    """Load the first weights, print what was loaded, and return it; None if there are none.

    If the weights have seen pixel truth, `config` gets a note of it. It is then a part of the
    identity of the run, and of its checkpoints.
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
