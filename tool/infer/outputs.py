"""The files that stage 2 writes: the maps of each image, its masks, or both."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tool.crf.post import Post
from tool.crf.stage import Images, PostProcess
from tool.formats.cam import is_whole, save_cam
from tool.infer.multiscale import Refine, present_rows
from tool.parallel.writer import BackgroundWriter
from tool.provenance import MADE_FROM, PLAIN, POST, claim

AHEAD = 2  # images whose files wait until a thread or process is free


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is written where.

    Attributes:
        maps: Names of the maps of each image, at least one.
        has_background: They have K + 1 channels, background first.
        post: How they become masks; is noted beside the maps.
        map_dir: Folder of the maps; None for none.
        mask_dir: Folder of the masks; None for none.
        argmax_dir: Folder of the masks without a CRF; None for none.
        map_stride: Pixels per stored value.
        crf: Settings of `PostProcess`, for the masks.
        threshold: Of the masks without a CRF, for maps without a background.
        max_side: The longer side to which larger images were reduced; None for none.
        crf_workers: Processes of the CRF, on a CPU.
        plain: The maps come with one of the name `PLAIN`, which is written, too.
    """

    maps: tuple[str, ...]
    has_background: bool
    post: Post
    map_dir: Path | None
    mask_dir: Path | None
    argmax_dir: Path | None
    map_stride: int
    crf: dict[str, Any]
    threshold: float
    max_side: int | None
    crf_workers: int
    plain: bool = False

    def names(self) -> tuple[str, ...]:
        """Return the names of the maps that are written."""
        return (*self.maps, PLAIN) if self.plain else self.maps

    def post_of(self, name: str) -> Post:
        """Return how a map becomes a mask."""
        return dataclasses.replace(self.post, gate="none") if name == PLAIN else self.post

    def post_processes(self, images: Images) -> tuple[PostProcess | None, PostProcess | None]:
        """Return what writes the masks, and what writes those without a CRF; None for none."""
        source = self.map_dir or self.mask_dir or self.argmax_dir or Path()
        writers = []
        for folder, changes in (
            (self.mask_dir, {}),
            (self.argmax_dir, {"threshold": self.threshold, "seeds": None}),
        ):
            settings = self.crf | changes | {"max_side": self.max_side}
            writers.append(folder and PostProcess(images, source, folder, **settings))
        return writers[0], writers[1]


class Outputs(contextlib.ExitStack):
    """Writes the maps of images in the background, one file per image and map, and their masks.

    The first map goes to ID.npy in the folder of the maps, any other to NAME/ID.npy inside. Masks
    are those of the first map.
    """

    def __init__(self, images: Images, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.masks, self.argmax = plan.post_processes(images)

    def __enter__(self) -> Outputs:
        self._files = self.enter_context(BackgroundWriter(ahead=AHEAD + 2))
        if self.masks is not None:
            processes = self.plan.crf_workers if self.masks.device == "cpu" else 0
            ahead = AHEAD + max(1, processes)
            self._masks = self.enter_context(
                BackgroundWriter(threads=1, processes=processes, ahead=ahead)
            )
        return super().__enter__()

    def claim(self, made_from: dict[str, object], image_ids: Sequence[str]) -> None:
        """Note in each folder what it is made from.

        Args:
            made_from: What the maps are made from.
            image_ids: The images whose files are written.

        Raises:
            ValueError: A folder holds files made from something else, or files of these images and
                no note; names what differs.
        """
        plan = self.plan
        if plan.map_dir is not None:
            for name in plan.names():
                _check_origin(self._folder(name), [f"{image_id}.npy" for image_id in image_ids])
        writers = [writer for writer in (self.masks, self.argmax) if writer is not None]
        for writer in writers:
            _check_origin(writer.out, [f"{image_id}.png" for image_id in image_ids])
        if plan.map_stride > 1:
            made_from = made_from | {"cam_stride": plan.map_stride}
        for name in plan.names() if plan.map_dir is not None else ():
            which = {} if name == plan.maps[0] else {"map": name}  # folders differ in their origin
            remarks = {POST: plan.post_of(name).as_note()}
            claim(self._folder(name), made_from | which, remarks=remarks)
        for writer in writers:
            claim(writer.out, made_from | writer.settings())

    def are_whole(self, image_id: str) -> bool:
        """Return whether every file of an image is there and readable."""
        plan = self.plan
        if plan.map_dir is not None:
            paths = [self._folder(name) / f"{image_id}.npy" for name in plan.names()]
            if not all(map(is_whole, paths)):
                return False
        writers = (self.masks, self.argmax)
        return all(writer is None or writer.is_whole(image_id) for writer in writers)

    def put(self, image_id: str, label: Tensor | None, maps: dict[str, Tensor]) -> None:
        """Write the maps of an image.

        Args:
            label: (K,) image-level; None keeps every class.
            maps: {name: (C, H, W)}, those of the plan.
        """
        written = self.plan.names() if self.plan.map_dir is not None else ()
        for name in dict.fromkeys((self.plan.maps[0], *written)):
            rows = present_rows(maps[name], label, has_background=self.plan.has_background)
            if name in written:
                self._files.submit(save_cam, self._folder(name) / f"{image_id}.npy", rows)
            if name == self.plan.maps[0] and self.argmax is not None:
                self._files.submit(self.argmax.write, image_id, rows)
            if name == self.plan.maps[0] and self.masks is not None:
                self._masks.submit(self.masks.write, image_id, rows)

    def _folder(self, name: str) -> Path:
        """Return the folder of a map."""
        out = self.plan.map_dir
        return out if name == self.plan.maps[0] else out / name


def keeping_plain(gate: Refine) -> Refine:
    """Return a gate whose maps have the first one, as it was before, under the name `PLAIN`."""

    def both(
        image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        return gate(image_id, features, maps, label) | {PLAIN: next(iter(maps.values()))}

    return both


def _check_origin(folder: Path, names: Sequence[str]) -> None:
    """Check that a folder without a note has no files of these names, which others have made."""
    if (folder / MADE_FROM).is_file():
        return
    found = next((name for name in names if (folder / name).exists()), None)
    if found is not None:
        raise ValueError(f"{folder} has files of another origin ({found}): choose another --out")
