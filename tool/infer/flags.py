"""The flags of `infer_cam.py` about the copies of an image, and where and how to run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tool.cli import DEVICES
from tool.flags import flag
from tool.infer.scales import Views
from tool.parallel.machine import spare_cores
from tool.parallel.processes import default_workers
from tool.ranges import BATCH, FACTOR, SIDE, SOME_WORKERS, STRIDE, WORKERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """The flags of the output: which files are written, and to which folder.

    Attributes:
        out: Folder that receives the CAMs, one ID.npy per image.
        masks: Folder that receives masks, made in the same pass as stage 3 makes them. Give it
            without --out if you want no CAM files.
        argmax: Folder that receives masks without a CRF, from the same pass, alone or beside the
            others. Each pixel gets its best class, or the background. The background is a row of
            the maps if the method has one, else it is --threshold, by default the method's.
        cam_stride: Pixels per stored value. With 4 a file has a 16th of the size, and stages 3 and
            4 enlarge it.
        with_labels: Keep only the classes of an image's label, though the method infers without:
            for a further round of training, or to tell confused classes from bad masks.
    """

    out: Path | None = None
    masks: Path | None = None
    argmax: Path | None = None
    cam_stride: int = flag(1, type=STRIDE, metavar="PIXELS")
    with_labels: bool = False

    def __post_init__(self) -> None:
        if not self.folders():
            raise ValueError("give --out for CAMs, --masks or --argmax for masks, or several")
        if len({folder.resolve() for folder in self.folders()}) < len(self.folders()):
            raise ValueError("--out, --masks and --argmax must be different folders")

    def folders(self) -> list[Path]:
        """Return the folders that were given."""
        return [folder for folder in (self.out, self.masks, self.argmax) if folder is not None]


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
        max_side: Reduce a larger image first, so that its longer side has this many pixels. By
            default 1024 for photographs of your own (--dataset folder), or 512 with resnet38d, as
            their memory would else be tens of GB, and no limit for the benchmarks. A CAM has the
            reduced size, or its share of the image's own with --cam-stride; a mask has the image's
            own.
    """

    scales: tuple[float, ...] | None = flag(None, type=FACTOR, exclusive="size", metavar="FACTOR")
    sides: tuple[int, ...] | None = flag(None, exclusive="size", type=SIDE, metavar="PIXELS")
    mirror: bool | None = None
    max_side: int | None = flag(None, type=SIDE, metavar="PIXELS")

    def changed(self, views: Views, *, max_side: int | None = None) -> Views:
        """Return `views` with the changes that the flags ask for.

        Args:
            views: The copies of the recipe.
            max_side: Of the dataset, in place of a flag that is not given.

        Raises:
            ValueError: A scale is not positive.
        """
        if self.scales or self.sides:
            views = Views(self.scales or (), self.sides, views.mirror)
        mirror = views.mirror if self.mirror is None else self.mirror
        return dataclasses.replace(views, mirror=mirror, max_side=self.max_side or max_side)


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

    batch_size: int | None = flag(None, type=BATCH, metavar="IMAGES")
    num_workers: int = flag(spare_cores, type=WORKERS, metavar="N")
    crf_workers: int = flag(default_workers, type=SOME_WORKERS, metavar="N")
    device: str = flag("auto", choices=DEVICES)
    amp: bool = False
