"""Stage 3: the mask or seed PNG of an image, from its CAM and its photograph."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from tool.crf.jobs import Task, solve, solve_batch
from tool.crf.masking import MaskMaker
from tool.files import spelled
from tool.formats.cam import Cam, as_stored, check_maps, load_cam, resized_cam
from tool.formats.image import batches_of_one_size, reduced
from tool.formats.mask import is_whole, resized, save_mask
from tool.formats.predictions import check_classes
from tool.parallel.processes import map_processes
from tool.provenance import SETTINGS, check_photographs, claim, note_of


class Images(Protocol):
    """The part of a dataset that stages 2 and 3 use."""

    @property
    def num_classes(self) -> int:
        """Number of classes K, without the background."""
        ...

    def image_path(self, image_id: str) -> Path:
        """Return the path of the photograph."""
        ...

    def read_image(self, image_id: str) -> Image.Image:
        """Return the photograph in RGB."""
        ...

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Return the width and height of the photograph in pixels."""
        ...

    def label(self, image_id: str) -> np.ndarray:
        """Return the image-level label, (K,) in {0, 1}."""
        ...


@dataclasses.dataclass(frozen=True)
class PostProcess(MaskMaker):
    """A writer of one mask or seed per image; it can be sent to another process.

    Attributes:
        images: The dataset.
        cam_dir: The folder that holds ID.npy for each image.
        out: The folder that receives ID.png for each image.

    The other attributes, and what they raise, are those of `MaskMaker`.
    """

    images: Images
    cam_dir: Path
    out: Path

    def __call__(self, image_id: str) -> bool:
        """Write the file of one image, unless it is whole and not older than its CAM.

        Args:
            image_id: The image.

        Returns:
            Whether the file was written.

        Raises:
            ValueError: The CAM or the image is broken, or their sizes differ; names the file.
        """
        if self._is_done(image_id):
            return False
        self.write(image_id)
        return True

    def load(self, image_id: str, cam: Cam | None = None) -> tuple[np.ndarray, Task]:
        """Return an image and its task.

        Args:
            image_id: The image.
            cam: The CAM of the image; None to read it from `cam_dir`.

        Returns:
            The image (H, W, 3) uint8, reduced to `max_side` if it is larger, and the task at that
            size.

        Raises:
            ValueError: As for `__call__`.
        """
        source = spelled(self.cam_dir, f"{image_id}.npy")
        if cam is None:
            cam = load_cam(source, label=lambda: self.images.label(image_id))
            check_classes(source, cam.class_index, self.images.num_classes)
        photograph = self.images.read_image(image_id)
        image = np.asarray(reduced(photograph, self.max_side))
        try:
            check_maps(cam, (photograph.height, photograph.width))
            return image, self.task(image, resized_cam(cam, image.shape[:2]))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def write(self, image_id: str, cam: Cam | None = None) -> None:
        """Write the file of an image.

        Args:
            image_id: The image.
            cam: The CAM of the image in memory; the result is the same as if it had been stored and
                read again. None to read it from `cam_dir`.

        Raises:
            ValueError: As for `__call__`.
        """
        # Rounding to float16, as in a file, makes masks with and without stored CAMs equal.
        if cam is not None:
            cam = as_stored(cam, self.cam_dir / f"{image_id}.npy")
        image, task = self.load(image_id, cam)
        self._save(image_id, solve(image, task, self.preset.crf, backend=self.backend))

    def _save(self, image_id: str, mask: np.ndarray) -> None:
        """Write the mask (h, w) uint8 of an image, enlarged to the image's own size."""
        size = self.images.image_size(image_id)[::-1]
        save_mask(self.out / f"{image_id}.png", resized(mask, size))

    def write_all(self, image_ids: Sequence[str], *, workers: int) -> Iterator[bool]:
        """Write the file of every image, and yield for each image whether it was written.

        Args:
            image_ids: The images.
            workers: On the CPU, the number of processes. On a GPU, the number of threads that read.

        Raises:
            ValueError: As for `__call__`.
        """
        if self.device == "cpu":
            yield from map_processes(self, image_ids, workers=workers)
        else:
            yield from self.in_batches(image_ids, threads=workers)

    def in_batches(
        self, image_ids: Sequence[str], *, threads: int, chunk: int = 64, batch: int = 8
    ) -> Iterator[bool]:
        """Write the file of every image, several images of one size at a time.

        Threads read the next chunk while the device computes the current one.

        Args:
            image_ids: The images.
            threads: Number of threads that read.
            chunk: Number of images among which images of one size are grouped.
            batch: Largest number of images that are computed at a time.

        Yields:
            For each image whether its file was written, not in the order of `image_ids`.
        """
        with ThreadPoolExecutor(threads) as pool:
            ahead: list[tuple[str, Future]] = []
            # One round more than there are chunks: each round starts reading a chunk and solves the
            # chunk of the round before.
            for first in range(0, len(image_ids) + chunk, chunk):
                ids = image_ids[first : first + chunk]
                now, ahead = ahead, [(i, pool.submit(self._load_if_needed, i)) for i in ids]
                yield from self._solve_chunk([(i, future.result()) for i, future in now], batch)

    def _load_if_needed(self, image_id: str) -> tuple[np.ndarray, Task] | None:
        """Return the image and task as `load` does, or None if the file of the image is done."""
        return None if self._is_done(image_id) else self.load(image_id)

    def _solve_chunk(
        self, loaded: list[tuple[str, tuple[np.ndarray, Task] | None]], batch: int
    ) -> Iterator[bool]:
        """Write the files of loaded images, grouped by size; yield whether each was written.

        Args:
            loaded: The id of each image, and its image and task; None for an image that is done.
            batch: Largest number of images that are computed at a time.
        """
        needed = [(image_id, *content) for image_id, content in loaded if content is not None]
        yield from [False] * (len(loaded) - len(needed))
        for same in batches_of_one_size(needed, lambda one: one[1].shape, batch):
            ids, images, tasks = zip(*same, strict=True)
            masks = solve_batch(images, tasks, self.preset.crf, device=self.device)
            for image_id, mask in zip(ids, masks, strict=True):
                self._save(image_id, mask)
                yield True

    def _is_done(self, image_id: str) -> bool:
        """Return whether the file of an image is whole and not older than its CAM."""
        source, target = spelled(self.cam_dir, f"{image_id}.npy"), self.out / f"{image_id}.png"
        if not target.is_file() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
            return False
        return self.is_whole(image_id)

    def is_whole(self, image_id: str) -> bool:
        """Return whether the file of an image exists, is readable and has the image's size."""
        size = self.images.image_size(image_id)[::-1]
        return is_whole(self.out / f"{image_id}.png", size)

    def claim(self, image_ids: Sequence[str]) -> None:
        """Write a note of the settings into `out`, or check that its note has the same settings.

        Masks whose photograph has changed are removed, so that they are made anew.

        Args:
            image_ids: The images whose files this run writes or checks.

        Raises:
            ValueError: `out` has masks made with other settings, or masks without a note.
        """
        settings = {"cam_dir": os.path.relpath(self.cam_dir, self.out)} | self.settings()
        noted = (self.out / SETTINGS).is_file()
        if not noted and any((self.out / f"{image_id}.png").exists() for image_id in image_ids):
            raise ValueError(
                f"{self.out} has masks that this command did not make: choose another --out"
            )
        # The note of the CAMs is not compared, because masks older than their CAM are made anew.
        claim(self.out, settings, name=SETTINGS, remarks={"cams": note_of(self.cam_dir)})
        self.check_photographs(image_ids)

    def check_photographs(self, image_ids: Sequence[str]) -> None:
        """Remove the masks of images whose photograph has changed; see `check_photographs`."""
        paths = {image_id: self.images.image_path(image_id) for image_id in image_ids}
        check_photographs(self.out, paths, self.files)

    def files(self, image_id: str) -> list[Path]:
        """Return the paths of the files that are made of an image."""
        return [self.out / f"{image_id}.png"]
