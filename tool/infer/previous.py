"""Read the files of previous stages that a method needs: seeds, CAMs, masks, boundary labels."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tool.cli import printable
from tool.files import spelled
from tool.formats.boundary import inside_warning, load_boundary
from tool.formats.cam import Cam, check_maps, load_cam, strided_size
from tool.formats.image import check_size
from tool.formats.mask import resized
from tool.formats.predictions import (
    check_classes,
    colour_warning,
    foreground_warning,
    read_mask,
    require_files,
)
from tool.infer.kinds import CLASSES, KINDS, check_kind
from tool.parallel import dist

CAM_STRIDE = 4  # pixels per cell of the batch key `cam`


@dataclasses.dataclass(frozen=True)
class PreviousOutputs:
    """The folders of files of previous stages.

    Attributes:
        folders: Batch key -> folder, for each kind whose folder was given.
        cam_stride: Pixels per cell of the batch key `cam`.
        with_background: True if every CAM has a background row, which is then the first row of the
            batch key `cam`; False if no CAM has one. None to accept both and leave the row out.
    """

    folders: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    cam_stride: int = CAM_STRIDE
    with_background: bool | None = None

    def whole(
        self, image_ids: Sequence[str], *, label: Callable[[str], np.ndarray]
    ) -> PreviousOutputs:
        """Return the same folders, with CAMs at full size and with their background row if any.

        Args:
            image_ids: The images. The first CAM with a class decides whether all have a background
                row.
            label: A function that returns the (K,) label of an image.

        Raises:
            FileNotFoundError: A CAM does not exist.
            ValueError: A CAM is broken; names the file.
        """
        for image_id in image_ids:
            path = spelled(self.folders["cam"], f"{image_id}.npy")
            cam = load_cam(path, label=functools.partial(label, image_id))
            if cam.class_index.size:
                return dataclasses.replace(self, cam_stride=1, with_background=cam.has_background)
        return dataclasses.replace(self, cam_stride=1, with_background=False)

    def require(self, inputs: Collection[str], image_ids: Sequence[str]) -> None:
        """Check that all files of previous stages that a method needs exist.

        It also prints a warning if the palette of a mask among the first ones looks wrong, or if
        none of the first masks has a pixel of a class, or none of the first boundary labels a pixel
        inside an object.

        Args:
            inputs: The method's batch keys.
            image_ids: The images.

        Raises:
            ValueError: A folder was not given, or has files of another kind; names the flag or it.
            FileNotFoundError: Files are missing; names them and the command that makes them.
        """
        for kind in KINDS.values():
            if kind.key not in inputs:
                continue
            folder = self.folders.get(kind.key)
            if folder is None:
                raise ValueError(
                    f"this method needs {kind.what}: pass {kind.flag}, the folder that "
                    f"{kind.made_by} wrote"
                )
            check_kind(folder, kind)
            require_files(folder, image_ids, kind.suffix, what=kind.what, stage=kind.made_by)
            if kind.suffix == ".png" and dist.is_main():
                paths = [spelled(folder, f"{image_id}{kind.suffix}") for image_id in image_ids]
                warnings = [inside_warning(paths)]
                if kind.key in CLASSES:
                    warnings = [colour_warning(paths), foreground_warning(paths, kind.what)]
                for warning in filter(None, warnings):
                    print(printable(warning), file=sys.stderr)

    def warn_of_unread(self, inputs: Collection[str]) -> None:
        """Print a warning for each folder that was given and that a method does not read.

        Args:
            inputs: The method's batch keys.
        """
        for key in self.folders if dist.is_main() else ():
            if key not in inputs:
                print(
                    f"warning: {KINDS[key].flag} has no effect: this method reads no "
                    f"{KINDS[key].what} here",
                    file=sys.stderr,
                )

    def read(
        self,
        inputs: Collection[str],
        image_id: str,
        *,
        whole: tuple[int, int],
        size: tuple[int, int],
        label: Callable[[], np.ndarray],
        num_classes: int,
    ) -> dict[str, Tensor]:
        """Read the batch keys `seed` and `cam` of an image, as far as `inputs` names them.

        Args:
            inputs: The batch keys of a method in inference.
            image_id: The image.
            whole: (H, W) of the image, which the files have. A CAM may have `size` instead.
            size: (H, W) to which the image is reduced, if at all. Seeds are reduced to it by the
                nearest pixel, CAMs to its cells.
            label: A function that returns the image's (K,) label, for the pickled CAM layouts.
            num_classes: K, without background.

        Returns:
            `seed` (h, w) int64 in 0..K and 255, and `cam` (C, h, w) float32, as in `class_cells`.

        Raises:
            ValueError: As `read_mask` and `read_cam`, or `inputs` names the label, and the CAM has
                maps, but none of a class of the label.
        """
        found = {}
        if "seed" in inputs:
            seed = self.read_mask("seed", image_id, size=whole, num_classes=num_classes)
            found["seed"] = torch.from_numpy(resized(seed, size)).long()
        if "cam" in inputs:
            cam = self.read_cam(image_id, size=whole, label=label, num_classes=num_classes)
            if "label" in inputs:
                self._check_label(image_id, cam, label())
            cells = strided_size(size, self.cam_stride)
            found["cam"] = class_cells(
                cam, num_classes, cells, with_background=bool(self.with_background)
            )
        return found

    def _check_label(self, image_id: str, cam: Cam, label: np.ndarray) -> None:
        """Raise `ValueError` if a CAM has maps, but none of a class that the image shows."""
        classes = cam.foreground().class_index
        lacking = np.setdiff1d(np.flatnonzero(label) + 1, classes)
        if classes.size and lacking.size:
            path = spelled(self.folders["cam"], f"{image_id}.npy")
            raise ValueError(
                f"{path} has maps of the classes {', '.join(map(str, classes))} and none of class "
                f"{lacking[0]}, which the image's label has: was it made with other labels, or "
                "are its classes counted differently?"
            )

    def read_mask(
        self, key: str, image_id: str, *, size: tuple[int, int], num_classes: int | None
    ) -> np.ndarray:
        """Return a seed, mask or boundary label of an image, (H, W) uint8.

        Args:
            key: The batch key of its kind.
            image_id: The image.
            size: (H, W) of the image.
            num_classes: K; values are 0..K and 255. None for a boundary label.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is broken, has another size, a class above K or a value that no
                boundary label has; names the file.
        """
        path = spelled(self.folders[key], f"{image_id}{KINDS[key].suffix}")
        mask = load_boundary(path) if num_classes is None else read_mask(path, num_classes)
        check_size(path, mask.shape, "its image", size)
        return mask

    def read_cam(
        self,
        image_id: str,
        *,
        size: tuple[int, int],
        label: Callable[[], np.ndarray],
        num_classes: int,
    ) -> Cam:
        """Return the CAM of an image; without its background row if `with_background` is None.

        Args:
            image_id: The image.
            size: (H, W) of the image.
            label: A function that returns the image's (K,) label, for the pickled CAM layouts.
            num_classes: K, without background.

        Returns:
            The CAM as it is stored, not enlarged.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is broken, has another size or a class above K, or does not agree
                with `with_background`; names the file.
        """
        path = spelled(self.folders["cam"], f"{image_id}.npy")
        cam = load_cam(path, label=label)
        check_classes(path, cam.class_index, num_classes)
        check_maps(cam, size, path)
        if self.with_background is None:
            return cam.foreground()
        if cam.class_index.size and cam.has_background != self.with_background:
            one, others = ("a", "none") if cam.has_background else ("no", "one")
            raise ValueError(f"{path} has {one} background row, other CAMs of the folder {others}")
        return cam


def class_cells(
    rows: Cam, num_classes: int, cells: tuple[int, int], *, with_background: bool = False
) -> Tensor:
    """Return the maps (P, H, W) of a CAM as maps of all classes, resized bilinearly.

    Args:
        rows: The CAM.
        num_classes: K, without background.
        cells: (h, w) of the result.
        with_background: Whether the CAM begins with the background. A CAM without rows is all
            background.

    Returns:
        (K, h, w) float32, or (K+1, h, w) with the background first; absent classes are 0.
    """
    # The background is 1 unless the CAM has a row for it.
    maps = torch.zeros(num_classes + with_background, *cells)
    if with_background:
        maps[0] = 1
    # Put each row at its class: mask value c is channel c with background, c - 1 without.
    if len(rows.class_index):
        small = torch.nn.functional.interpolate(
            torch.tensor(rows.cam)[None], size=cells, mode="bilinear", align_corners=False
        )
        values = torch.from_numpy(rows.class_index.astype(np.int64))
        maps[values - (0 if with_background else 1)] = small[0]
    return maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviousFlags:
    """The flags that name the folders of previous stages, `--KEY-dir` for each kind.

    Attributes:
        seed_dir: Folder of confident seeds (255 = unknown), from crf_postprocess.py --seeds.
        cam_dir: Folder of CAMs, from infer_cam.py.
    """

    seed_dir: Path | None = None
    cam_dir: Path | None = None

    def outputs(self) -> PreviousOutputs:
        """Return the folders that were given."""
        # A class of flags may have flags for some kinds only.
        folders = {key: getattr(self, f"{key}_dir", None) for key in KINDS}
        return PreviousOutputs({key: folder for key, folder in folders.items() if folder})
