"""Format the results of `benchmarks/gpu.sh` as tables in Markdown."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from benchmarks.record import head, row

Result = dict[str, Any]
Show = Callable[[Result], str]
TITLES = {
    "train_step": "ResNet38-d, `fbr`, crop 448, batch 8, bf16",
    "infer_cam": "ResNet38-d, CAM of 375x500, scales .5, 1, 1.5, 2 and mirrors, bf16",
    "crf": "CRF of 375x500 in torch, batch 8",
}


def tables(record: dict[str, Any]) -> str:
    """Return the tables of a record.

    A figure that is missing is a dash, and the parts that did not succeed are listed below.

    Args:
        record: The content of `gpu.json`.
    """
    parts, tiny = record["parts"], record["tiny"]
    results = collections.defaultdict(dict)
    results |= {name: part["result"] or {} for name, part in parts.items()}
    titles = {name: f"tiny {name}" if tiny else title for name, title in TITLES.items()}
    blocks = [
        machine_line(results["machine"], record),
        step_table(titles["train_step"], results["train_step"], results["train_step_compiled"]),
        cam_table(titles["infer_cam"], results["infer_cam"]),
        crf_table(titles["crf"], results["crf"]),
        other_table(results),
    ]
    failed = [f"- {ended(*item)}" for item in parts.items() if item[1]["status"] != "ok"]
    if failed:
        blocks.append("\n".join(["Without figures, or without all of them:", "", *failed]))
    return "\n\n".join(blocks) + "\n"


def ended(name: str, part: dict[str, Any]) -> str:
    """Return a line that says how a part ended.

    Args:
        name: Name of the part.
        part: Its entry in the record.
    """
    if part["status"] == "not run":
        return f"{name}: not run, no time left"
    line = f"{name}: {part['status']}, {part['seconds']:.1f} s"
    reason = part["last_line"] if part["status"] != "ok" else ""
    return f"{line}: {reason}" if reason else line


def machine_line(machine: dict[str, Any], record: dict[str, Any]) -> str:
    """Return a sentence about the machine, the versions and the time of the measurement."""
    versions = machine.get("packages", {})
    names = [
        machine.get("gpu") or f"{machine.get('cpu')}, no GPU",
        f"driver {machine.get('driver')}" if machine.get("gpu") else "",
        f"torch {versions.get('torch')}",
        f"CUDA {machine.get('cuda')}" if machine.get("gpu") else "",
        f"Python {machine.get('python')}",
        f"commit {machine.get('commit') or 'unknown'}",
        f"{record['started']}, {record['seconds']:.0f} s in all",
    ]
    return "Measured by `bash benchmarks/gpu.sh{}` on {}.".format(
        " --tiny" if record["tiny"] else "", ", ".join(filter(None, names))
    )


def step_table(title: str, plain: Result, compiled: Result) -> str:
    """Return the table of a training step.

    Args:
        title: Title of the table.
        plain: Result without torch.compile of the backbone; {} if there is none.
        compiled: Result with it; {} if there is none.
    """
    rows = {
        "step, median (fastest, slowest), ms": lambda r: spread(r["step"]),
        "images/s": speed,
        "backbone forward / backward, ms": lambda r: "{:.1f} / {:.1f}".format(
            r["parts"]["backbone forward"], r["parts"]["backbone backward"]
        ),
        "backbone, TFLOP/s and share of peak": lambda r: share(r["backbone"]),
        "the same in the whole step": lambda r: share(r["whole_step"]),
        "peak GPU memory, GiB": lambda r: f"{r['gpu_gib']:.1f}",
        "steps apart and whole, with compiling, s": lambda r: f"{r['seconds']:.0f}",
    }
    backend = compiled.get("compile") or "torch.compile"
    return table(title, {"eager": plain, backend: compiled}, rows)


def cam_table(title: str, result: Result) -> str:
    """Return the table of CAM inference: images per second and share of the peak by batch size.

    Args:
        title: Title of the table.
        result: Result of `benchmarks.infer_cam`; {} if it has none.
    """
    columns = {f"batch {found['batch_size']}": found for found in result.get("rows", [])}
    return table(title, columns, {"images/s": speed, "share of peak": share})


def crf_table(title: str, result: Result) -> str:
    """Return the table of the CRF: images per second by preset and number of labels.

    Args:
        title: Title of the table.
        result: Result of `benchmarks.crf`; {} if it has none.
    """
    rows = result.get("rows", [])
    columns = {f"`{found['preset']}`, {found['labels']} labels": found for found in rows}
    return table(title, columns, {"images/s": speed})


def other_table(results: dict[str, Result]) -> str:
    """Return the table of the contrast, the random walk and the short run.

    Args:
        results: Name of a part -> its result; {} for a part without one.
    """
    lines = [head("other", "median (fastest, slowest)")]
    for found in results["contrast"].get("rows", []):
        lines.append(row(f"contrast alone, {found['classes']} classes, ms", spread(found)))
    for found in results["random_walk"].get("rows", []):
        name = "random walk of {}x{} at stride 4, ms".format(*found["size"])
        lines.append(row(name, spread(found, unit=1000)))
    if run := results["short_run"]:
        name = f"`fbr`, {run['steps']} steps from scratch on {run['dataset']}: loss, first to last"
        losses = f"{cell(run['first_loss'])} to {cell(run['last_loss'])}"
        lines.append(row(f"{name} fifth", losses))
    return "\n".join(lines)


def table(title: str, columns: dict[str, Result], rows: dict[str, Show]) -> str:
    """Return a table with one column per result; a missing figure is a dash.

    Args:
        title: Head of the column with the names of the rows.
        columns: Name of a column -> its result.
        rows: Name of a row -> a function that returns its figure of a result as text.
    """
    columns = columns or {"-": {}}
    lines = [head(title, *columns)]
    for name, show in rows.items():
        lines.append(row(name, *(cell_of(show, result) for result in columns.values())))
    return "\n".join(lines)


def cell_of(show: Show, result: Result) -> str:
    """Return the figure of a result as text, or a dash if the result lacks it."""
    try:
        return show(result)
    except KeyError:
        return "-"


def speed(found: Result) -> str:
    """Return the images per second."""
    return f"{found['images_per_s']:.1f}"


def cell(value: float | None) -> str:
    """Return a figure as text, a dash for None, which stands for a figure that is not finite."""
    return "-" if value is None else f"{value:.2f}"


def spread(times: dict[str, float], *, unit: float = 1.0) -> str:
    """Return the median, the fastest and the slowest time as text, each times `unit`."""
    median, *ends = (f"{unit * times[name]:.1f}" for name in ("median", "fastest", "slowest"))
    return f"{median} ({', '.join(ends)})"


def share(found: Result) -> str:
    """Return the TFLOP/s as text, with their share of the peak if that is known."""
    tflops = f"{found['tflops']:.3g} TFLOP/s"
    known = found["share_of_peak"]
    return tflops if known is None else f"{tflops}, {known:.0%}"
