"""The flags of `train_fbr.py` that say where and how to run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tool.cli import DEVICES
from tool.flags import flag
from tool.parallel.machine import spare_cores
from tool.ranges import COUNT, POSITIVE, SEED, WORKERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags that say where and how to run.

    Attributes:
        out: Run directory. If it holds a checkpoint of the same run, the run continues.
        seed: Random seed, which determines every draw of the run.
        save_every: Steps between checkpoints, which are what a killed run loses at most.
        log_every: Steps between rows of log.jsonl, points in TensorBoard, and lines of the output
            that is no terminal.
        picture_every: Steps between pictures; the last step gives one too. With 0 there are none.
        num_workers: Processes per rank that load images, by default the cores that the network
            leaves. With 0 the main process loads. The results do not depend on it.
        device: Where to compute. With auto it is a GPU if there is one.
        amp: Compute in bf16, which is faster on a GPU.
        compile: Compile the backbone with torch.compile, which pays off in long runs. inductor, the
            kind without a value, needs triton on a GPU and a C++ compiler on a CPU.
    """

    out: Path
    seed: int = flag(0, type=SEED)
    save_every: int = flag(200, type=POSITIVE, metavar="STEPS")
    log_every: int = flag(20, type=POSITIVE, metavar="STEPS")
    picture_every: int = flag(200, type=COUNT, metavar="STEPS")
    num_workers: int = flag(spare_cores, type=WORKERS, metavar="N")
    device: str = flag("auto", choices=DEVICES)
    amp: bool = False
    compile: str | None = flag(
        None, nargs="?", const="inductor", choices=("inductor", "cudagraphs", "aot_eager")
    )
