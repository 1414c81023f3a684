"""How many bytes the calls in a pickle make, found without running it.

`torch.load(weights_only=True)` allows two calls that make bytes: `bytearray` of a number, and
`_codecs.encode`, which some encodings make grow with each call. A small file could so fill the
memory. It also hashes keys, and the hash of nested tuples that share their parts takes time that
doubles with each level. Here a pickle is run on stand-ins that know a kind and a length only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickletools
from typing import Any, BinaryIO

_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")  # of which a letter takes few bytes
_WIDEST = 4  # bytes of a letter
_ENCODE, _BYTEARRAY = "_codecs encode", ("builtins bytearray", "__builtin__ bytearray")


class CostError(Exception):
    """A pickle that would take more memory or time than its size says."""


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of a value.

    Attributes:
        kind: "text", "bytes", "name", "tuple", "mark", or "" for anything else.
        content: The text, the name, the items of a tuple, or something as long as the bytes.
        size: How many values there are in it when it is written out.
    """

    kind: str = ""
    content: Any = None
    size: int = 1


_OTHER, _MARK = _Value(), _Value("mark")


def check_calls(file: BinaryIO, limit: int) -> None:
    """Read the next pickle of a file, and check the calls that make bytes, and the tuples.

    A broken pickle is checked up to the broken place, which torch does not pass either.

    Args:
        file: The file.
        limit: The most bytes that all calls together may make, and values that a tuple may have.

    Raises:
        CostError: A call has arguments that no weights have, or there are more bytes or values.
    """
    stack: list[_Value] = []
    memo: dict[Any, _Value] = {}
    made = 0
    with contextlib.suppress(IndexError, KeyError, ValueError):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                new = _bytes_made(function, arguments)
                made += new
                if made > limit:
                    raise CostError(f"its calls make more than {limit} bytes")
                stack.append(_Value("bytes", range(new)) if function.content == _ENCODE else _OTHER)
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if opcode.name == "MEMOIZE" else argument] = stack[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            else:
                _step(stack, opcode, argument)
                if stack and stack[-1].size > limit:
                    raise CostError(f"a tuple in it has more than {limit} values")


def _step(stack: list[_Value], opcode: pickletools.OpcodeInfo, argument: Any) -> None:
    """Do to a stack what an opcode does that calls nothing, and neither reads nor writes a memo."""
    # What it takes off the stack: everything down to a mark, or a number of values.
    before, after = opcode.stack_before, opcode.stack_after
    taken: list[_Value] = []
    if opcode.name in ("POP", "DUP"):
        taken = [stack.pop()]
        stack.extend(taken * (2 if opcode.name == "DUP" else 0))
        return
    if pickletools.markobject in before:
        while stack[-1] is not _MARK:
            taken.append(stack.pop())
        stack.pop()
        taken.reverse()
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    # What it puts there.
    if opcode.name in ("GLOBAL", "INST"):
        stack.append(_Value("name", argument))
    elif opcode.name in _TEXTS:
        stack.append(_Value("text", argument))
    elif opcode.name in _BYTES:
        stack.append(_Value("bytes", argument))
    elif opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
        items = taken if opcode.name == "TUPLE" else taken[::-1]
        stack.append(_Value("tuple", tuple(items), 1 + sum(item.size for item in items)))
    elif opcode.name == "MARK":
        stack.append(_MARK)
    else:
        stack.extend(_OTHER for _ in after)


def _bytes_made(function: _Value, arguments: _Value) -> int:
    """Return at most how many bytes a call makes; 0 for a function that makes none.

    Raises:
        CostError: The arguments are not those with which bytes are written.
    """
    if function.kind != "name":
        return 0
    items = arguments.content if arguments.kind == "tuple" else (None,)
    if function.content == _ENCODE:
        if [getattr(item, "kind", None) for item in items] != ["text", "text"]:
            raise CostError("it encodes something that is no text")
        if items[1].content not in _ENCODINGS:
            raise CostError(f"it encodes a text as {items[1].content[:20]!r}")
        return _WIDEST * len(items[0].content)
    if function.content in _BYTEARRAY:
        if not all(item is not None and item.kind in ("text", "bytes") for item in items):
            raise CostError("it calls bytearray with something that is no content")
        return sum(_WIDEST * len(item.content) for item in items)
    return 0
