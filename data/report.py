"""Make the report of a run: one page with figures, curves and images, the worst images first.

The page is one file that loads no others. It has a strip per image: the CAM of each class, the
mask, the truth and the wrong pixels. Without ground truth the images are sorted by how little their
masks resemble the saliency maps, or else by how much the CRF changed. By default the dataset and
the list are those of the run's config.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.readable import ListFlags, open_list
from data.report_flags import parse_like_run
from data.report_images import ReportImages
from tool.bar import Bar
from tool.cli import run_stage
from tool.flags import flag
from tool.parallel.processes import cores
from tool.ranges import POSITIVE
from tool.report.head import head
from tool.report.html import Page, Row, write_page
from tool.report.run import open_run, with_own_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        run: Run directory with mask/ and cam/, or a folder of masks.
        compare: Further runs of the same images, shown side by side with the first one.
        mask_dir: Folder of the masks, if it is not RUN/mask.
        score: Result of eval_miou.py for the masks, if it is not RUN/miou.json.
        out: File to write. By default it is RUN/report.html.
        pictures: Number of images that get pictures. All images are in the table of the page.
    """

    data: ListFlags
    run: Path = flag(positional=True)
    compare: list[Path] = flag(list, metavar="RUN")
    mask_dir: Path | None = None
    score: Path | None = flag(None, metavar="FILE")
    out: Path | None = flag(None, metavar="FILE")
    pictures: int = flag(400, type=POSITIVE, metavar="IMAGES")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    example = "out/toy-fbr-seed0 --compare out/toy-eps-seed0"
    command = parse_like_run(Command, argv, example=example)
    own = open_run(command.run, mask_dir=command.mask_dir, score=command.score)
    runs = with_own_names([own, *map(open_run, command.compare)])
    catalog, images = open_list(command.data)
    source = ReportImages.of(catalog, runs)
    ids = [i for i in images.ids if source.mask_path(runs[0], i).is_file()]
    if not ids:
        raise FileNotFoundError(
            f"{runs[0].mask_dir} has no mask of any image of {images.name}: run crf_postprocess.py "
            "first, or name the list of the masks (--list)"
        )
    rows = list(in_threads(source.row, ids, "measure"))
    chosen = choose(rows, command.pictures)
    config = runs[0].noted.get("config") or {}
    page = Page(
        title=f"{config.get('method') or runs[0].name} on {catalog.name}",
        lead=f"{runs[0].name}: masks of {len(ids)} of the {len(images.ids)} images of {images.name}"
        + "".join(f", compared with {run.name}" for run in runs[1:]),
        parts=head(runs, catalog.class_names, {"dataset": f"{catalog.name}, {catalog.root}"}),
        runs=[{"name": run.name, "gated": run.gated} for run in runs],
        class_names=catalog.class_names,
        choice="the worst" + (", and those that differ most" if len(runs) > 1 else ""),
    )
    out = command.out or command.run / "report.html"
    pictures = zip(chosen, in_threads(source.picture, chosen, "pictures"), strict=True)
    count = write_page(out, page, rows, pictures)
    size = out.stat().st_size / 1e6
    print(f"{out}: {len(rows)} images, {count} of them with pictures, {size:.1f} MB")


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterator[Any]:
    """Yield `function(item)` in order, a few items ahead; files are decoded in threads."""
    ahead = 4 * cores()
    with ThreadPoolExecutor(cores()) as pool, Bar(len(items), what, unit="image") as bar:
        for first in range(0, len(items), ahead):
            for result in pool.map(function, items[first : first + ahead]):
                bar.update()
                yield result


def choose(rows: Sequence[Row], count: int) -> list[Row]:
    """Return the rows that get pictures, those that a reader wants first at the front.

    They are the images with the worst masks of the first run, in turn with those in which another
    run differs most from it.
    """
    orders = [sorted(rows, key=badness, reverse=True)]
    for number in range(len(rows[0].differ)):
        orders.append(sorted(rows, key=lambda row: row.differ[number] or 0, reverse=True))
    chosen: dict[str, Row] = {}
    for places in zip(*orders, strict=True):
        for row in places:
            if len(chosen) < count:
                chosen.setdefault(row.id, row)
    return list(chosen.values())


def badness(row: Row) -> tuple[float, float]:
    """Return how bad the first mask of an image is, by its truth, else by what else is known."""
    first = row.measures[0]
    if first is None:
        return (0.0, 0.0)
    if first.score is not None:
        return (1 - first.score, first.wrong or 0.0)
    return (first.saliency or 0.0, first.crf or 0.0)


if __name__ == "__main__":
    run_stage(main)
