"""The flags of `infer_cam.py` about the copies of an image, and where and how to run."""

from __future__ import annotations

import dataclasses

from tool.cli import DEVICES, positive_int
from tool.flags import flag
from tool.infer.scales import Views
from tool.parallel.machine import spare_cores
from tool.parallel.processes import default_workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewFlags:
    """The flags of the copies of an image that pass through the network.

    Attributes:
        scales: Factors on an image's size, whose maps are summed. By default the recipe's; fewer
            and smaller ones are faster.
        sides: Sides of squares that an image is resized to, in place of --scales. Networks of one
            input size need them.
        mirror: Infer the mirror of each image too, which takes twice the time. By default as the
            recipe says.
    """

    scales: tuple[float, ...] | None = flag(None, exclusive="size", metavar="FACTOR")
    sides: tuple[int, ...] | None = flag(
        None, exclusive="size", type=positive_int, metavar="PIXELS"
    )
    mirror: bool | None = None

    def changed(self, views: Views) -> Views:
        """Return the copies of the flags, else those of `views`."""
        if self.scales or self.sides:
            views = Views(self.scales or (), self.sides, views.mirror)
        mirror = views.mirror if self.mirror is None else self.mirror
        return dataclasses.replace(views, mirror=mirror)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags that say where and how to run.

    Attributes:
        batch_size: Images of one size that are computed together. By default 8 on a GPU and 1 on a
            CPU; give fewer if memory is short.
        num_workers: Processes that decode images in advance. With 0 the main process does.
        crf_workers: CRF processes per rank, for --masks.
        device: Where to compute. With auto it is a GPU if there is one.
        amp: Compute in bf16, which is faster on a GPU.
    """

    batch_size: int | None = flag(None, type=positive_int, metavar="IMAGES")
    num_workers: int = flag(spare_cores, metavar="N")
    crf_workers: int = flag(default_workers, type=positive_int, metavar="N")
    device: str = flag("auto", choices=DEVICES)
    amp: bool = False
