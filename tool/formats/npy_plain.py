"""Turn the content of a pickle into plain data: arrays in place of their stand-ins."""

from __future__ import annotations

import numpy as np

from tool.formats import npy_standins

_CONTAINERS = (list, tuple, set, frozenset)


def plain(value: object, *, limit: int) -> object:
    """Return `value` with every stand-in replaced by its array.

    A part that is referred to twice is converted once. Nested references could still say
    exponentially many values in a small file, and a reader would write them out.

    Args:
        value: The content of a pickle.
        limit: The most values that it may have when it is written out: the bytes of its file.

    Raises:
        ValueError: A part is not plain data, or there are too many values.
        RecursionError: A container contains itself.
    """
    return _converted(value, {}, limit)[0]


def _converted(
    value: object, done: dict[int, tuple[object, int]], limit: int
) -> tuple[object, int]:
    """Return a part as `plain` does, and how many values it has when it is written out.

    Args:
        value: The part.
        done: What was returned so far, by the identity of the part.
        limit: As for `plain`.
    """
    if id(value) in done:
        return done[id(value)]
    parts: list[tuple[object, int]] = []

    def inner(part: object) -> object:
        parts.append(_converted(part, done, limit))
        return parts[-1][0]

    # An array, or the one object of an object array, which may hold stand-ins itself.
    if isinstance(value, npy_standins.ArrayStandIn):
        element = value.value()
        result = element if isinstance(element, np.ndarray) else inner(element)
    # Containers of exactly these types, and plain values. Anything else is refused.
    elif type(value) is dict:
        result = {inner(key): inner(item) for key, item in value.items()}
    elif isinstance(value, _CONTAINERS) and type(value) in _CONTAINERS:
        result = type(value)([inner(item) for item in value])
    elif value is None or isinstance(
        value, str | bytes | bytearray | bool | int | float | complex | np.ndarray | np.generic
    ):
        result = value
    else:
        raise ValueError(f"a {type(value).__name__} in the pickle")
    count = 1 + sum(size for _, size in parts)
    if count > limit:
        raise ValueError(f"more than {limit} values in {limit} bytes")
    done[id(value)] = result, count
    return result, count
