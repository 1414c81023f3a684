"""Find a backbone's tensors in a file of others: in which container, behind which prefix.

Codebases save a state dict as it is, or inside `state_dict`, `model`, `net`, `ema`, ..., and name
its tensors as they are, or behind `module.`, `backbone.`, `encoder_q.`, ... No list of such words
is needed: the place is where most tensors of the backbone fit by name and shape.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from network.backbones import Backbone
from tool.checkpoint import plain_tensors

COUNTER = "num_batches_tracked"  # of a norm: no weight, and a frozen norm has none
_AVERAGES = ("ema", "teacher", "average")  # preferred where two places fit equally well
_DEEPEST = 4  # levels of dictionaries
_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file holds for a backbone.

    Attributes:
        backbone: name in the backbone's state dict -> tensor of the same shape.
        missing: names in the backbone's state dict, without the counters.
        rest: the other tensors of the same container, without what their names share with the
            prefix.
        prefix: what the names of the backbone's tensors begin with.
        total: tensors of the backbone, without the counters.
        place: which one was taken of several that fit equally well, for a message; else "".
        content: the names in the file, for a message.
    """

    backbone: dict[str, Tensor]
    missing: list[str]
    rest: dict[str, Tensor]
    prefix: str
    total: int
    place: str
    content: str

    @property
    def count(self) -> int:
        """Tensors found, without the counters."""
        return self.total - len(self.missing)


def find_backbone(backbone: Backbone, content: dict[str, Any], path: Path) -> Found:
    """Find the tensors of `backbone` in what a file holds.

    Of places that fit equally well an average of weights (`ema`, `teacher`) is taken, else the
    first in the file.

    Args:
        content: a state dict, or dictionaries around some.
        path: the file that `content` is from.

    Raises:
        ValueError: the container of the tensors holds one that is not plain.
    """
    own = {plain_name(name): (name, t.shape) for name, t in backbone.state_dict().items()}
    containers = list(_containers(content))
    places: list[tuple[int, bool, tuple[str, ...], str]] = []
    for keys, tensors in containers:
        for prefix, count in _prefixes(tensors, own).items():
            words = re.split(r"\W|_", ".".join((*keys, prefix)).lower())
            places.append((count, any(word in words for word in _AVERAGES), keys, prefix))
    count, _, keys, prefix = max(places, key=lambda place: place[:2], default=(0, False, (), ""))
    tensors = plain_tensors(dict(containers).get(keys, {}), path)
    backbone_tensors, rest = _split(tensors, prefix, own)
    needed = [name for name, _ in own.values() if not name.endswith(COUNTER)]
    rivals = [_place(k, p) for c, _, k, p in places if c == count and (k, p) != (keys, prefix)]
    return Found(
        backbone=backbone_tensors,
        missing=[name for name in needed if name not in backbone_tensors],
        rest=rest,
        prefix=prefix,
        total=len(needed),
        place=f"{_place(keys, prefix)} (also in it: {', '.join(rivals)})" if rivals else "",
        content=_describe(content, containers),
    )


def plain_name(name: str) -> str:
    """Return the name of a tensor of a `Backbone` as the network's own codebase has it."""
    return _unflattened(name.removeprefix("net."))


def _unflattened(name: str) -> str:
    """Undo timm's `features_only`, which turns `stages.0` into `stages_0`."""
    return re.sub(r"^(stages|layers|blocks|features)_(\d+)\.", r"\1.\2.", name)


def tensors_named(content: dict[str, Any], ending: str) -> Iterator[Tensor]:
    """Yield every tensor in a file whose name is `ending`, behind whatever prefix."""
    for _, tensors in _containers(content):
        for name, tensor in tensors.items():
            if name == ending or name.endswith(f".{ending}"):
                yield tensor


def _containers(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the dictionaries that hold tensors by name, each with the keys that lead to it."""
    left: list[tuple[tuple[str, ...], dict]] = [((), content)]
    seen = {id(content)}
    while left:
        keys, value = left.pop(0)
        named = {n: item for n, item in value.items() if isinstance(n, str)}
        tensors = {n: item for n, item in named.items() if isinstance(item, Tensor)}
        if tensors:
            yield keys, tensors
        for name, item in named.items() if len(keys) < _DEEPEST else ():
            if isinstance(item, dict) and id(item) not in seen:
                seen.add(id(item))
                left.append(((*keys, name), item))


def _prefixes(tensors: dict[str, Tensor], own: dict[str, tuple[str, Any]]) -> Counter[str]:
    """Count the tensors that fit behind each prefix, the empty one included."""
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        for start in starts:
            if _fits(name[start:], tensor, own):
                counts[name[:start]] += 1
    return counts


def _fits(name: str, tensor: Tensor, own: dict[str, tuple[str, Any]]) -> bool:
    known = own.get(_unflattened(name))
    return known is not None and not tensor.is_nested and tensor.shape == known[1]


def _split(
    tensors: dict[str, Tensor], prefix: str, own: dict[str, tuple[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part the backbone's tensors behind `prefix`, under its own names, from the others.

    The others lose the part of the prefix that they have: beside `module.backbone.conv1.weight`,
    `module.classifier.weight` becomes `classifier.weight`.
    """
    backbone, rest = {}, {}
    shared = [prefix[: m.end()] for m in re.finditer(r"\.", prefix)][::-1]
    for name, tensor in tensors.items():
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and _fits(bare, tensor, own):
            backbone[own[_unflattened(bare)][0]] = tensor
        else:
            start = next((part for part in shared if name.startswith(part)), "")
            rest.setdefault(name.removeprefix(start), tensor)
    return backbone, rest


def _place(keys: tuple[str, ...], prefix: str) -> str:
    parts = [repr("/".join(keys))] * bool(keys) + [f"prefix {prefix!r}"] * bool(prefix)
    return ", ".join(parts)[:80] or "the top level"


def _describe(content: dict[str, Any], containers: list) -> str:
    """Name the first entries of a file, and the first tensors of its largest container."""
    _, tensors = max(containers, key=lambda item: len(item[1]), default=((), {}))
    parts = [_first(content)]
    if tensors and not set(tensors) <= set(content):
        parts.append(f"tensors {_first(tensors)}")
    return "; ".join(parts)


def _first(names: dict[str, Any]) -> str:
    shown = ", ".join(repr(name)[:80] for name in list(names)[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
