"""What a file of weights holds: its dictionaries, the names in them, and words for a message.

Which of its tensors are a backbone's is found by `network.weights.unwrap`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from tool.files import first_few
from tool.formats.beside import Skipped

_DEEPEST = 4  # levels of nested dictionaries that are searched


def plain_name(name: str) -> str:
    """Return the name that a tensor of a `Backbone` has in the network's original codebase."""
    return unflattened(name.removeprefix("net."))


def unflattened(name: str) -> str:
    """Return the name before timm's `features_only`, which turns `stages.0` into `stages_0`."""
    return re.sub(r"^(stages|layers|blocks|features)_(\d+)\.", r"\1.\2.", name)


def containers_of(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the tensors of each dictionary in a file that has some.

    Args:
        content: The content of the file.

    Yields:
        The keys that lead to a dictionary, and {name: tensor} of its tensors.
    """
    for keys, named in _dictionaries(content):
        tensors = {n: item for n, item in named.items() if isinstance(item, Tensor)}
        if tensors:
            yield keys, tensors


def _dictionaries(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every dictionary in a file, outer ones first.

    Args:
        content: The content of the file.

    Yields:
        The keys that lead to a dictionary, and its entries whose keys are strings.
    """
    remaining: list[tuple[tuple[str, ...], dict]] = [((), content)]
    seen = {id(content)}
    while remaining:
        keys, value = remaining.pop(0)
        named = {n: item for n, item in value.items() if isinstance(n, str)}
        yield keys, named
        for name, item in named.items() if len(keys) < _DEEPEST else ():
            if isinstance(item, dict) and id(item) not in seen:
                seen.add(id(item))
                remaining.append(((*keys, name), item))


def starts(name: str) -> list[int]:
    """Return the indices at which the parts of a dotted name begin: 0, and after each dot."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def described(content: dict[str, Any], own: Collection[str] = ()) -> str:
    """Return a description of a file for a message: its first entries, and its first tensors.

    The tensors are those of the largest container.

    Args:
        content: The content of the file.
        own: Plain names of the backbone's tensors. The description tells how many values under
            these names are not tensors.
    """
    _, tensors = max(containers_of(content), key=lambda item: len(item[1]), default=((), {}))
    parts = [quoted(content)]
    if tensors and not set(tensors) <= set(content):
        parts.append(f"tensors {quoted(tensors)}")
    arrays = max(_count_arrays(named, own) for _, named in _dictionaries(content))
    if arrays:
        parts.append(f"its {arrays} values are NumPy arrays, not tensors: save them with torch")
    return "; ".join(parts)


def _count_arrays(named: dict[str, Any], own: Collection[str]) -> int:
    """Count the entries under the backbone's names that the reader skipped, as they are no tensors.

    Args:
        named: The entries of a dictionary.
        own: Plain names of the backbone's tensors.
    """
    skipped = [name for name, value in named.items() if isinstance(value, Skipped)]
    return sum(any(unflattened(n[i:]) in own for i in starts(n)) for n in skipped)


def quoted(names: Collection[str], shown: int = 3) -> str:
    """Return the first names of a file for a message, each cut to 80 characters.

    Args:
        names: The names.
        shown: How many of them to name.
    """
    return first_few([repr(name)[:80] for name in names], shown) or "nothing"
