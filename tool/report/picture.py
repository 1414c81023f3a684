"""Pictures for people: heat over an image, label colours over an image, strips of panels."""

from __future__ import annotations

import cv2
import numpy as np

from tool.formats.mask import palette

_CAPTION = 18


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


def strip(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return captioned panels side by side.

    Args:
        panels: Captions and n panels (H, W, 3) uint8 of one size.

    Returns:
        (H + caption, n W, 3) uint8.
    """
    return np.concatenate([_captioned(name, panel) for name, panel in panels], axis=1)


def _captioned(name: str, panel: np.ndarray) -> np.ndarray:
    """Return a panel below a bar with its caption."""
    bar = np.full((_CAPTION, panel.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, panel])
