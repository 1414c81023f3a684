"""Check a dataset before hours are spent on it: broken files, sizes, labels against masks.

The command prints a table of the classes and every problem. Its exit status is 2 if there is a
problem.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.catalog import Catalog
from data.flags import DatasetFlags, catalog_from
from data.saliency_maps import DARK_MAPS, HALF, dark_saliency
from tool.bar import counted
from tool.cli import one_line, printable, run_stage
from tool.files import write_json
from tool.flags import flag, parse_flags
from tool.formats.predictions import colour_warning
from tool.limits import raise_if_limit
from tool.parallel.processes import cores
from tool.ranges import POSITIVE
from tool.score.truth import no_foreground

FILE_ERRORS = (ValueError, OSError)


@dataclasses.dataclass
class Finding:
    """What one image shows."""

    image_id: str
    size: tuple[int, int] | None = None  # (W, H)
    label: np.ndarray | None = None  # (K,) bool
    pixels: np.ndarray | None = None  # (K + 1,) int64, of the mask, 255 left out
    brightest: int | None = None  # of the saliency map, 0..255
    problems: list[str] = dataclasses.field(default_factory=list)
    disagreements: list[str] = dataclasses.field(default_factory=list)

    def attempt(self, read: Callable[[], Any]) -> Any:
        """Return what `read` returns; if a file is broken, note the problem and return None."""
        try:
            return read()
        except FILE_ERRORS as error:
            raise_if_limit(error)
            message = one_line(error)
            if message not in self.problems:
                self.problems.append(message)
            return None


def examine(catalog: Catalog, image_id: str, *, with_masks: bool, with_labels: bool) -> Finding:
    """Read all files of one image and compare its mask with its label."""
    finding = Finding(image_id)
    finding.size = finding.attempt(lambda: catalog.read_image(image_id).size)
    if with_labels:
        finding.label = finding.attempt(lambda: catalog.label(image_id) > 0)
    if catalog.has_saliency:
        finding.brightest = finding.attempt(lambda: catalog.read_saliency(image_id).getextrema()[1])
    if with_masks:
        finding.pixels = finding.attempt(lambda: _pixels(catalog, image_id))
    if finding.pixels is not None and finding.label is not None:
        _compare(finding, catalog.class_names)
    return finding


def _pixels(catalog: Catalog, image_id: str) -> np.ndarray:
    """Return the number of pixels of each value of a mask, (K + 1,) int64; 255 is left out."""
    mask = catalog.read_mask(image_id)
    return np.bincount(mask.ravel(), minlength=256)[: catalog.num_classes + 1]


def _compare(finding: Finding, class_names: Sequence[str]) -> None:
    shown = finding.pixels[1:] > 0
    for names, what in (
        (shown & ~finding.label, "in its mask but not in its label"),
        (finding.label & ~shown, "in its label but not in its mask"),
    ):
        if names.any():
            listed = ", ".join(class_names[index] for index in np.flatnonzero(names))
            finding.disagreements.append(f"image {finding.image_id!r}: {listed} {what}")


def check(catalog: Catalog, ids: Sequence[str]) -> dict[str, Any]:
    """Examine every image of a list.

    Args:
        catalog: The dataset. Masks and saliency maps are looked at if it has a folder of them.
        ids: The images.

    Returns:
        The report in plain types; whatever is wrong with a file is in its `problems`.
    """
    problems: list[str] = []
    notes: list[str] = []
    with_labels = False
    try:
        catalog.has_label(ids[0])
        with_labels = True
    except FileNotFoundError as error:
        notes.append(f"{one_line(error)}: only methods that read no labels can train")
    except FILE_ERRORS as error:
        problems.append(one_line(error))
    with_masks = any((catalog.root / folder).is_dir() for folder in catalog.layout.masks)
    if not with_masks:
        notes.append("no folder of masks: images can be trained on but not evaluated")
    if not catalog.has_saliency:
        notes.append(
            f"no saliency maps in {catalog.saliency_root}: methods that need them cannot train"
        )
    one = functools.partial(examine, catalog, with_masks=with_masks, with_labels=with_labels)
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(one, ids)
        findings = list(counted(found, len(ids), "check", unit="image", leave=False))
    first = findings[:DARK_MAPS]  # the stages look at no more
    brightest = [finding.brightest for finding in first if finding.brightest is not None]
    if brightest and max(brightest) <= HALF:
        problems.append(dark_saliency(catalog, max(brightest)))
    masks = [finding.pixels for finding in findings if finding.pixels is not None]
    if masks and not any(pixels[1:].any() for pixels in masks):
        problems.append(no_foreground(", ".join(catalog.layout.masks), catalog.num_classes))
    with_mask = (i for i, finding in zip(ids, findings, strict=True) if finding.pixels is not None)
    if warning := colour_warning(map(catalog.mask_path, with_mask)):
        notes.append(warning)
    return {
        **counts_of(findings, catalog.class_names),
        "notes": notes,
        "disagreements": [line for finding in findings for line in finding.disagreements],
        "problems": problems + [line for finding in findings for line in finding.problems],
    }


def counts_of(findings: Sequence[Finding], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the counts of a report.

    They are: the images; the smallest and the largest [W, H] by area; the images by their number of
    labelled classes; for each class the images labelled with it, those whose mask has it, and its
    percent of all pixels.
    """
    count = len(class_names)
    sizes = sorted((f.size for f in findings if f.size), key=np.prod)
    labels = [f.label for f in findings if f.label is not None]
    labelled = np.array(labels, np.int64).reshape(-1, count)
    masks = [f.pixels for f in findings if f.pixels is not None]
    pixels = np.array(masks, np.int64).reshape(-1, count + 1)
    shown = (pixels[:, 1:] > 0).sum(0).tolist()
    shares = (100 * pixels.sum(0) / max(1, pixels.sum()))[1:].tolist()
    columns = zip(class_names, labelled.sum(0).tolist(), shown, shares, strict=True)
    present = Counter(labelled.sum(1).tolist())
    return {
        "images": len(findings),
        "sizes": {"smallest": list(sizes[0]), "largest": list(sizes[-1])} if sizes else {},
        "classes_an_image": {str(number): present[number] for number in sorted(present)},
        "classes": {
            name: {"images_labelled": images, "images_in_masks": masks, "pixel_percent": share}
            for name, images, masks, share in columns
        },
    }


def as_text(report: dict[str, Any], *, show: int) -> str:
    """Return a report to read, with at most `show` lines of problems and of disagreements."""
    width = max(10, *(len(name) for name in report["classes"]))
    lines = [f"{report['images']} images"]
    lines += [f"{name} {size[0]}x{size[1]}" for name, size in report["sizes"].items()]
    counts = report["classes_an_image"].items()
    lines.append(", ".join(f"{n} with {k} classes" for k, n in counts) or "no labels")
    lines.append(f"{'class':<{width}} {'labelled':>9} {'in masks':>9} {'% of pixels':>12}")
    for name, row in report["classes"].items():
        labelled, shown, share = row.values()
        lines.append(f"{name:<{width}} {labelled:>9} {shown:>9} {share:>12.2f}")
    for note in report["notes"]:
        lines.append(note if note.startswith("warning: ") else f"note: {note}")
    for title, found in (
        ("labels and masks disagree", report["disagreements"]),
        ("problems", report["problems"]),
    ):
        lines.append(f"{title}: {len(found) or 'none'}")
        lines += [f"  {line}" for line in found[:show]]
        if len(found) > show:
            lines.append(f"  ... and {len(found) - show} more (--show, or --json)")
    return "\n".join(map(printable, lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        json: Write the report, with every problem, to this file too.
        strict: Count a label that disagrees with a mask as a problem.
        show: Lines of problems to print at most.
    """

    data: DatasetFlags
    json: Path | None = None
    strict: bool = False
    show: int = flag(100, type=POSITIVE, metavar="N")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 2 when something is broken, else 0."""
    command = parse_flags(Command, argv, example="--dataset folder --root my-photos --list train")
    catalog, name = catalog_from(command.data)
    report = check(catalog, catalog.ids(name))
    print(as_text(report, show=command.show))
    if command.json:
        write_json(command.json, report)
    return 2 if report["problems"] or (command.strict and report["disagreements"]) else 0


if __name__ == "__main__":
    run_stage(main)
