"""Show the progress of a command: a bar on a terminal, a line every `EVERY` seconds in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
EVERY = 30.0  # seconds between two lines


class Bar:
    """A bar on standard error; if that is not a terminal, one line every `EVERY` seconds.

    Args:
        total: Number of items; None if it is not known.
        what: Name of the work, such as "crf".
        unit: Name of an item, such as "image".
        initial: Number of items that were done before.
        quiet: Whether to show nothing, as ranks other than the first do.
        lines: Whether to write the lines. False for a command that writes its own, by `line`.
        unit_scale: As in tqdm.
        leave: Whether the bar stays on the terminal.
    """

    def __init__(
        self,
        total: int | None,
        what: str | None = None,
        *,
        unit: str = "it",
        initial: int = 0,
        quiet: bool = False,
        lines: bool = True,
        unit_scale: bool = False,
        leave: bool = True,
    ) -> None:
        self.total, self.what, self.unit, self.scaled = total, what or "images", unit, unit_scale
        self._file: TextIO = sys.stderr
        self.on_terminal = self._file.isatty()
        self._lines = lines and not quiet and not self.on_terminal
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=unit,
            initial=initial,
            disable=quiet or not self.on_terminal,
            mininterval=1.0,
            unit_scale=unit_scale,
            leave=leave,
        )
        self._done = self._first = initial
        self._start = self._last = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Count items that are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._last >= EVERY:
            self._write(now)

    def note(self, **values: Any) -> None:
        """Show values beside the bar."""
        self._bar.set_postfix(**values)

    def line(self, text: str) -> None:
        """Write a line; for a command that writes its own lines."""
        print(text, file=self._file, flush=True)

    def _write(self, now: float) -> None:
        """Write a line."""
        self._last = now
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        text = progress_line(self._done, self.total, self.unit, rate, scaled=self.scaled)
        self.line(f"{self.what}: {text}")

    def close(self) -> None:
        """End the bar. If lines were written, write a last one with the final count."""
        if self._lines and self._last > self._start:
            self._write(time.monotonic())
        self._bar.close()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def counted(
    items: Iterable[Item], total: int | None, what: str | None = None, **settings: Any
) -> Iterator[Item]:
    """Yield items and show how many are done; the settings are those of `Bar`."""
    with Bar(total, what, **settings) as bar:
        for item in items:
            yield item
            bar.update()


def progress_line(
    done: int, total: int | None, unit: str, rate: float, *, scaled: bool = False
) -> str:
    """Return how far it is, such as `120/405 images, 4.1 images/s, 1:10 to go`."""
    size = 1e6 if scaled else 1
    name = f"M{unit}" if scaled else f"{unit}s"
    number = (lambda value: f"{value / size:.1f}") if scaled else (lambda value: f"{value}")
    of = "" if total is None else f"/{number(total)}"
    left = ""
    if total is not None and rate > 0 and done < total:
        left = f", {clock((total - done) / rate)} to go"
    return f"{number(done)}{of} {name}, {rate / size:.2g} {name}/s{left}"


def clock(seconds: float) -> str:
    """Return a time as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
