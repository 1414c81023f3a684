"""Draw photographs, a dataset and scores like a CAM's for the benchmarks, with Pillow alone."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.files import list_bytes
from data.labels import label_files
from tool.formats.mask import save_mask

Rng = np.random.Generator
Size = tuple[int, int]  # (H, W)
OBJECT = (0.25, 0.55)  # range of an object's side, as a share of the image's shorter side


def structured_noise(rng: Rng, size: Size) -> np.ndarray:
    """Return an image (H, W, 3) uint8 of smooth light, areas with sharp edges, and grain.

    The cost of a CRF depends on the number of distinct pairs of colour and place. Here that number
    is about the same as in a photograph. Independent noise per pixel has far more, and a constant
    image has far fewer.
    """
    height, width = size
    canvas = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((2, 90), (6, 50), (24, 25)):  # light from coarse to fine
        coarse = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        canvas += strength / 165 * np.asarray(smooth, np.float32)
    # Draw areas on a copy, and take the mean of both.
    areas = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(areas)
    for _ in range(12):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.polygon(_blob(rng, size, rng.uniform(0.05, 0.25) * min(size)), fill=colour)
    mixed = 0.5 * canvas + 0.5 * np.asarray(areas, np.float32)
    return (mixed + rng.normal(0, 6, mixed.shape)).clip(0, 255).astype(np.uint8)


def write_drawn(root: Path, *, images: int, sizes: Sequence[Size], num_classes: int) -> None:
    """Write a dataset of the layout `folder` with one or two objects per image.

    Each object has the colour of its class.

    Args:
        root: The folder; the function creates it.
        images: Number of images; the list `train` has all of them.
        sizes: Sizes (H, W) of the images, which are used in turn.
        num_classes: K, without background.

    Raises:
        FileExistsError: A folder of a dataset exists there already.
    """
    for name in ("images", "masks", "saliency", "lists"):
        (root / name).mkdir(parents=True)
    names = [f"class {number}" for number in range(num_classes)]
    labels = {}
    for number in range(images):
        rng = np.random.default_rng([number])
        image, mask = draw_objects(rng, sizes[number % len(sizes)], num_classes)
        Image.fromarray(image).save(root / "images" / f"{number:04d}.jpg", quality=92)
        save_mask(root / "masks" / f"{number:04d}.png", mask)
        saliency = np.where(mask > 0, 230, 15).astype(np.uint8)
        Image.fromarray(saliency).save(root / "saliency" / f"{number:04d}.png")
        present = np.isin(np.arange(num_classes) + 1, mask)
        labels[f"{number:04d}"] = present.astype(np.float32)
    lists = {"classes.txt": names, "lists/train.txt": list(labels)}
    files = {root / name: list_bytes(lines) for name, lines in lists.items()}
    for path, content in (files | label_files(root, labels, names)).items():
        path.write_bytes(content)


def draw_objects(rng: Rng, size: Size, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (H, W, 3) uint8 with one or two objects, and its mask (H, W) uint8."""
    image = 0.5 * structured_noise(rng, size).astype(np.float32)
    # Draw the objects into the mask, at most one per class.
    mask = Image.new("L", size[::-1])
    for value in rng.permutation(num_classes)[: rng.integers(1, 3)] + 1:
        side = rng.uniform(*OBJECT) * min(size)
        ImageDraw.Draw(mask).polygon(_blob(rng, size, side / 2), fill=int(value))
    inside = np.asarray(mask)  # (H, W)
    # Tint the image with the colour of the class where the mask has one.
    colours = [colorsys.hsv_to_rgb(k / num_classes, 0.9, 0.9) for k in range(num_classes)]
    table = np.concatenate([np.zeros((1, 3)), 255 * np.array(colours)]).astype(np.float32)
    mixed = image + (0.7 * table[inside] + 0.3 * image - image) * (inside > 0)[:, :, None]
    return mixed.clip(0, 255).astype(np.uint8), inside


def soft_blobs(rng: Rng, count: int, size: Size, radius: float) -> np.ndarray:
    """Return blurred blobs (count, H, W) float32 in [0, 1], similar to a CAM.

    A blob has the value exp(-(d / r)^2) at the distance d from its centre.

    Args:
        rng: The generator, which draws the centres.
        count: Number of blobs.
        size: (H, W).
        radius: r, as a share of the image's height.
    """
    y, x = np.mgrid[: size[0], : size[1]]
    blobs = []
    for _ in range(count):
        distance = np.hypot(y - rng.uniform(0, size[0]), x - rng.uniform(0, size[1]))
        blobs.append(np.exp(-((distance / (radius * size[0])) ** 2)))
    return np.stack(blobs).astype(np.float32)


def _blob(rng: Rng, size: Size, radius: float) -> list[tuple[float, float]]:
    """Return the corners of a roughly round outline inside the image.

    Args:
        rng: The generator.
        size: (H, W) of the image.
        radius: Largest distance of a corner to the centre, in pixels.
    """
    height, width = size
    x, y = (rng.uniform(min(radius, s / 2), max(s - radius, s / 2)) for s in (width, height))
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    lengths = radius * rng.uniform(0.75, 1.0, len(angles))
    return [(x + d * np.cos(a), y + d * np.sin(a)) for a, d in zip(angles, lengths, strict=True)]
