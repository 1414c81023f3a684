"""The work of stage 3 on one image, for processes: CAM and photograph -> mask or seed PNG."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tool.cli import positive_int
from tool.crf.dense import BACKENDS, PRESETS, Preset, pick_backend, preset_of
from tool.crf.jobs import Task, mask_task, seed_task, solve, solve_batch, threshold_task
from tool.files import atomic_path
from tool.formats.cam import Cam, as_stored, at_size, load_cam
from tool.formats.mask import load_mask, save_mask
from tool.formats.predictions import check_classes
from tool.parallel.processes import map_processes
from tool.provenance import SETTINGS, note_of

FBR_ITERATIONS = 5  # of psa80, fbr.md section 6; any other preset brings its own


class Images(Protocol):
    """What this needs of a dataset."""

    num_classes: int

    def read_image(self, image_id: str) -> Image.Image: ...
    def image_size(self, image_id: str) -> tuple[int, int]: ...
    def label(self, image_id: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """Writes the mask of an image; can be sent to another process.

    Attributes:
        images: the dataset.
        cam_dir: has ID.npy.
        out: gets ID.png.
        preset: of the CRF.
        alpha: of the background (1 - max)^alpha of CAMs without a background row.
        seed: (FG, BG) for a confident seed in place of a mask.
        threshold: for a mask without CRF: foreground is what exceeds it.
        backend: of the CRF, as `tool.crf.dense.pick_backend` gives it.
        device: where torch computes.
    """

    images: Images
    cam_dir: Path
    out: Path
    preset: Preset
    alpha: float
    seed: tuple[float, float] | None = None
    threshold: float | None = None
    backend: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha {self.alpha:g} is not above 0")
        if self.seed is not None and not 0 <= self.seed[1] <= self.seed[0] <= 1:
            raise ValueError(
                f"seed thresholds FG {self.seed[0]:g} BG {self.seed[1]:g}: 0<=BG<=FG<=1"
            )
        if self.threshold is not None and (self.seed or not 0 <= self.threshold <= 1):
            raise ValueError(f"--no-crf {self.threshold:g}: within [0, 1], and not with --seed")
        if self.seed is not None and not self.preset.from_labels:
            raise ValueError("a seed needs a preset on labels: label50, label20 or aff80")

    def __call__(self, image_id: str) -> bool:
        """Write the file of one image; False where it was whole and not older than its CAM.

        Raises:
            ValueError: a broken CAM or image, or sizes that differ; names the file.
        """
        source, target = self.cam_dir / f"{image_id}.npy", self.out / f"{image_id}.png"
        if self._is_done(image_id, source, target):
            return False
        image, task = self.load(image_id)
        save_mask(target, solve(image, task, self.preset.crf, backend=self.backend))
        return True

    def load(self, image_id: str, cam: Cam | None = None) -> tuple[np.ndarray, Task]:
        """An image (H, W, 3) uint8 and what is asked for it.

        Args:
            cam: of the image; None: the one in `cam_dir`.

        Raises:
            ValueError: as `__call__`.
        """
        source = self.cam_dir / f"{image_id}.npy"
        if cam is None:
            cam = load_cam(source, label=lambda: self.images.label(image_id))
            check_classes(source, cam.class_index, self.images.num_classes)
        image = np.asarray(self.images.read_image(image_id))
        try:
            return image, self.task(image, at_size(cam, image.shape[:2]))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def write(self, image_id: str, cam: Cam) -> None:
        """Write the file of an image whose CAM is at hand, as if it had been stored."""
        image, task = self.load(image_id, as_stored(cam))
        mask = solve(image, task, self.preset.crf, backend=self.backend)
        save_mask(self.out / f"{image_id}.png", mask)

    def task(self, image: np.ndarray, cam: Cam) -> Task:
        """The mask, or the seed, of an image (H, W, 3) uint8."""
        if self.threshold is not None:
            return threshold_task(image, cam, self.threshold)
        if self.seed is None:
            return mask_task(image, cam, self.preset, alpha=self.alpha)
        labels = len(cam.foreground().class_index) + 1
        fg, bg = self.seed
        return seed_task(image, cam, self.preset, fg=fg, bg=bg, n_labels=labels)

    def over(self, image_ids: Sequence[str], *, workers: int) -> Iterator[bool]:
        """Write every file: `workers` processes on a CPU; on a GPU threads that read and write."""
        if self.device == "cpu":
            yield from map_processes(self, image_ids, workers=workers)
        else:
            yield from self.in_batches(image_ids, threads=workers)

    def in_batches(
        self, image_ids: Sequence[str], *, threads: int, chunk: int = 64, batch: int = 8
    ) -> Iterator[bool]:
        """Write every file, images of one size together; the next chunk is read meanwhile.

        Args:
            chunk: images among which those of one size are looked for. batch: images at once.
        """
        with ThreadPoolExecutor(threads) as pool:
            ahead: list[tuple[str, Future]] = []
            for first in range(0, len(image_ids) + chunk, chunk):
                ids = image_ids[first : first + chunk]
                now, ahead = ahead, [(i, pool.submit(self._load_if_needed, i)) for i in ids]
                yield from self._solve_chunk([(i, future.result()) for i, future in now], batch)

    def _load_if_needed(self, image_id: str) -> tuple[np.ndarray, Task] | None:
        source, target = self.cam_dir / f"{image_id}.npy", self.out / f"{image_id}.png"
        return None if self._is_done(image_id, source, target) else self.load(image_id)

    def _solve_chunk(
        self, loaded: list[tuple[str, tuple[np.ndarray, Task] | None]], batch: int
    ) -> Iterator[bool]:
        sizes: dict[tuple[int, ...], list[tuple[str, np.ndarray, Task]]] = {}
        for image_id, content in loaded:
            if content is None:
                yield False
            else:
                sizes.setdefault(content[0].shape, []).append((image_id, *content))
        for same in sizes.values():
            for first in range(0, len(same), batch):
                ids, images, tasks = zip(*same[first : first + batch], strict=True)
                masks = solve_batch(images, tasks, self.preset.crf, device=self.device)
                for image_id, mask in zip(ids, masks, strict=True):
                    save_mask(self.out / f"{image_id}.png", mask)
                    yield True

    def _is_done(self, image_id: str, source: Path, target: Path) -> bool:
        if not target.is_file() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
            return False
        return self.is_whole(image_id)

    def is_whole(self, image_id: str) -> bool:
        """Whether the file of an image is there, readable and of its size."""
        try:
            mask = load_mask(self.out / f"{image_id}.png")
        except (FileNotFoundError, ValueError):
            return False
        return mask.shape[::-1] == self.images.image_size(image_id)

    def settings(self) -> dict[str, Any]:
        """How a mask is made, in plain types; backends agree, so it does not name one."""
        if self.threshold is not None:
            return {"threshold": self.threshold}
        return {
            "preset": dataclasses.asdict(self.preset),
            "alpha": self.alpha,
            "seed": list(self.seed) if self.seed else None,
        }

    def claim(self, image_ids: Sequence[str]) -> None:
        """Note in `out` how its masks are made, or check that they are made that way.

        Raises:
            ValueError: `out` has masks of other settings, or of another origin.
        """
        settings = {"cam_dir": os.path.relpath(self.cam_dir, self.out)} | self.settings()
        path = self.out / SETTINGS
        if path.is_file():
            _check_settings(path, settings)
        elif any((self.out / f"{image_id}.png").exists() for image_id in image_ids):
            raise ValueError(f"{self.out} has masks of another origin: choose another --out")
        # not compared: masks older than their CAM are made anew
        settings |= {"cams": note_of(self.cam_dir)}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")


def _check_settings(path: Path, settings: dict) -> None:
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}; choose another --out") from error
    differ = [name for name in settings if before.get(name) != settings[name]]
    if differ:
        raise ValueError(
            f"{path.parent} has masks made with another {', '.join(differ)} ({path.name}): "
            "choose another --out or remove that folder"
        )


def add_crf_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a mask is made with; `crf_settings` reads it."""
    add = parser.add_argument
    add("--preset", choices=tuple(PRESETS), help="kernels; None: psa80, or label50 with --seed")
    add(
        "--iterations",
        type=positive_int,
        help=f"mean-field steps; None: {FBR_ITERATIONS} for psa80, else the preset's own",
    )
    add("--alpha", type=float, default=8.0, help="background score is (1 - best class)^alpha")
    add(
        "--seed",
        type=float,
        nargs=2,
        metavar=("FG", "BG"),
        help="write seeds: foreground above FG, background below BG, else 255 (IRN: 0.30 0.05); "
        "for CAMs with a background row, factors on that row (SFC: 1 0.5)",
    )
    add(
        "--no-crf",
        type=float,
        metavar="T",
        help="masks without CRF: foreground where the best class is above T (IRN's: 0.25)",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what computes the CRF; auto: torch on a GPU, else pydensecrf where it is installed, "
        "else torch",
    )


def crf_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a `PostProcess` out of the flags."""
    name = args.preset or ("label50" if args.seed else "psa80")
    iterations = args.iterations or (FBR_ITERATIONS if name == "psa80" else None)
    backend, device = pick_backend(args.backend)
    return {
        "preset": preset_of(name, iterations),
        "alpha": args.alpha,
        "seed": tuple(args.seed) if args.seed else None,
        "threshold": args.no_crf,
        "backend": backend,
        "device": device,
    }
