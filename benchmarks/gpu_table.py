"""The tables of `benchmarks/gpu.sh`, in Markdown."""

from __future__ import annotations

import collections
from typing import Any

TITLES = {
    "train_step": "ResNet38-d, `fbr`, crop 448, batch 8, bf16",
    "infer_cam": "ResNet38-d, CAM of 375x500, scales .5, 1, 1.5, 2 and mirrors, bf16",
    "crf": "CRF of 375x500 in torch, batch 8",
}


def tables(record: dict[str, Any]) -> str:
    """All that was measured; a part without figures is a dash, with its reason at the end."""
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
    failed = [
        f"- {name}: {part['status']}{reason(part)}"
        for name, part in parts.items()
        if part["status"] != "ok"
    ]
    if failed:
        blocks.append("\n".join(["Without figures, or without all of them:", "", *failed]))
    return "\n\n".join(blocks) + "\n"


def machine_line(machine: dict[str, Any], record: dict[str, Any]) -> str:
    """What the figures are from."""
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


def step_table(title: str, plain: dict[str, Any], compiled: dict[str, Any]) -> str:
    """A training step, without and with torch.compile of the backbone."""
    backend = compiled.get("compile") or "torch.compile"
    rows = {
        "step, median (fastest, slowest), ms": lambda r: spread(r["step"]),
        "images/s": lambda r: f"{r['images_per_s']:.1f}",
        "backbone forward / backward, ms": lambda r: "{:.1f} / {:.1f}".format(
            r["parts"]["backbone forward"], r["parts"]["backbone backward"]
        ),
        "backbone, TFLOP/s and share of peak": lambda r: share(r["backbone"]),
        "the same in the whole step": lambda r: share(r["whole_step"]),
        "peak GPU memory, GiB": lambda r: f"{r['gpu_gib']:.1f}",
        "steps apart and whole, with compiling, s": lambda r: f"{r['seconds']:.0f}",
    }
    lines = [f"| {title} | eager | {backend} |", "|---|---|---|"]
    for name, cell in rows.items():
        lines.append(f"| {name} | {cell_of(cell, plain)} | {cell_of(cell, compiled)} |")
    return "\n".join(lines)


def cam_table(title: str, result: dict[str, Any]) -> str:
    """Images per second by batch size."""
    rows = result.get("rows", [])
    head = " | ".join(f"batch {row['batch_size']}" for row in rows) or "-"
    speeds = " | ".join(f"{row['images_per_s']:.1f}" for row in rows) or "-"
    shares = " | ".join(share(row) for row in rows) or "-"
    lines = [f"| {title} | {head} |", "|---" * (max(1, len(rows)) + 1) + "|"]
    return "\n".join([*lines, f"| images/s | {speeds} |", f"| share of peak | {shares} |"])


def crf_table(title: str, result: dict[str, Any]) -> str:
    """Images per second by preset and labels."""
    lines = [f"| {title} | labels | images/s |", "|---|---|---|"]
    for row in result.get("rows", []):
        lines.append(f"| {row['preset']} | {row['labels']} | {row['images_per_s']:.1f} |")
    return "\n".join(lines if len(lines) > 2 else [*lines, "| - | - | - |"])


def other_table(results: dict[str, dict[str, Any]]) -> str:
    """Contrast, random walk and the short run."""
    lines = ["| other | median (fastest, slowest) |", "|---|---|"]
    for row in results["contrast"].get("rows", []):
        lines.append(f"| contrast alone, {row['classes']} classes, ms | {spread(row)} |")
    for row in results["random_walk"].get("rows", []):
        size = "x".join(map(str, row["size"]))
        milliseconds = {name: 1000 * row[name] for name in ("median", "fastest", "slowest")}
        lines.append(f"| random walk of {size} at stride 4, ms | {spread(milliseconds)} |")
    run = results["short_run"]
    if run:
        lines.append(
            f"| `fbr`, {run['steps']} steps from scratch on {run['dataset']}: loss, first to last "
            f"fifth | {cell(run['first_loss'])} to {cell(run['last_loss'])} |"
        )
    return "\n".join(lines)


def cell_of(show: Any, result: dict[str, Any]) -> str:
    """The figure, or a dash where the part did not come to it."""
    try:
        return show(result)
    except KeyError:
        return "-"


def cell(value: float | None) -> str:
    """A figure that may not be finite."""
    return "-" if value is None else f"{value:.2f}"


def spread(times: dict[str, float]) -> str:
    """Median, fastest and slowest."""
    return "{median:.1f} ({fastest:.1f}, {slowest:.1f})".format(**times)


def share(found: dict[str, float | None]) -> str:
    """TFLOP/s, and their share of the peak where it is known."""
    tflops = f"{found['tflops']:.3g} TFLOP/s"
    known = found["share_of_peak"]
    return tflops if known is None else f"{tflops}, {known:.0%}"


def reason(part: dict[str, Any]) -> str:
    """The last line of a part that was run."""
    return f" ({part['last_line']})" if part.get("last_line") else ""
