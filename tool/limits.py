"""The machine's limits: how to recognise the error when one is reached, and which flags help.

Torch has no types for most of these errors, so their messages decide. Nothing here imports it.
"""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit of the machine, such as its memory, and how to recognise that it is reached.

    An error means that the limit is reached if its number is in `errnos`, its message contains one
    of `texts`, or its type is one of `types`.

    Attributes:
        name: The beginning of the message for the user, such as "too little memory"; empty if the
            error's own text suffices.
        errnos: Error numbers of the system.
        texts: Parts of messages, in lower case.
        types: Names of exceptions.
        flags: Flags that help. The message names the first few that the command has.
        more: Other advice for the message.
    """

    name: str
    errnos: frozenset[int]
    texts: tuple[str, ...]
    types: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    more: str = ""

    def line(self, error: BaseException, flags: Collection[str]) -> str:
        """Return the message for the user about an error.

        Args:
            error: The error.
            flags: The flags that the command has.
        """
        ways = [f"{CHANGES[flag]} {flag}" for flag in self.flags if flag in flags][:5]
        if self.more:
            ways.append(self.more)
        text = " ".join(str(error).split()) or type(error).__name__
        said = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        begin = f"{self.name} ({said})" if self.name else said
        return begin + (f"; what helps: {_either(ways)}" if ways else "")


_LONGEST = 160  # characters of torch's own message, which can be pages
CHANGES = {
    "--num-workers": "fewer",
    "--workers": "fewer",
    "--crf-workers": "fewer",
    "--batch-size": "a smaller",
    "--accumulate": "a larger",
    "--crop": "a smaller",
    "--scales": "fewer or smaller",
    "--sides": "fewer or smaller",
    "--max-side": "a smaller",
    "--long-side": "a smaller",
}
_SIZES = ("--batch-size", "--accumulate", "--crop", "--scales", "--max-side")
_WORKERS = ("--num-workers", "--workers", "--crf-workers")

# The first that fits counts: torch names /dev/shm, too, when it reports open files.
LIMITS = (
    Limit("", frozenset(), ("worker process died (killed",), flags=(*_WORKERS, *_SIZES)),
    Limit("", frozenset(), ("symlink loop from",)),  # `Path.resolve` until Python 3.12
    Limit(
        "too many open files",
        frozenset({errno.EMFILE, errno.ENFILE}),
        ("too many open files", "received 0 items of ancdata"),
        flags=_WORKERS,
        more="a higher `ulimit -n`",
    ),
    Limit(
        "too little shared memory (/dev/shm)",
        frozenset(),
        (
            "shared memory",
            "torch_shm",
            "</torch_",
            "bus error",
            "(signal 7)",  # SIGBUS on Linux: a page of /dev/shm that there is no room for
        ),
        flags=(*_WORKERS, "--batch-size"),
        more="a larger /dev/shm (docker run --shm-size)",
    ),
    Limit(
        "too little GPU memory",
        frozenset(),
        (
            "cuda out of memory",
            "hip out of memory",
            "cuda error: out of memory",
            "cudnn_status_alloc_failed",
            "cublas_status_alloc_failed",
            "cuda_error_out_of_memory",
        ),
        ("OutOfMemoryError",),
        flags=_SIZES,
    ),
    Limit(
        "too many processes or threads",
        frozenset({errno.EAGAIN}),
        ("can't start new thread",),
        flags=_WORKERS,
        more="a higher `ulimit -u`",
    ),
    Limit(
        "too little memory",
        frozenset({errno.ENOMEM}),
        (
            "allocate memory",  # torch's CPU allocator, and the system
            "not enough memory",
            "unable to allocate",  # NumPy
            "out of memory",
            "could not create a",  # oneDNN
            "std::bad_alloc",
            "bad allocation",
            "insufficient memory",  # OpenCV
        ),
        ("MemoryError",),
        flags=(*_SIZES, *_WORKERS),
    ),
)
MEMORY = tuple(limit for limit in LIMITS if limit.name.endswith(" memory"))
_KINDS = (RuntimeError, OSError, MemoryError)
_NAMED = re.compile(r"'[^']*'|\"[^\"]*\"")  # names of files, which say nothing of the machine


def limit_of(error: BaseException) -> Limit | None:
    """Return the limit of the machine that an error reports, or None.

    What the error was raised from counts, too. A `ValueError` never does: it is a message of ours,
    which says already what helps.
    """
    one: BaseException | None = error
    while one is not None and (isinstance(one, _KINDS) or type(one).__module__ == "cv2"):
        if found := _limit_of_one(one):
            return found
        one = one.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, of the machine or a GPU, did not suffice."""
    return limit_of(error) in MEMORY


def raise_if_limit(error: BaseException) -> None:
    """Raise an error of the system again if it reports a limit of the machine.

    A reader of files calls it before it says that a file is broken.
    """
    if isinstance(error, OSError) and limit_of(error) is not None:
        raise error


def _limit_of_one(error: BaseException) -> Limit | None:
    number = error.errno if isinstance(error, OSError) else None
    names = {kind.__name__ for kind in type(error).__mro__}
    text = "" if number is not None else _NAMED.sub("", str(error)).lower()
    for limit in LIMITS:
        by_text = any(part in text for part in limit.texts)
        if number in limit.errnos or by_text or names & set(limit.types):
            return limit
    return None


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"
