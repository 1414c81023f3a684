"""Look a dataset over before hours are spent: broken files, sizes, labels against masks, counts.

`python -m data.check --dataset voc12 --root R --list train` prints a table a class and every
problem; the exit status is 2 when there is one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.catalog import Catalog, add_dataset_flags, catalog_from
from tool.cli import Parser, one_line, positive_int, run_stage
from tool.files import atomic_path
from tool.parallel.processes import cores

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

    def attempt(self, read: Callable[[str], object]) -> object:
        """What `read` returns for the image; None, and a problem noted, when it fails."""
        try:
            return read(self.image_id)
        except FILE_ERRORS as error:
            message = one_line(error)
            if message not in self.problems:
                self.problems.append(message)
            return None


@dataclasses.dataclass
class Report:
    """The findings of a list, summed up; `problems` make the exit status 2."""

    catalog: Catalog
    findings: list[Finding]
    problems: list[str]
    disagreements: list[str]
    notes: list[str]

    def classes(self) -> dict[str, dict[str, float]]:
        """Per class: images labelled with it, images whose mask has it, percent of all pixels."""
        labels = [finding.label for finding in self.findings if finding.label is not None]
        masks = [finding.pixels for finding in self.findings if finding.pixels is not None]
        count = self.catalog.num_classes
        labelled = np.sum(labels, axis=0, dtype=np.int64) if labels else np.zeros(count, np.int64)
        pixels = np.array(masks, np.int64).reshape(-1, count + 1)
        shares = 100 * pixels.sum(0) / max(1, pixels.sum())
        shown = (pixels[:, 1:] > 0).sum(0)
        return {
            name: {
                "images_labelled": int(labelled[index]),
                "images_in_masks": int(shown[index]),
                "pixel_percent": float(shares[index + 1]),
            }
            for index, name in enumerate(self.catalog.class_names)
        }

    def sizes(self) -> dict[str, list[int]]:
        """The smallest and the largest [W, H] by area; empty when no image can be read."""
        sizes = sorted(
            (f.size for f in self.findings if f.size), key=lambda size: size[0] * size[1]
        )
        return {"smallest": list(sizes[0]), "largest": list(sizes[-1])} if sizes else {}

    def classes_an_image(self) -> dict[int, int]:
        """Number of labelled classes -> number of images."""
        counts = Counter(int(f.label.sum()) for f in self.findings if f.label is not None)
        return dict(sorted(counts.items()))


def examine(catalog: Catalog, image_id: str, *, with_masks: bool, with_labels: bool) -> Finding:
    """Read all files of one image and compare its mask with its label."""
    finding = Finding(image_id)
    image = finding.attempt(catalog.read_image)
    finding.size = image.size if image is not None else None
    if with_labels:
        label = finding.attempt(catalog.label)
        finding.label = label > 0 if label is not None else None
    if catalog.has_saliency:
        saliency = finding.attempt(catalog.read_saliency)
        finding.brightest = saliency.getextrema()[1] if saliency is not None else None
    if with_masks:
        mask = finding.attempt(catalog.read_mask)
        if mask is not None:
            finding.pixels = np.bincount(mask.ravel(), minlength=256)[: catalog.num_classes + 1]
    if finding.pixels is not None and finding.label is not None:
        _compare(finding, catalog.class_names)
    return finding


def _compare(finding: Finding, class_names: Sequence[str]) -> None:
    shown = finding.pixels[1:] > 0
    for names, what in (
        (shown & ~finding.label, "in its mask but not in its label"),
        (finding.label & ~shown, "in its label but not in its mask"),
    ):
        if names.any():
            listed = ", ".join(class_names[index] for index in np.flatnonzero(names))
            finding.disagreements.append(f"image {finding.image_id!r}: {listed} {what}")


def check(catalog: Catalog, ids: Sequence[str]) -> Report:
    """Examine every image of a list.

    Args:
        catalog: the dataset. Masks and saliency maps are looked at when it has a folder of them.
        ids: the images.

    Returns:
        The report; whatever is wrong with a file is in its `problems`.
    """
    problems: list[str] = []
    notes: list[str] = []
    with_labels = True
    try:
        catalog.has_label(ids[0])
    except FileNotFoundError as error:
        with_labels = False
        notes.append(f"{one_line(error)}: only methods that read no labels can train")
    except FILE_ERRORS as error:
        with_labels = False
        problems.append(one_line(error))
    with_masks = any((catalog.root / folder).is_dir() for folder in catalog.layout.masks)
    if not with_masks:
        notes.append("no folder of masks: images can be trained on but not evaluated")
    if not catalog.has_saliency:
        notes.append(
            f"no saliency maps in {catalog.saliency_root}: methods that need them cannot train"
        )

    def one(image_id: str) -> Finding:
        return examine(catalog, image_id, with_masks=with_masks, with_labels=with_labels)

    with ThreadPoolExecutor(cores()) as pool:
        findings = list(tqdm(pool.map(one, ids), total=len(ids), disable=None, leave=False))
    brightest = [finding.brightest for finding in findings if finding.brightest is not None]
    if brightest and max(brightest) <= 1:
        problems.append(f"saliency maps in {catalog.saliency_root} are not scaled to 0..255")
    problems += [problem for finding in findings for problem in finding.problems]
    disagreements = [line for finding in findings for line in finding.disagreements]
    return Report(catalog, findings, problems, disagreements, notes)


def as_text(report: Report, *, show: int) -> str:
    """The report to read; at most `show` lines of problems and of disagreements."""
    width = max(10, *(len(name) for name in report.catalog.class_names))
    lines = [f"{len(report.findings)} images"]
    lines += [f"{name} {size[0]}x{size[1]}" for name, size in report.sizes().items()]
    counts = report.classes_an_image()
    lines.append(", ".join(f"{n} with {k} classes" for k, n in counts.items()) or "no labels")
    lines.append(f"{'class':<{width}} {'labelled':>9} {'in masks':>9} {'% of pixels':>12}")
    for name, row in report.classes().items():
        labelled, shown, share = row.values()
        lines.append(f"{name:<{width}} {labelled:>9} {shown:>9} {share:>12.2f}")
    lines += [f"note: {note}" for note in report.notes]
    for title, found in (
        ("labels and masks disagree", report.disagreements),
        ("problems", report.problems),
    ):
        lines.append(f"{title}: {len(found) or 'none'}")
        lines += [f"  {line}" for line in found[:show]]
        if len(found) > show:
            lines.append(f"  ... and {len(found) - show} more (--show, or --json)")
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, object]:
    """The report as plain types, every problem in it."""
    return {
        "images": len(report.findings),
        "sizes": report.sizes(),
        "classes_an_image": {str(k): n for k, n in report.classes_an_image().items()},
        "classes": report.classes(),
        "notes": report.notes,
        "disagreements": report.disagreements,
        "problems": report.problems,
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="python -m data.check", description=__doc__.split("\n", maxsplit=1)[0])
    add_dataset_flags(parser)
    parser.add_argument("--json", type=Path, help="also write the report, with every problem, here")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="count a label that disagrees with a mask as a problem",
    )
    parser.add_argument("--show", type=positive_int, default=100, help="lines of problems to print")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 2 when something is broken, else 0."""
    args = build_parser().parse_args(argv)
    catalog = catalog_from(args)
    report = check(catalog, catalog.ids(args.list))
    print(as_text(report, show=args.show))
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    broken = bool(report.problems) or (args.strict and bool(report.disagreements))
    return 2 if broken else 0


if __name__ == "__main__":
    run_stage(main)
