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
    (tmp_path / "fill-seed0" / "minutes.json").write_text('{"minutes": 7}')
    write(tmp_path / "fbr:--tau=0.5-seed0", 41.0)
    (tmp_path / "fbr-seed3").mkdir()
    result = run("tool/report/table.py", tmp_path, "--methods", "fill", "fbr", "eps")
    rows = [[cell.strip() for cell in line.split("|")] for line in result.stdout.splitlines()]
    assert rows[0][2] == "CAM at .25"
    by_name = {row[1]: row[2:-1] for row in rows}
    assert by_name["`fbr`"] == ["42.0 ± 2.0", "43.0 ± 2.0", "52.0 ± 2.0", "12.5 ± 0.0", "-", "3"]
    assert by_name["`fill`"] == ["-", "-", "40.0", "12.5", "7.0", "1"]
    assert set(by_name["`eps`"]) == {"not run", "0"}
    # The figures travel without the runs.
    (tmp_path / "fbr-seed1" / "config.json").write_text(json.dumps({"commit": "abc"}))
    save = tmp_path / "saved"
    assert run("tool/report/table.py", tmp_path, "--save", save).returncode == 0
    assert (save / "fbr:--tau=0.5-seed0.json").is_file()
    assert json.loads((save / "fbr-seed1.json").read_text())["commit"] == "abc"
    again = run("tool/report/table.py", save, "--methods", "fill", "fbr", "eps")
    assert again.stdout == result.stdout


def test_differences_are_paired_by_seed_and_processor(tmp_path) -> None:
    for method, masks in (("eps", (60.0, 64.0, 62.0)), ("fbr", (61.0, 67.0, 90.0))):
        for seed, value in enumerate(masks):
            write(tmp_path / f"{method}-seed{seed}", value)
            cpu = {"cpu": "another" if (method, seed) == ("fbr", 2) else "one"}
            (tmp_path / f"{method}-seed{seed}" / "config.json").write_text(json.dumps(cpu))
    write(tmp_path / "fill-seed0", 40.0)
    result = run("tool/report/table.py", tmp_path, "--baseline", "eps")
    rows = [[cell.strip() for cell in line.split("|")] for line in result.stdout.splitlines()]
    assert rows[0][-3:-1] == ["masks - eps", "leak - eps"]
    by_name = {row[1]: row[-3:-1] for row in rows}
    assert by_name["`fbr`"] == ["+2.0 ± 1.0 (2)", "+0.0 ± 0.0 (2)"]
    assert by_name["`eps`"] == by_name["`fill`"] == ["-", "-"]
    assert_refused(run("tool/report/table.py", tmp_path, "--baseline", "ppc"), "no such run")


def test_an_empty_folder_names_the_script(tmp_path) -> None:
    assert_refused(run("tool/report/table.py", tmp_path), "compare.sh")


def gate_run(folder: Path, plain: dict[int, float], gated: dict[int, float], leak: float) -> Path:
    for gate, results in (("none", plain), ("nroi", gated)):
        (folder / f"gate-{gate}").mkdir(parents=True)
        for alpha, miou in results.items():
            content = {"miou": miou, "leak": {"overall": leak}}
            (folder / f"gate-{gate}" / f"miou-{alpha}.json").write_text(json.dumps(content))
    return folder


def test_the_table_of_the_gate_names_the_oracle_and_sums_up_seeds(tmp_path) -> None:
    runs = [
        gate_run(tmp_path / "eps-seed0", {2: 66.0, 8: 64.0}, {8: 68.0, 4: 67.0}, 9.0),
        gate_run(tmp_path / "eps-seed1", {2: 60.0, 8: 62.0}, {8: 66.0, 4: 69.0}, 7.0),
        gate_run(tmp_path / "cam-seed0", {8: 40.0}, {8: 44.0}, 50.0),
    ]
    lines = run("tool/report/gate.py", *runs).stdout.splitlines()
    assert lines[2] == "| `eps-seed0` | 64.0 | 68.0 | 66.0 (2) | 68.0 (8) | 9.0 | 9.0 |"
    assert lines[3] == "| `eps-seed1` | 62.0 | 66.0 | 62.0 (8) | 69.0 (4) | 7.0 | 7.0 |"
    assert lines[5].startswith("| `eps`, 2 runs | 63.0 ± 1.4 | 67.0 ± 1.4 | 64.0 ± 2.8 | 68.5")
    assert len(lines) == 6, "one run of a method has no mean"
    # The figures travel without the runs.
    (runs[0] / "config.json").write_text(json.dumps({"commit": "abc", "cpu": "a processor"}))
    assert run("tool/report/gate.py", *runs, "--save", tmp_path / "saved").returncode == 0
    files = [tmp_path / "saved" / f"{path.name}.json" for path in runs]
    assert run("tool/report/gate.py", *files).stdout.splitlines() == lines
    saved = json.loads(files[0].read_text())
    assert (saved["commit"], saved["cpu"]) == ("abc", "a processor")
    compared = run("tool/report/gate.py", *runs, "--baseline", "eps").stdout.splitlines()
    assert compared[: len(lines)] == lines
    assert compared[-1] == "| `cam` - `eps` | - | - | - | - |", "of another processor"
    (runs[2] / "config.json").write_text(json.dumps({"cpu": "a processor"}))
    compared = run("tool/report/gate.py", *runs, "--baseline", "eps").stdout.splitlines()
    assert compared[-1] == "| `cam` - `eps` | -20.0 (1) | -22.0 (1) | -24.0 (1) | +41.0 (1) |"
    assert_refused(run("tool/report/gate.py", *runs, "--baseline", "ppc"), "--baseline ppc", "eps")
    (runs[2] / "gate-nroi" / "miou-8.json").unlink()
    assert_refused(run("tool/report/gate.py", runs[2]), "no miou-8.json in", "cam-seed0/gate-nroi")


def seg_run(folder: Path, masks: float | None, val: float, cpu: str = "one") -> Path:
    def write_miou(where: Path, name: str, miou: float) -> None:
        content = {"miou": miou, "leak": {"overall": 5.0}}
        (where / f"miou-val{name}.json").write_text(json.dumps(content))

    for where, more in ((folder, 0.0), (folder / "round2", 1.0)):
        where.mkdir(parents=True)
        (where / "masks.json").write_text(json.dumps({"miou": masks}))
        write_miou(where, "", val + more)
        write_miou(where, "-crf", val + 2 + more)
    write_miou(folder / "round2", "-labelled", val + 10)
    (folder / "config.json").write_text(json.dumps({"cpu": cpu, "commit": "abc"}))
    return folder


def test_the_table_of_segmentation_networks_pairs_seeds_with_the_upper_bound(tmp_path) -> None:
    runs = [
        seg_run(tmp_path / "truth-seed0", 1.0, 60.0),
        seg_run(tmp_path / "truth-seed1", 1.0, 50.0),
        seg_run(tmp_path / "fbr-seed0", 0.7, 54.0),
        seg_run(tmp_path / "fbr-seed1", 0.68, 50.0),
        seg_run(tmp_path / "fbr-seed2", 0.69, 20.0, cpu="another"),
    ]
    lines = run("tool/report/seg.py", *runs).stdout.splitlines()
    rows = {cells[1].strip(): [c.strip() for c in cells[2:]] for cells in map(split, lines)}
    assert rows["truth"][:3] == ["100.0 ± 0.0", "55.0 ± 7.1", "57.0 ± 7.1"]
    assert rows["truth"][6:8] == ["100 ± 0, 100 ± 0", "2"]
    assert rows["fbr"][0] == "69.0 ± 1.0"
    # 54/60 and 50/50; 56/62 and 52/52. Seed 2 has no partner of its processor.
    assert rows["fbr"][6:8] == ["95 ± 5, 95 ± 5", "3"]
    assert rows["fbr"][3] == "-", "the labels were given in round 2 only"
    assert rows["fbr, round 2"][3] == "51.3 ± 18.6"
    assert run("tool/report/seg.py", *runs, "--save", tmp_path / "saved").returncode == 0
    files = [tmp_path / "saved" / f"{path.name}.json" for path in runs]
    assert run("tool/report/seg.py", *files).stdout.splitlines() == lines
    assert_refused(run("tool/report/seg.py", runs[0], runs[0]), "two runs", "truth-seed0")
    assert_refused(run("tool/report/seg.py", runs[0], "--list", "test"), "no miou-test-crf.json")
    assert_refused(run("tool/report/seg.py", runs[0] / "round2"), "MASKS-seedN")


def split(line: str) -> list[str]:
    return line.split("|")
