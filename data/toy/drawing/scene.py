"""Scenes of the embedded dataset: the choice of objects and contexts, and their placement."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from data.toy.drawing import Box, Layer, Rng, Shape, animals, contexts, ground, vehicles
from data.toy.drawing.canvas import Canvas, shifted
from data.toy.drawing.paint import blend, noise
from data.toy.drawing.saliency import saliency_map


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of objects.

    Attributes:
        name: Name of the class.
        paint: A function that paints one object on a canvas.
        rows: Range of the y of the object's centre, as a share of the picture's height.
        tilt: Largest rotation of the object, in degrees.
        context: A function that draws the context of the class; None if it has no context.
    """

    name: str
    paint: Callable[[Canvas, Rng], None]
    rows: tuple[float, float]
    tilt: float
    context: Callable[[Rng, Shape, Box], Layer] | None


KINDS = (
    Kind("aeroplane", vehicles.aeroplane, (0.25, 0.6), 28.0, contexts.sky),
    Kind("bird", animals.bird, (0.3, 0.65), 15.0, contexts.branch),
    Kind("boat", vehicles.boat, (0.4, 0.7), 8.0, contexts.water),
    Kind("car", vehicles.car, (0.45, 0.72), 8.0, contexts.road),
    Kind("cat", animals.cat, (0.4, 0.7), 10.0, contexts.sofa),
    Kind("cow", animals.cow, (0.4, 0.7), 8.0, contexts.grass),
    Kind("sheep", animals.sheep, (0.4, 0.72), 10.0, None),
    Kind("train", vehicles.train, (0.4, 0.66), 5.0, contexts.rails),
)
CLASS_NAMES = tuple(kind.name for kind in KINDS)
WITH_CONTEXT, STRAY_CONTEXT = 0.89, 0.05  # chance of a context with its class, and without it
CLASS_COUNT = (0.46, 0.36, 0.18)  # chances of one, two and three classes
LEAST_SHARE = 0.015  # if a class covers less of the picture, the picture is drawn anew
SIDES = (130, 177)  # range of height and width in pixels, without the upper end


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture of the dataset.

    Attributes:
        image: The picture, RGB.
        mask: (H, W) uint8, 0 for background, else 1 + the class's index in `CLASS_NAMES`.
        saliency: (H, W) uint8, 255 for the most salient.
        context: (H, W) uint8, the mask value of the class whose context the pixel shows, else 0.
        classes: The mask values in `mask` without 0, ascending; at least one.
    """

    image: Image.Image
    mask: np.ndarray
    saliency: np.ndarray
    context: np.ndarray
    classes: tuple[int, ...]


class Scene:
    """An unfinished picture: its paint, and the class, context and thing of each pixel.

    Args:
        rng: The picture's generator.
        shape: (H, W).
    """

    def __init__(self, rng: Rng, shape: Shape) -> None:
        self.rng = rng
        self.shape = shape
        self.rgb = ground.background(rng, shape)
        self.mask = np.zeros(shape, np.uint8)
        self.context = np.zeros(shape, np.uint8)
        self.thing = np.zeros(shape, np.int32)  # > 0: instance number; < 0: distractor number

    def add(self, layer: Layer, *, mask: int = 0, context: int = 0, thing: int = 0) -> None:
        """Paint a layer over the picture, and label the pixels where its alpha is above one half.

        Args:
            layer: Paint and alpha.
            mask: Mask value of its class, 0 if it is of no class.
            context: Mask value of the class whose context it is, 0 if it is no context.
            thing: Its instance number, above 0, if it is an object; its number, below 0, if it is a
                distractor; else 0.
        """
        # Blend inside the box of the layer only.
        x, y, w, h = cv2.boundingRect((layer.alpha > 0).astype(np.uint8))
        at = (slice(y, y + h), slice(x, x + w))
        self.rgb[at] = blend(self.rgb[at], layer.paint[at], layer.alpha[at])
        covered = layer.alpha > 0.5
        self.mask[covered] = mask
        self.context[covered] = context
        self.thing[covered] = thing

    def shadow(self, alpha: np.ndarray) -> None:
        """Darken the ground under an object that is added next, whose alpha (H, W) is given."""
        move = shifted(self.rng.uniform(-4, 4), self.rng.uniform(1, 5))
        soft = cv2.GaussianBlur(cv2.warpAffine(alpha, move, alpha.shape[::-1]), (0, 0), 3)
        self.rgb *= 1 - self.rng.uniform(0.2, 0.5) * soft[..., None]


def make_sample(rng: Rng) -> Sample:
    """Draw one picture with its ground truth; every random choice comes from `rng`."""
    # Draw scenes until every class in one of them is large enough.
    scene = _scene(rng)
    while not _is_clear(scene.mask):
        scene = _scene(rng)
    # Collect the visible pixels of each object and each distractor, on which saliency depends.
    numbers = range(scene.thing.min(), scene.thing.max() + 1)
    things = {number: scene.thing == number for number in numbers if number}
    instances = [seen for number, seen in things.items() if number > 0 and seen.any()]
    distractors = [seen for number, seen in things.items() if number < 0 and seen.mean() > 0.01]
    saliency = saliency_map(rng, instances, scene.context > 0, distractors)
    classes = tuple(int(value) for value in np.unique(scene.mask) if value)
    return Sample(_photograph(rng, scene.rgb), scene.mask, saliency, scene.context, classes)


def _is_clear(mask: np.ndarray) -> bool:
    """Return whether `mask` has a class, and at least `LEAST_SHARE` of every class that it has."""
    share = np.bincount(mask.ravel())[1:] / mask.size
    return bool(share.any()) and bool((share[share > 0] >= LEAST_SHARE).all())


def _scene(rng: Rng) -> Scene:
    shape = (int(rng.integers(*SIDES)), int(rng.integers(*SIDES)))
    scene = Scene(rng, shape)
    # Choose the classes.
    count = 1 + int(rng.choice(3, p=CLASS_COUNT))
    values = (1 + rng.permutation(len(KINDS))[:count]).tolist()
    # Paint from back to front: distractors, contexts, perhaps a distractor on the contexts, the
    # objects from far to near, and perhaps a distractor on the objects.
    behind = int(rng.integers(3, 7))
    for number in range(1, behind + 1):
        scene.add(ground.distractor(rng, shape), thing=-number)
    placed = _placed(rng, shape, values)
    _add_contexts(scene, placed)
    if rng.random() < 0.5:
        _add_distractor(scene, behind + 1, scene.context > 0, 0.2)
    placed.sort(key=lambda item: _box(item[1].alpha).bottom)
    for number, (value, layer) in enumerate(placed, start=1):
        scene.shadow(layer.alpha)
        scene.add(layer, mask=value, thing=number)
    if rng.random() < 0.25:
        _add_distractor(scene, behind + 2, scene.mask > 0, 0.12)
    return scene


def _add_distractor(scene: Scene, number: int, over: np.ndarray, most: float) -> None:
    """Draw a distractor, and add it unless it hides too much.

    Args:
        scene: The picture, which is changed.
        number: Number of the distractor, above 0.
        over: (H, W) bool, the pixels that must stay visible.
        most: Largest share of these pixels that the distractor may hide.
    """
    layer = ground.distractor(scene.rng, scene.shape)
    if (layer.alpha > 0.5)[over].sum() <= most * over.sum():
        scene.add(layer, thing=-number)


def _placed(rng: Rng, shape: Shape, values: Sequence[int]) -> list[tuple[int, Layer]]:
    """Draw one to three objects per class, at places where they hide little of each other.

    Args:
        rng: The picture's generator.
        shape: (H, W).
        values: Mask values of the classes.

    Returns:
        The mask value and the layer of each object.
    """
    # The more classes, the fewer objects per class and the smaller the objects.
    most = {1: 3, 2: 2, 3: 1}[len(values)]
    counts = [min(most, 1 + int(rng.choice(3, p=(0.65, 0.25, 0.1)))) for _ in values]
    total = sum(counts)
    taken = np.zeros(shape, np.float32)
    placed = []
    for value in np.repeat(values, counts).tolist():
        size = rng.uniform(0.1, 0.25) if total == 1 else rng.uniform(0.075, 0.3 / total**0.7)
        layer = _object(rng, shape, KINDS[value - 1], size, taken)
        taken = np.maximum(taken, layer.alpha)
        placed.append((value, layer))
    return placed


def _object(rng: Rng, shape: Shape, kind: Kind, size: float, taken: np.ndarray) -> Layer:
    """Draw one object at a place where it hides little of the others.

    Args:
        rng: The picture's generator.
        shape: (H, W).
        kind: The class.
        size: Approximate share of the picture that the object covers.
        taken: (H, W) in [0, 1], the largest alpha of the objects so far.

    Returns:
        Paint and alpha.
    """
    canvas = Canvas(int(0.8 * max(shape)), (rng.uniform(-0.7, 0.7), -0.8))
    kind.paint(canvas, rng)
    box = _box(canvas.alpha)
    width, height = box.right - box.left, box.bottom - box.top
    # Combine scale, rotation, stretch, shear and flip in one matrix (2, 2).
    scale = np.sqrt(size * shape[0] * shape[1] / canvas.alpha.sum())
    scale = min(scale, 0.98 * shape[1] / width, 0.92 * shape[0] / height)
    angle = np.radians(rng.uniform(-kind.tilt, kind.tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch, shear = rng.uniform(0.88, 1.14), rng.uniform(-0.1, 0.1)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    matrix = scale * turn @ np.array([[stretch * flip, shear], [0, 1 / stretch]])
    middle = np.array([(box.left + box.right) / 2, (box.top + box.bottom) / 2])
    # Take the best of up to 24 random places: the one where the smallest share of the object
    # overlaps others. A quarter of the resolution suffices for that.
    best, least, coarse = None, np.inf, taken[::4, ::4]
    margin = min(0.42 * scale * width, shape[1] / 2)
    for _ in range(24):
        at = (rng.uniform(margin, shape[1] - margin), shape[0] * rng.uniform(*kind.rows))
        move = np.column_stack([matrix, at - matrix @ middle]).astype(np.float32)
        rough = cv2.warpAffine(canvas.alpha, move / 4, coarse.shape[::-1])
        hidden = (rough * coarse).sum() / (rough.sum() + 1)
        if hidden < least:
            best, least = move, hidden
        if hidden < 0.02:
            break
    return canvas.warped(best, shape)


def _add_contexts(scene: Scene, placed: Sequence[tuple[int, Layer]]) -> None:
    """Add contexts to the picture: usually those of its classes, sometimes that of another class.

    Args:
        scene: The picture, which is changed.
        placed: The mask value and the layer of each object.
    """
    rng, (height, width) = scene.rng, scene.shape
    alone = len({value for value, _ in placed}) == 1
    for value in rng.permutation(len(KINDS)) + 1:
        kind = KINDS[value - 1]
        own = [layer.alpha for other, layer in placed if other == value]
        if kind.context is None or rng.random() >= (WITH_CONTEXT if own else STRAY_CONTEXT):
            continue
        # The context surrounds the objects of its class. Without any it is at a random place.
        if own:
            left, top, right, bottom = _box(np.max(own, axis=0))
        else:
            left, top = rng.uniform(0, 0.5) * width, rng.uniform(0.2, 0.5) * height
            right, bottom = left + 0.5 * width, top + 0.35 * height
        reach = width if alone and rng.random() < 0.7 else width * rng.uniform(0.05, 0.2)
        box = Box(left - reach, top, right + reach, bottom)
        scene.add(kind.context(rng, scene.shape, box), context=int(value))


def _box(alpha: np.ndarray) -> Box:
    """Return the box around the pixels whose alpha is above one half."""
    x, y, w, h = cv2.boundingRect((alpha > 0.5).astype(np.uint8))
    return Box(float(x), float(y), float(x + w), float(y + h))


def _photograph(rng: Rng, rgb: np.ndarray) -> Image.Image:
    """Return the paint as a photograph: with uneven light, noise and sometimes blur or JPEG loss.

    Args:
        rng: The picture's generator.
        rgb: (H, W, 3) float32, in 0..255 or a little outside.
    """
    # The light varies over the picture, and has a tint.
    shape = rgb.shape[:2]
    light = rng.uniform(0.65, 0.95) + rng.uniform(0.1, 0.5) * noise(rng, shape, max(shape) / 2)
    rgb = rgb * light[..., None] * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    if rng.random() < 0.5:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 0.9))
    grain = rng.standard_normal(rgb.shape, dtype=np.float32) * rng.uniform(1, 9)
    image = Image.fromarray((rgb + grain).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(35, 75)))
        image = Image.open(buffer).convert("RGB")
    return image
