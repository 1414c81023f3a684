"""Whether the saliency maps of a dataset are there, and scaled; what a message says if not.

The maps are read by `data.catalog`, and made by `data.saliency`.
"""

from __future__ import annotations

from collections.abc import Sequence

from data.catalog import Catalog
from data.files import all_found

HALF = 127  # a saliency map counts as bright if a pixel is above this
DARK_MAPS = 200  # number of saliency maps among which one must be bright


def no_saliency(catalog: Catalog, who: str) -> str:
    """Return an error message for a dataset without a folder of saliency maps.

    Args:
        catalog: The dataset.
        who: What needs the maps, such as "method 'fbr'".
    """
    return (
        f"{who} needs saliency, and {catalog.saliency_root} is no folder: python -m data.saliency "
        "makes it, --saliency-root says where it is, --method cam (METHOD=cam) needs none"
    )


def require_saliency(catalog: Catalog, ids: Sequence[str]) -> None:
    """Check that every image has a saliency map, and that the maps are scaled to 0..255.

    They count as scaled if one of the first `DARK_MAPS` has a pixel above `HALF`.

    Args:
        catalog: The dataset.
        ids: The images.

    Raises:
        FileNotFoundError: Maps are missing; names the first few.
        ValueError: There is no folder of maps, a map is broken, or they are not scaled.
    """
    if not catalog.has_saliency:
        raise ValueError(no_saliency(catalog, "this method"))
    all_found(ids, catalog.saliency_path)
    brightest = 0
    for image_id in ids[:DARK_MAPS]:
        brightest = max(brightest, catalog.read_saliency(image_id).getextrema()[1])  # type: ignore
        if brightest > HALF:
            return
    raise ValueError(dark_saliency(catalog, brightest))


def dark_saliency(catalog: Catalog, brightest: int) -> str:
    """Return an error message for saliency maps that are not scaled to 0..255.

    Args:
        catalog: The dataset.
        brightest: The largest value that was found.
    """
    return (
        f"saliency maps in {catalog.saliency_root} are not scaled to 0..255: the largest value is "
        f"{brightest}, and only what is above {HALF} counts as salient; multiply them, so that "
        "255 is salient"
    )
