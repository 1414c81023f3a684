"""Ranges of numbers for the numeric flags. Each range is an `argparse` type.

A numeric flag whose field names no range gets one of `DEFAULTS`. So every numeric flag has bounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import reprlib


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of finite numbers, and the `argparse` type of a flag that takes them.

    `range(text)` parses a number, `value in range` tests one, and `str(range)` describes the range
    for a message. NaN is in no range.

    Attributes:
        low: The lower bound.
        high: The upper bound, finite.
        whole: Whether only ints are parsed.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False

    def __call__(self, text: str) -> float:
        """Parse a number; it is an int if `whole`, else a float.

        Raises:
            argparse.ArgumentTypeError: The text is no number or the number is not in the range;
                names both.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        if value not in self:
            raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not {self}")
        return value

    def __contains__(self, value: float) -> bool:
        is_high = value <= self.high and not (self.below and value == self.high)
        return is_high and value >= self.low and not (self.above and value == self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if not self.above and not self.below:
            return f"{kind} from {_shown(self.low)} to {_shown(self.high)}"
        low = f"{'above' if self.above else 'of at least'} {_shown(self.low)}"
        high = f"{'below' if self.below else 'at most'} {_shown(self.high)}"
        return f"{kind} {low} and {high}"


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


_LARGEST = 2**31 - 1  # of a count
COUNT = Range(0, _LARGEST, whole=True)
POSITIVE = Range(1, _LARGEST, whole=True)
SEED = Range(0, 2**63 - 1, whole=True)  # what torch takes
WORKERS = Range(0, 1024, whole=True)
SOME_WORKERS = Range(1, 1024, whole=True)
STEPS = Range(1, 10**9, whole=True)
EPOCHS = Range(0, 10**6, above=True)
BATCH = Range(1, 2**16, whole=True)
CROP = Range(16, 2**13, whole=True)  # pixels of a side; a network has cells of up to 32
SIDE = Range(1, 2**16, whole=True)  # of what is no crop
STRIDE = Range(1, 32, whole=True)
FACTOR = Range(0, 16, above=True)  # on the size of an image
RATE = Range(0, 1000)
MOMENTUM = Range(0, 1, below=True)
UNIT = Range(0, 1)
ITERATIONS = Range(1, 1000, whole=True)
EXPONENT = Range(0, 1e8, above=True)  # `tool.crf.post.alpha_at` of 1e-6 is 1.4e7
AMOUNT = Range(0, 1e9)
SOME = Range(0, 1e9, above=True)
DEFAULTS = {int: COUNT, float: AMOUNT}
