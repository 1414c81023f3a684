"""Search for a backbone's tensors in a foreign checkpoint: the container and the prefix.

Some codebases save a plain state dict. Others put it into a dictionary under `state_dict`, `model`,
`net`, `ema` and the like. Some add a prefix to the names of its tensors, such as `module.`,
`backbone.` or `encoder_q.`. No list of such words is needed: the right place, a container and a
prefix, is the one where most tensors of the backbone fit by name and shape.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from network.backbones import Backbone
from network.weights.caffe import in_our_form, is_caffes, our_name
from network.weights.contents import containers_of, described, plain_name, starts, unflattened
from tool.formats.checkpoint_content import plain_tensors
from tool.train.run_directory import COUNTER

NEEDED = 0.9  # a file must have this share of a backbone's tensors
OURS = "backbone.net."  # the prefix of a backbone's tensors in the files of this codebase
_AVERAGES = ("ema", "teacher", "average")  # preferred if several places fit equally well


@dataclasses.dataclass(frozen=True)
class Found:
    """The tensors that a file holds for a backbone.

    The counters of BatchNorms (`num_batches_tracked`) do not count.

    Attributes:
        backbone: {name in the backbone's state dict: tensor of the same shape}.
        missing: Names in the backbone's state dict that the file lacks, without the counters.
        rest: The other tensors of the same container. The part that their names share with the
            prefix is removed.
        prefix: The beginning of the names of the backbone's tensors in the file.
        total: Number of tensors of the backbone, without the counters.
        place: A note for the user that names the place that was chosen, if several fit equally
            well; else "".
        content: The first names in the file, for a message.
        form: A note for the user about a file of Caffe's form; else "".
        refitted: A note for the user that names the tensors that were changed to fit; else "".
        caffe_names: Whether the file has the names of Caffe's ResNet. They are translated in
            `backbone`.
    """

    backbone: dict[str, Tensor]
    missing: list[str]
    rest: dict[str, Tensor]
    prefix: str
    total: int
    place: str
    content: str
    form: str
    refitted: str
    caffe_names: bool

    @property
    def enough(self) -> bool:
        """Whether the file has at least the share `NEEDED` of the backbone's tensors."""
        return self.count >= NEEDED * self.total

    @property
    def notes(self) -> list[str]:
        """The notes for the user: what was assumed about the file."""
        return [note for note in (self.place, self.form, self.refitted) if note]

    @property
    def count(self) -> int:
        """Number of tensors found, without the counters."""
        return self.total - len(self.missing)


class _Place(NamedTuple):
    """A place in a file: the `keys` that lead to a container, and a `prefix` of names in it.

    It holds `count` tensors of the backbone. `is_average` says whether a key or the prefix contains
    a word of `_AVERAGES`.
    """

    count: int
    is_average: bool
    keys: tuple[str, ...]
    prefix: str


def find_backbone(
    backbone: Backbone, content: dict[str, Any], path: Path, *, prefix: str | None = None
) -> Found:
    """Find the tensors of `backbone` in the content of a file.

    If several places fit equally well, an average of weights (`ema`, `teacher`) is chosen, or else
    the first place in the file.

    Args:
        backbone: The backbone, whose state dict has the names and shapes to look for.
        content: The content of the file: a state dict, or dictionaries that contain some.
        path: The file, for messages.
        prefix: The beginning of the backbone's names if `content` is a state dict of this codebase;
            None to search for the place.

    Returns:
        What was found, which may be nothing.

    Raises:
        ValueError: The container has a tensor that is not plain; or the file has enough tensors,
            but is of another form of ResNet (see `network.weights.caffe`).
    """
    # Find the place with most tensors of the backbone.
    own = {plain_name(name): (name, t.shape) for name, t in backbone.state_dict().items()}
    named = list(containers_of(content))
    containers = [
        (keys, {our_name(n): backbone.fitted(n, t) for n, t in tensors.items()})
        for keys, tensors in named
    ]
    places = _places(containers, own) if prefix is None else [_Place(0, False, (), prefix)]
    best = max(places, key=lambda place: place[:2], default=_Place(0, False, (), ""))
    tensors = plain_tensors(dict(containers).get(best.keys, {}), path)
    # Separate its tensors from those of other networks in the same container. Behind the prefix of
    # another network at least half as many tensors fit; if fewer do, they fit by accident.
    others = [place for place in places if place != best]
    near = [p.prefix for p in others if p.keys == best.keys and 2 * p.count >= best.count]
    backbone_tensors, rest = _split(tensors, best.prefix, near, own)
    needed = [name for name, _ in own.values() if not name.endswith(COUNTER)]
    # Name the places that fit equally well, so that the user can object to the choice.
    rivals = [_named(place) for place in others if place.count == best.count]
    found = Found(
        backbone=backbone_tensors,
        missing=[name for name in needed if name not in backbone_tensors],
        rest=rest,
        prefix=best.prefix,
        total=len(needed),
        place=f"{_named(best)} (also in it: {', '.join(rivals)})" if rivals else "",
        content=described(content, own),
        form="",
        refitted=_refitted(backbone_tensors, dict(named).get(best.keys, {}), best.prefix),
        caffe_names=any(map(is_caffes, dict(named).get(best.keys, {}))),
    )
    # Check the form of a ResNet. A checkpoint of this codebase names its backbone, and so its form.
    if prefix is not None or not found.enough:
        return found
    try:
        tensors, form = in_our_form(
            backbone,
            backbone_tensors,
            named=found.caffe_names,
            ours=best.prefix.endswith(OURS),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dataclasses.replace(found, backbone=tensors, form=form)


def _refitted(taken: dict[str, Tensor], given: dict[str, Tensor], prefix: str) -> str:
    """Name the tensors of a backbone that have another shape in the file; "" if none has."""
    names = [
        plain_name(name)
        for name, tensor in taken.items()
        if (theirs := given.get(prefix + plain_name(name))) is not None
        and theirs.shape != tensor.shape
    ]
    return f"resampled: {', '.join(names)}" if names else ""


def _places(containers: list, own: dict[str, tuple[str, Any]]) -> list[_Place]:
    """Return every place where some tensor of the backbone fits, in the order of the file.

    Args:
        containers: The keys that lead to each container, and its {name: tensor}.
        own: {plain name of a tensor of the backbone: (name in its state dict, shape)}.
    """
    places = []
    for keys, tensors in containers:
        for prefix, count in _prefixes(tensors, own).items():
            words = re.split(r"\W|_", ".".join((*keys, prefix)).lower())
            places.append(_Place(count, any(w in words for w in _AVERAGES), keys, prefix))
    return places


def _prefixes(tensors: dict[str, Tensor], own: dict[str, tuple[str, Any]]) -> Counter[str]:
    """Count for each prefix, the empty one included, the tensors that fit once it is removed.

    Args:
        tensors: {name: tensor} of a container.
        own: As for `_places`.

    Returns:
        {prefix: count}, without prefixes of count 0.
    """
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        for start in starts(name):
            if _fits(name[start:], tensor, own):
                counts[name[:start]] += 1
    return counts


def _fits(name: str, tensor: Tensor, own: dict[str, tuple[str, Any]]) -> bool:
    known = own.get(unflattened(name))
    return known is not None and not tensor.is_nested and tensor.shape == known[1]


def _split(
    tensors: dict[str, Tensor], prefix: str, near: list[str], own: dict[str, tuple[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate the backbone's tensors, whose names begin with `prefix`, from the others.

    The backbone's tensors get their names in its state dict. From the names of the others, the part
    that they share with the prefix is removed. For example, if the backbone has
    `module.backbone.conv1.weight`, `module.classifier.weight` becomes `classifier.weight`. If two
    tensors would get the same name, the one that shared more of the prefix gets it and the other is
    left out. So are tensors whose names are closer to the prefix of another network.

    Args:
        tensors: {name: tensor} of the container.
        prefix: The beginning of the names of the backbone's tensors.
        near: The prefixes of other networks in the same container.
        own: {plain name of a tensor of the backbone: (name in its state dict, shape)}.

    Returns:
        {name: tensor} of the backbone, and of the others.
    """
    backbone: dict[str, Tensor] = {}
    others: list[tuple[int, str]] = []
    for name, tensor in tensors.items():
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and _fits(bare, tensor, own):
            backbone[own[unflattened(bare)][0]] = tensor
            continue
        closeness = _closeness(name, prefix)
        if all(_closeness(name, other) <= closeness for other in near):
            others.append((closeness[0], name))
    rest: dict[str, Tensor] = {}
    for shared, name in sorted(others, key=lambda item: -item[0]):
        rest.setdefault(name[shared:], tensors[name])
    return backbone, rest


def _closeness(name: str, prefix: str) -> tuple[int, int]:
    """Return how close a name is to a prefix, as a tuple that is larger for a closer name.

    Returns:
        The number of leading characters that both share, counted in whole parts; and minus the
        number of parts of the prefix that the name lacks.
    """
    ends = starts(prefix)
    shared = max(end for end in ends if name.startswith(prefix[:end]))
    return shared, -sum(end > shared for end in ends)


def _named(place: _Place) -> str:
    parts = [repr("/".join(place.keys))] * bool(place.keys)
    parts += [f"prefix {place.prefix!r}"] * bool(place.prefix)
    return ", ".join(parts)[:80] or "the top level"
