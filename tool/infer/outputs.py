"""The files that stage 2 writes: the maps of each image, its masks, or both."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tool.crf.post import Post
from tool.crf.stage import Images, PostProcess
from tool.formats.cam import is_whole, save_cam
from tool.infer.multiscale import Refine, present_rows
from tool.parallel.writer import BackgroundWriter
from tool.provenance import (
    MADE_FROM,
    PLAIN,
    POST,
    check_photographs,
    check_sources,
    claim,
)

AHEAD = 2  # number of images whose files may wait until a thread or process is free


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of the files: which maps and masks are written, and where.

    Attributes:
        maps: Names of the maps of each image, at least one.
        has_background: Whether the maps have K + 1 channels, background first.
        post: Settings that say how the maps become masks; they are noted beside the maps.
        map_dir: Folder of the maps; None to write no maps.
        mask_dir: Folder of the masks; None to write no masks.
        argmax_dir: Folder of the masks without a CRF; None to write none.
        map_stride: Pixels per stored value along each side, 1..32.
        crf: Settings of `PostProcess` for the masks.
        threshold: Threshold of the masks without a CRF, for maps without background.
        max_side: The longer side in pixels to which larger images were reduced; None for no limit.
        crf_workers: Number of CRF processes, on a CPU.
        plain: Whether each image also has a map called `PLAIN`, which is written too.
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
        """Return the settings that say how the map `name` becomes a mask; `PLAIN` has no gate."""
        return dataclasses.replace(self.post, gate="none") if name == PLAIN else self.post

    def post_processes(self, images: Images) -> tuple[PostProcess | None, PostProcess | None]:
        """Return the writer of the masks, and the writer of the masks without a CRF.

        Either is None if its masks are not written.

        Args:
            images: The dataset.

        Raises:
            ValueError: As `PostProcess`.
        """
        # The writers get their CAMs from memory. The folder only names the CAMs in errors.
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
    """Writer of the maps of images, one file per image and map, and of their masks.

    It writes in the background, inside a `with` block. The first map goes to ID.npy in the folder
    of the maps, each other one to NAME/ID.npy in it. Masks are made of the first map.

    Args:
        images: The dataset.
        plan: The plan of the files.

    Raises:
        ValueError: As `PostProcess`.
    """

    def __init__(self, images: Images, plan: Plan) -> None:
        super().__init__()
        self.images, self.plan = images, plan
        self.masks, self.argmax = plan.post_processes(images)

    def __enter__(self) -> Outputs:
        self._files = self.enter_context(BackgroundWriter(ahead=AHEAD + 2))
        # On a CPU the CRF takes most of the time and gets processes. On a GPU one thread suffices.
        if self.masks is not None:
            processes = self.plan.crf_workers if self.masks.device == "cpu" else 0
            ahead = AHEAD + max(1, processes)
            self._masks = self.enter_context(
                BackgroundWriter(threads=1, processes=processes, ahead=ahead)
            )
        return super().__enter__()

    def claim(
        self,
        made_from: dict[str, object],
        image_ids: Sequence[str],
        sources: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Write into each folder a note of what it is made from, or check an earlier note.

        Files whose photograph or another source has changed are removed, so that they are made
        anew.

        Args:
            made_from: Values of plain types that determine the maps.
            image_ids: The images whose files are written.
            sources: What else is read of each image, such as labels: name in the plural ->
                {image id: hash}.

        Raises:
            ValueError: A folder holds files made from something else, or files of these images and
                no note; names what differs.
        """
        plan = self.plan
        # Check all folders before any note is written, so that a refusal changes nothing.
        if plan.map_dir is not None:
            for name in plan.names():
                _check_origin(self._folder(name), [f"{image_id}.npy" for image_id in image_ids])
        writers = [writer for writer in (self.masks, self.argmax) if writer is not None]
        for writer in writers:
            _check_origin(writer.out, [f"{image_id}.png" for image_id in image_ids])
        # Write the notes. That of a further map also has its name, so that two folders of one run
        # have different notes.
        if plan.map_stride > 1:
            made_from = made_from | {"cam_stride": plan.map_stride}
        for name in plan.names() if plan.map_dir is not None else ():
            which = {} if name == plan.maps[0] else {"map": name}
            remarks = {POST: plan.post_of(name).as_note()}
            claim(self._folder(name), made_from | which, remarks=remarks)
        for writer in writers:
            claim(writer.out, made_from | writer.settings())
        # Only now, when nothing can be refused any more, may files be removed.
        if plan.map_dir is not None:
            paths = {image_id: self.images.image_path(image_id) for image_id in image_ids}
            check_photographs(plan.map_dir, paths, self._map_files)
            for what, hashes in sources.items():
                check_sources(plan.map_dir, what, hashes, self._map_files)
        for writer in writers:
            writer.check_photographs(image_ids)
            for what, hashes in sources.items():
                check_sources(writer.out, what, hashes, writer.files)

    def are_whole(self, image_id: str) -> bool:
        """Return whether every file of an image exists and is readable."""
        plan = self.plan
        if plan.map_dir is not None and not all(map(is_whole, self._map_files(image_id))):
            return False
        writers = (self.masks, self.argmax)
        return all(writer is None or writer.is_whole(image_id) for writer in writers)

    def put(self, image_id: str, label: Tensor | None, maps: dict[str, Tensor]) -> None:
        """Write the maps and masks of an image in the background.

        Args:
            image_id: The image.
            label: (K,) {0, 1}, image-level; None keeps every class.
            maps: {name: (C, H, W)}, at least the maps of the plan.

        Raises:
            BaseException: The first error in writing the files of this or an earlier image.
        """
        # Masks need the first map even if no maps are written.
        written = self.plan.names() if self.plan.map_dir is not None else ()
        for name in dict.fromkeys((self.plan.maps[0], *written)):
            rows = present_rows(maps[name], label, has_background=self.plan.has_background)
            if name in written:
                self._files.submit(save_cam, self._folder(name) / f"{image_id}.npy", rows)
            if name == self.plan.maps[0] and self.argmax is not None:
                self._files.submit(self.argmax.write, image_id, rows)
            if name == self.plan.maps[0] and self.masks is not None:
                self._masks.submit(self.masks.write, image_id, rows)

    def _map_files(self, image_id: str) -> list[Path]:
        """Return the paths of the maps of an image."""
        return [self._folder(name) / f"{image_id}.npy" for name in self.plan.names()]

    def _folder(self, name: str) -> Path:
        """Return the folder of the map called `name`."""
        out = self.plan.map_dir
        return out if name == self.plan.maps[0] else out / name


def keeping_plain(gate: Refine) -> Refine:
    """Return a function like `gate` that also keeps the first map as it was, called `PLAIN`.

    Args:
        gate: As `refine` of `infer_images`.
    """

    def both(
        image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        return gate(image_id, features, maps, label) | {PLAIN: next(iter(maps.values()))}

    return both


def _check_origin(folder: Path, names: Sequence[str]) -> None:
    """Raise `ValueError` if a folder has files of these names and no note of their origin."""
    if (folder / MADE_FROM).is_file():
        return
    found = next((name for name in names if (folder / name).exists()), None)
    if found is not None:
        raise ValueError(
            f"{folder} has files that this command did not make ({found}): choose another --out"
        )
