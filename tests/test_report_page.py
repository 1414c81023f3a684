"""The page of a report in a real browser: filter, search, sort, compare, keys; and no complaint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, MISSING, Browser
from conftest import write_folder
from report_runs import write_run
from runs import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING),
]
CARDS = "[...document.querySelectorAll('#pictures .card')]"
IDS = f"return {CARDS}.map((card) => card.dataset.id)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, and one that compares it with another."""
    folder = tmp_path_factory.mktemp("report")
    root = write_folder(folder / "dataset")
    one = write_run(root, folder / "one", shift=3, plain=True)
    other = write_run(root, folder / "other", shift=7)
    for flags in ([one], [one, "--compare", other, "--out", folder / "both.html"]):
        assert run("data/report.py", *flags).returncode == 0
    return {"one": one / "report.html", "both": folder / "both.html"}


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def opened(window: Browser, page: Path) -> Browser:
    """The page, with its first image drawn."""
    window.open(page)
    window.wait(f"{CARDS}[0]?.dataset.drawn")
    return window


def choose(window: Browser, name: str, text: str) -> None:
    """Choose an option by its text."""
    found = window.run(
        f"const list = document.getElementById('{name}');"
        f"const option = [...list.options].find((one) => one.text === '{text}');"
        "if (!option) return false; list.value = option.value;"
        "list.dispatchEvent(new Event('change')); return true"
    )
    assert found, f"{name} has no {text}"


def type_into_search(window: Browser, text: str) -> None:
    window.run(
        f"const box = document.getElementById('search'); box.value = '{text}';"
        "box.dispatchEvent(new Event('input'))"
    )


def test_filter_search_and_sort(window: Browser, pages: dict[str, Path]) -> None:
    opened(window, pages["one"])
    ids = window.run(IDS)
    assert ids[0] == "d6", "the worst comes first"
    assert ids[-1] == "empty"
    choose(window, "sort", "best first")
    assert window.run(IDS)[0] == "empty"
    choose(window, "sort", "id")
    assert window.run(IDS)[:3] == ["2007_000032", "a1", "b-4"]
    choose(window, "class", "sky lark")
    assert set(window.run(IDS)) == {"v1.2.x", "b-4", "c5", "d6"}
    type_into_search(window, "V1.")
    assert window.run(IDS) == ["v1.2.x"]
    assert window.run("return document.getElementById('count').textContent") == "1 of 8 images"
    choose(window, "class", "disc")
    assert window.run(IDS) == []
    assert window.errors() == []


def test_panels_show_what_they_say(window: Browser, pages: dict[str, Path]) -> None:
    opened(window, pages["one"])
    type_into_search(window, "a1")
    window.wait(f"{CARDS}[0]?.dataset.drawn")
    names = window.run(
        f"return [...{CARDS}[0].querySelectorAll('figcaption')].map((c) => c.textContent)"
    )
    assert names == [
        "image", "disc: CAM before the gate", "disc: the gate", "disc: CAM",
        "mask: disc", "truth: disc", "errors",
    ]  # fmt: skip
    # The error map has all of its colours but that of confused classes, which a1 does not have.
    colours = window.run(
        f"const canvas = [...{CARDS}[0].querySelectorAll('canvas')].at(-1);"
        "const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        "const near = (place, colour) => colour.every((v, c) => Math.abs(all[place + c] - v) < 60);"
        "return Object.values(report.errors).map((colour) => {"
        "  let count = 0;"
        "  for (let place = 0; place < all.length; place += 4) count += near(place, colour);"
        "  return count > 0; })"
    )
    assert colours == [True, True, False]
    assert window.errors() == []


def test_two_runs_side_by_side(window: Browser, pages: dict[str, Path]) -> None:
    opened(window, pages["both"])
    order = window.run("return document.getElementById('sort').selectedOptions[0].text")
    assert order == "masks differ most from other"
    differ = window.run("return state.rows.map((row) => row.differ[0])")
    assert differ == sorted(differ, reverse=True)
    assert differ[0] > 0
    choose(window, "sort", "other worse")
    lost = window.run("return state.rows.map((row) => row.score[0] - row.score[1])")
    assert lost == sorted(lost, reverse=True)
    names = window.run(f"return {CARDS}[0].innerText")
    assert "one:" in names
    assert "other:" in names
    assert window.errors() == []


def test_the_table_sorts_and_opens_images(window: Browser, pages: dict[str, Path]) -> None:
    opened(window, pages["one"])
    window.run("document.getElementById('show-table').click()")
    rows = "[...document.querySelectorAll('#table tbody tr')]"
    cells = f"return {rows}.map((row) => row.cells[0].innerText)"
    assert window.run(cells)[0] == "d6"
    for hidden in ("legend", "pictures"):
        assert window.run(f"return document.getElementById('{hidden}').offsetParent === null")
    head = (
        "[...document.querySelectorAll('th button')].find((one) => one.innerText.startsWith('IoU'))"
    )
    window.run(f"{head}.click()")
    assert window.run(cells)[0] == "empty"
    assert window.run(f"return {head}.closest('th').ariaSort") == "descending"
    window.run("document.querySelector('#table tbody button').click()")
    assert window.run("return document.querySelector('dialog .card').dataset.id") == "empty"
    window.wait("document.querySelector('dialog .card').dataset.drawn")
    assert window.errors() == []


def test_keys(window: Browser, pages: dict[str, Path]) -> None:
    opened(window, pages["one"])
    focus = (
        "return document.activeElement.closest('.card')?.dataset.id ?? document.activeElement.id"
    )
    ids = window.run(IDS)
    for key, expected in (("j", ids[0]), ("j", ids[1]), ("k", ids[0]), ("/", "search")):
        window.press(key)
        assert window.run(focus) == expected
    window.press("j")  # a letter, where one types
    assert window.run("return document.getElementById('search').value") == "j"
    window.press("\ue00c")  # Escape
    assert window.run(IDS) == ids
    window.run(f"{CARDS}[0].focus()")
    window.press("\ue007")  # Enter
    assert window.run(f"return {CARDS}[0].classList.contains('large')")
    window.press("t")
    assert window.run("return document.getElementById('pictures').hidden")
    assert window.errors() == []


@pytest.mark.parametrize("page", ["one", "both"])
def test_a_phone_in_the_dark(pages: dict[str, Path], page: str) -> None:
    with Browser(390, 844, dark=True) as phone:
        opened(phone, pages[page])
        assert phone.run("return document.documentElement.scrollWidth") <= 390
        ground = phone.run("return getComputedStyle(document.body).backgroundColor")
        assert max(int(v) for v in ground.strip("rgb()").split(",")) < 64
        asked = phone.run("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert [name for name in asked if not name.startswith("data:")] == []
        assert phone.errors() == []
