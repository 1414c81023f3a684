"""The comparison table: mean and sample deviation over seeds, honest about what is missing."""

from __future__ import annotations

import json
from pathlib import Path

from runs import assert_refused, run


def write(directory: Path, masks: float, cam: float | None = None) -> None:
    directory.mkdir(parents=True)
    leak = {"overall": 12.5}
    (directory / "miou.json").write_text(json.dumps({"miou": masks, "leak": leak}))
    if cam is not None:
        content = {"miou": cam, "oracle": [0.3, cam + 1], "protocol": {"bg_threshold": 0.25}}
        (directory / "miou_cam.json").write_text(json.dumps(content))


def test_rows_are_mean_and_deviation_over_seeds(tmp_path) -> None:
    for seed, masks in enumerate((50.0, 52.0, 54.0)):
        write(tmp_path / f"fbr-seed{seed}", masks, masks - 10)
    write(tmp_path / "fill-seed0", 40.0)
    (tmp_path / "fbr-seed3").mkdir()
    result = run("tool/report/table.py", tmp_path, "--methods", "fill", "fbr", "eps")
    rows = [[cell.strip() for cell in line.split("|")] for line in result.stdout.splitlines()]
    assert rows[0][2] == "CAM at .25"
    by_name = {row[1]: row[2:-1] for row in rows}
    assert by_name["`fbr`"] == ["42.0 ± 2.0", "43.0 ± 2.0", "52.0 ± 2.0", "12.5 ± 0.0", "3"]
    assert by_name["`fill`"] == ["-", "-", "40.0", "12.5", "1"]
    assert set(by_name["`eps`"]) == {"not run", "0"}


def test_an_empty_folder_names_the_script(tmp_path) -> None:
    assert_refused(run("tool/report/table.py", tmp_path), "compare.sh")
