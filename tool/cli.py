"""Command-line conventions of all commands: help that explains, errors in one clear line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import importlib.util
import os
import platform
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tool.files import meant
from tool.limits import limit_of

SYSTEMS = "this project runs on Linux, on macOS, and in WSL on Windows"
DEVICES = ("auto", "cpu", "cuda")
USER_ERRORS = (ValueError, OSError, FloatingPointError)
BROKEN_IMAGE = "is broken or no image"  # how messages about an image that cannot be read begin
_UNKNOWN = "unrecognized arguments"  # how argparse begins
# What other code calls flags of this project.
_ELSEWHERE = {
    "--learning-rate": "--lr",
    "--output": "--out",
    "--output-dir": "--out",
    "--data-root": "--root",
    "--workers": "--num-workers",
    "--arch": "--backbone",
    "--network": "--backbone",
    "--crop-size": "--crop",
    "--gpu": "--device",
    "--wd": "--weight-decay",
    "--max-steps": "--steps",
    "--iters": "--steps",
}
_SKIP = "--skip-bad-images"
_NO_PERMISSION = "you have no permission to read it or to write there"
# What the short texts of the system leave open.
_MEANING = {
    errno.EEXIST: "a folder is needed, and this is a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "a file is needed, and this is a folder",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
}
_LONGEST = 4000  # characters of a line; a command that it recommends, with its paths, fits
_flags: set[str] = set()  # of the command that runs, for messages that name them


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with one form of help, which reports a bad command line in one line.

    Args:
        module: Name of the module that is the program; its docstring says what it does.
        example: Flags of a useful call, shown at the end of the help.
        more: A further paragraph of the help.
    """

    def __init__(self, module: str, *, example: str, more: str = "") -> None:
        command = command_of(module)
        super().__init__(
            prog=command,
            description=f"{sys.modules[module].__doc__ or ''}\n\n{more}",
            epilog=f"Example:\n  {command} {example}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="Show this help.")
        self.add_argument(
            "--traceback",
            action="store_true",
            default=None,
            help="Show the whole traceback of an error.",
        )

    def parse_known_args(self, *args: Any, **settings: Any) -> Any:
        """Parse as ever; note which flags there are."""
        _flags.clear()
        _flags.update(self._option_string_actions)
        return super().parse_known_args(*args, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2; under torchrun only the first rank prints."""
        unknown = message.removeprefix(f"{_UNKNOWN}: ").split()[0].partition("=")[0]
        if message.startswith(_UNKNOWN) and unknown.startswith("--"):
            other = _ELSEWHERE.get(unknown.replace("_", "-"))
            known = self._option_string_actions
            message += f" (is {other} meant?)" if other in known else meant(unknown, known)
        line = f"{self.prog}: error: {printable(message)} (--help lists the flags)\n"
        # All ranks have the same flags, so one of them speaks for all.
        self.exit(2, None if int(os.environ.get("RANK", 0)) else line)


class _HelpFormatter(argparse.HelpFormatter):
    """A formatter that keeps paragraphs and examples, and adds defaults that say something."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip().split("\n\n")
        return "\n\n".join(
            block if "\n  " in block else super(_HelpFormatter, self)._fill_text(block, width, "")
            for block in blocks
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        value = getattr(action, "shown", action.default)
        if value in (None, [], argparse.SUPPRESS, dataclasses.MISSING):
            return action.help
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if isinstance(value, bool):
            shown = "on" if value else "off"
        return f"{action.help} Default: {shown.replace('%', '%%')}."


class Renamed(argparse.Action):
    """The old name of a flag, which ends in one line that names the new one (`const`)."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """End the program with one line that names the new flag."""
        parser.error(f"{self.option_strings[0]} is now called {self.const}")


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line, with the file name if the system gave one.

    What the text of the system leaves open follows in parentheses. The line is cut if it is long.
    What a terminal would not print but obey is escaped.
    """
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        more = f" ({meaning})" if (meaning := _MEANING.get(error.errno or 0)) else ""
        return printable(f"{named}{error.strerror}{more}")
    return printable(" ".join(str(error).split()) or type(error).__name__)


def printable(text: str) -> str:
    """Return a text for one line of a terminal, cut and escaped; see `one_line`."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def command_of(module: str) -> str:
    """Return the command that runs a module, as one types it, such as `python -m data.toy`."""
    spec = sys.modules[module].__spec__  # None for a file that is run by its path
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    return f"python -m {name}" if "." in name else f"python {name}.py"


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless files ran out, which the main thread meets too."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno == errno.EMFILE):
        threading.__excepthook__(failed)


def run_stage(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run `main` as a program; an error that a user can cause ends in one line and exit status 2.

    A `ValueError`, `OSError` or `FloatingPointError` is the user's. So is an error of any type that
    reports a limit of the machine (`tool.limits`): the line names the command's flags that help.
    Anything else is an error of this program and keeps its traceback. With `--traceback` the user's
    errors show theirs too. A system without POSIX is refused in the same way.

    Args:
        main: Takes the arguments, None for those of the process, and returns the exit status.
    """
    command = command_of(main.__module__)
    threading.excepthook = _thread_failed
    if importlib.util.find_spec("fcntl") is None:  # file locks and process groups need POSIX
        print(f"{command}: error: {SYSTEMS}, not {platform.system()}", file=sys.stderr)
        sys.exit(2)
    # From here on Ctrl-C is an exception, so that files are closed and temporary ones are removed.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = _status_of(main, command)
    except KeyboardInterrupt:
        status = 130
    finally:
        signal.signal(signal.SIGINT, before)  # a library that is closed may print a traceback, too
    sys.exit(status)


def _reader_is_gone() -> bool:
    """Print what is still to be printed; return whether nobody reads it, as behind `| head`."""
    if sys.stdout is None:  # as behind `>&-`
        return False
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # no file, as in tests
        return False
    look = select.poll()
    look.register(output, 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in look.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more at its end
    return gone


def _status_of(main: Callable[[Sequence[str] | None], int | None], command: str) -> int:
    """Run `main`; return the exit status, 2 after a line that says what a user can mend."""
    try:
        status = main(None) or 0
        _reader_is_gone()
        return status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE  # as if the signal had ended it
        limit = limit_of(error)
        if limit is None and not isinstance(error, USER_ERRORS):
            raise
        if "--traceback" in sys.argv:
            traceback.print_exc()
        line = one_line(error) if limit is None else printable(limit.line(error, _flags))
        if BROKEN_IMAGE in line and _SKIP in _flags and _SKIP not in sys.argv:
            line += f" ({_SKIP} leaves such images out)"
        print(f"{command}: error: {line}", file=sys.stderr)
        return 2
