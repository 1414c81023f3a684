"""What a method takes from an earlier stage: confident seeds and CAMs, one file an image."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tool.formats.cam import check_size, load_cam, strided_size
from tool.formats.predictions import check_classes, read_mask, require_files

SEEDS_FROM = "crf_postprocess.py --cam-dir ... --seed FG BG (amn 0.30 0.05, irn 0.45 0.15)"
CAM_STRIDE = 4


@dataclasses.dataclass(frozen=True)
class Earlier:
    """Folders of an earlier stage's files.

    Attributes:
        seed_dir: has ID.png of `crf_postprocess.py --seed`.
        cam_dir: has ID.npy of `infer_cam.py`.
    """

    seed_dir: Path | None = None
    cam_dir: Path | None = None

    def require(self, inputs: Sequence[str], image_ids: Sequence[str]) -> None:
        """Check that every file that `inputs` asks for is there; none is read.

        Raises:
            ValueError: a folder was not given; names the flag.
            FileNotFoundError: files are missing; names them and the command that makes them.
        """
        for name, folder, suffix, what, stage in (
            ("seed", self.seed_dir, ".png", "seeds", SEEDS_FROM),
            ("cam", self.cam_dir, ".npy", "CAMs", "infer_cam.py"),
        ):
            if name not in inputs:
                continue
            if folder is None:
                raise ValueError(
                    f"method needs {what}: pass --{name}-dir, a folder that {stage} made"
                )
            require_files(folder, image_ids, suffix, what=what, stage=stage)

    def read(
        self,
        inputs: Sequence[str],
        image_id: str,
        *,
        size: tuple[int, int],
        label: np.ndarray,
        num_classes: int,
    ) -> dict[str, Tensor]:
        """`seed` (H, W) int64 and `cam` (K, h, w), those that `inputs` asks for.

        Args:
            size: (H, W) of the image. label: (K,) of the image.

        Raises:
            ValueError: as `read_seed` and `read_cam`.
        """
        found = {}
        if "seed" in inputs:
            seed = self.read_seed(image_id, size=size, num_classes=num_classes)
            found["seed"] = torch.from_numpy(seed).long()
        if "cam" in inputs:
            found["cam"] = self.read_cam(image_id, size=size, label=label, num_classes=num_classes)
        return found

    def read_seed(self, image_id: str, *, size: tuple[int, int], num_classes: int) -> np.ndarray:
        """The seed (H, W) uint8 in 0..K, 255.

        Args:
            size: (H, W) of the image.

        Raises:
            ValueError: a broken file, another size, or a class above K; names the file.
        """
        path = self.seed_dir / f"{image_id}.png"
        seed = read_mask(path, num_classes)
        if seed.shape != tuple(size):
            raise ValueError(
                f"{path} is {seed.shape[1]}x{seed.shape[0]}, its image is {size[1]}x{size[0]}"
            )
        return seed

    def read_cam(
        self, image_id: str, *, size: tuple[int, int], label: np.ndarray, num_classes: int
    ) -> Tensor:
        """The CAM (K, h, w) float32 in cells of 4 pixels, h = ceil(H / 4); absent classes are 0.

        Args:
            size: (H, W) of the image.
            label: (K,) of the image, for the field's pickled layouts.

        Raises:
            ValueError: a broken file, another size, or a class above K; names the file.
        """
        path = self.cam_dir / f"{image_id}.npy"
        cam = load_cam(path, label=label)
        check_classes(path, cam.class_index, num_classes)
        try:
            check_size(cam, size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        cells = strided_size(size, CAM_STRIDE)
        maps = torch.zeros(num_classes, *cells)
        rows = cam.foreground()
        if len(rows.class_index):
            small = torch.nn.functional.interpolate(
                torch.from_numpy(rows.cam)[None], size=cells, mode="bilinear", align_corners=False
            )
            maps[torch.from_numpy(rows.class_index.astype(np.int64)) - 1] = small[0]
        return maps


def takes_earlier(inputs: Sequence[str]) -> bool:
    """Whether a method with these inputs reads files of an earlier stage."""
    return not {"seed", "cam"}.isdisjoint(inputs)


def add_earlier_flags(parser: argparse.ArgumentParser) -> None:
    """Add --seed-dir and --cam-dir; `earlier_from` reads them."""
    group = parser.add_argument_group("files of an earlier stage, for the methods that take them")
    group.add_argument(
        "--seed-dir",
        type=Path,
        help="folder of seeds (255 = unknown) from crf_postprocess.py --seed",
    )
    group.add_argument("--cam-dir", type=Path, help="folder of CAMs from infer_cam.py")


def earlier_from(args: argparse.Namespace) -> Earlier:
    """The folders that the flags of `add_earlier_flags` name."""
    return Earlier(args.seed_dir, args.cam_dir)
