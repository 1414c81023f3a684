"""Pictures for people: heat over an image, label colours over an image, strips of panels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tool.formats.mask import palette

_CAPTION = 18
_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.42)


def heat_colours() -> np.ndarray:
    """Return the colours of a map, (256, 3) uint8: perceptually even, and readable without hue."""
    grey = np.arange(256, dtype=np.uint8)[None]
    return cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[0, :, ::-1]


def heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return an image under the heat colours of a map.

    Args:
        image: (H, W, 3) uint8, RGB.
        values: (H, W) in [0, 1]; values beyond are clipped.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    colours = heat_colours()[(np.clip(values, 0, 1) * 255).astype(np.uint8)]
    return cv2.addWeighted(image, 0.5, colours, 0.5, 0)


def label_colours(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return an image tinted by the palette, except where the label is 0.

    Args:
        image: (H, W, 3) uint8, RGB.
        label: (H, W) uint8.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    colours = np.asarray(palette(), dtype=np.uint8).reshape(-1, 3)[label]
    mixed = cv2.addWeighted(image, 0.35, colours, 0.65, 0)
    return np.where((label > 0)[:, :, None], mixed, image)


def outlined(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return an image tinted by the palette, with a white line inside the contour of each class.

    Args:
        image: (H, W, 3) uint8, RGB.
        label: (H, W) uint8.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    padded = np.pad(label, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.any([other != label for other in around], axis=0) & (label > 0)
    return np.where(edge[:, :, None], np.uint8(255), label_colours(image, label))


def grid(rows: Sequence[Sequence[tuple[str, np.ndarray] | None]], cell: int) -> np.ndarray:
    """Return rows of captioned panels, each in the corner of a square cell.

    Args:
        rows: Rows of equal length, at least one. A panel is (h, w, 3) uint8 with sides of at most
            `cell`; None for an empty cell.
        cell: Side of a cell, in pixels.

    Returns:
        (n (cell + caption), m cell, 3) uint8.
    """

    def in_cell(panel: tuple[str, np.ndarray] | None) -> np.ndarray:
        name, picture = panel or ("", np.empty((0, 0, 3), np.uint8))
        square = np.full((cell, cell, 3), 255, np.uint8)
        square[: picture.shape[0], : picture.shape[1]] = picture
        return _captioned(name, square)

    return np.concatenate([np.concatenate([in_cell(one) for one in row], axis=1) for row in rows])


def strip(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return captioned panels side by side.

    Args:
        panels: Captions and n panels (H, W, 3) uint8 of one size.

    Returns:
        (H + caption, n W, 3) uint8.
    """
    return np.concatenate([_captioned(name, panel) for name, panel in panels], axis=1)


def _captioned(name: str, panel: np.ndarray) -> np.ndarray:
    """Return a panel below a bar with its caption, of which as much is shown as fits."""
    width = panel.shape[1]
    bar = np.full((_CAPTION, width, 3), 255, np.uint8)
    shown = name
    while shown and cv2.getTextSize(shown, *_FONT, 1)[0][0] > width - 6:
        name = name[:-1]
        shown = f"{name}.." if name else ""
    cv2.putText(bar, shown, (4, 13), *_FONT, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, panel])
