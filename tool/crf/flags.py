"""The flags of stages 2 and 3 that say how masks are made from CAMs."""

from __future__ import annotations

import dataclasses
from typing import Any

from tool.crf.dense import BACKENDS, PRESETS, pick_backend, preset_of
from tool.crf.post import PRESET, Post
from tool.flags import flag
from tool.ranges import EXPONENT, ITERATIONS, UNIT


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrfFlags:
    """The flags that determine how a mask is made; None means the method's setting.

    Attributes:
        preset: Kernels of the CRF. By default those of the method that made the CAMs: fbr80 for
            most and for foreign CAMs, and no CRF for irn. With --seeds it is label50.
        iterations: Mean-field steps of the CRF, by default the preset's own. Fewer are faster.
        alpha: The background scores (1 - best class)^ALPHA, so a larger one gives more foreground.
            By default the method's, 8 for most.
        seeds: Write confident seeds in place of masks: foreground above FG, background below BG,
            255 between. Without numbers the thresholds are those of the method that made the CAMs
            (0.30 0.05 for cam). For CAMs with a background row they are factors on that row.
        threshold: Make masks without a CRF: foreground where the best class is above T. Choose it
            for CAMs that follow edges already, such as IRN's (0.25).
        backend: Library that computes the CRF. With auto it is torch on a GPU, else pydensecrf if
            it is installed, else torch. Their masks differ in few pixels of a thousand.
    """

    preset: str | None = flag(None, choices=tuple(PRESETS))
    iterations: int | None = flag(None, type=ITERATIONS, metavar="N")
    alpha: float | None = flag(None, type=EXPONENT)
    seeds: list[float] | None = flag(
        None, type=UNIT, nargs="*", metavar=("FG", "BG"), renamed="--seed"
    )
    threshold: float | None = flag(None, type=UNIT, metavar="T", renamed="--no-crf")
    backend: str = flag("auto", choices=BACKENDS)

    def refuse_unused(self) -> None:
        """Raise `ValueError` if `--threshold` is given with a flag of the CRF, which has no use."""
        for name in ("preset", "iterations", "alpha") if self.threshold is not None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"--threshold makes masks without a CRF: give no --{name} with it")


def crf_settings(flags: CrfFlags, post: Post) -> dict[str, Any]:
    """Return the settings of a `PostProcess` from the flags and the method's defaults.

    Args:
        flags: The flags.
        post: Settings of the method that made the CAMs, used for flags that were not given.

    Returns:
        The arguments `preset`, `alpha`, `seeds`, `threshold`, `backend` and `device` of a
        `PostProcess`, by name.

    Raises:
        ValueError: `--seeds` has one number or more than two, or the backend is not installed.
    """
    seeds = None if flags.seeds is None else tuple(flags.seeds) or post.seeds
    if seeds is not None and len(seeds) != 2:
        raise ValueError(f"--seeds takes FG and BG, or no number, not {len(seeds)} numbers")
    threshold, preset, iterations = flags.threshold, flags.preset, flags.iterations
    if preset is None:
        # A method without a CRF keeps its threshold, unless a flag needs a CRF.
        crf_wanted = seeds is not None or iterations is not None or flags.alpha is not None
        if post.preset is None and threshold is None and not crf_wanted:
            threshold = post.threshold
        # The method's number of iterations belongs to its own preset, not to that of seeds.
        preset = "label50" if seeds else post.preset or PRESET
        iterations = iterations or (None if seeds else post.iterations)
    backend, device = pick_backend(flags.backend)
    return {
        "preset": preset_of(preset, iterations),
        "alpha": post.alpha if flags.alpha is None else flags.alpha,
        "seeds": seeds,
        "threshold": threshold,
        "backend": backend,
        "device": device,
    }
