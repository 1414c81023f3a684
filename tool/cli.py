"""Command-line conventions of all stages: a user's error ends in one clear line."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

SYSTEMS = "this project runs on Linux, on macOS, and in WSL on Windows"
USER_ERRORS = (ValueError, OSError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports a bad command line in one line and adds `--traceback`."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(
            formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs
        )
        self.add_argument(
            "--traceback", action="store_true", help="show the whole traceback of an error"
        )

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2; under torchrun only the first rank prints."""
        line = f"{self.prog}: error: {message} (--help lists the flags)\n"
        # All ranks have the same flags, so one of them speaks for all.
        self.exit(2, None if int(os.environ.get("RANK", 0)) else line)


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line, with the file name if the system gave one."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def program_name(path: str) -> str:
    """Return what messages call a program: the name of its file, of a package's command both.

    >>> program_name("/project/network/predict/__main__.py")
    'network.predict'
    """
    *folders, name = path.split("/")
    return ".".join(folders[-2:]) if name == "__main__.py" else name


def run_stage(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run `main` as a program; an error that a user can cause ends in one line and exit status 2.

    A `ValueError`, `OSError` or `FloatingPointError` is the user's. Anything else is an error of
    this program and keeps its traceback. With `--traceback` the user's errors show theirs too. A
    system without POSIX is refused in the same way.

    Args:
        main: Takes the arguments, None for those of the process, and returns the exit status.
    """
    if importlib.util.find_spec("fcntl") is None:  # file locks and process groups need POSIX
        program = program_name(sys.argv[0])
        print(f"{program}: error: {SYSTEMS}, not {platform.system()}", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(main(None) or 0)
    except USER_ERRORS as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        program = program_name(sys.argv[0])
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def positive_float(text: str) -> float:
    """Parse a finite number above 0; an `argparse` type."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0; an `argparse` type."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a number of at least 0")
    return value


def positive_int(text: str) -> int:
    """Parse an integer of at least 1; an `argparse` type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
