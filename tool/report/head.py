"""The head of a report: figures, facts, bars of each class and curves, as HTML."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from typing import Any

from tool.formats.mask import palette
from tool.report.chart import Curve, Mark, chart
from tool.report.html import key
from tool.report.run import Run

ORACLE = "oracle: chosen on ground truth"
RUN_COLOURS = 6  # of the page's style
SPEED = ("lr_factor", "images_per_s", "memory_gb")  # of the log: not of the losses


def head(runs: Sequence[Run], class_names: Sequence[str], facts: dict[str, str]) -> dict[str, str]:
    """Return the HTML of the parts above the images.

    Args:
        runs: The run of the page, then those that it is compared with.
        class_names: The K foreground names.
        facts: Further facts to list, by name.
    """
    return {
        "tiles": tiles(runs[0]),
        "runs": run_table(runs) if len(runs) > 1 else "",
        "facts": facts_of(runs, facts),
        "classes": class_bars(runs, class_names),
        "sweep": folded("Threshold sweep of the CAMs", threshold_sweep(runs)),
        "training": folded("Training", log_curves(runs), kind="long"),
    }


def folded(title: str, content: str, *, kind: str = "") -> str:
    """Return a part that a reader can fold; nothing without content."""
    start = f'<details open class="{kind}"><summary>{title}</summary>'
    return f"{start}{content}</details>" if content else ""


def tiles(run: Run) -> str:
    """Return the figures of a run, each with what it is."""
    found: list[tuple[Any, str]] = []
    if run.masks:
        count = (run.masks.get("protocol") or {}).get("classes_in_mean")
        kinds = "" if count is None else f" over {count} classes"
        found.append((run.masks["miou"], f"mIoU of the masks{kinds}, %"))
    if run.cams:
        threshold = (run.cams.get("protocol") or {}).get("bg_threshold")
        where = "" if threshold is None else f" at threshold {threshold:g}"
        found.append((run.cams["miou"], f"mIoU of the CAMs{where}, %"))
        if "oracle" in run.cams:
            best, percent = run.cams["oracle"]
            found.append((percent, f"mIoU of the CAMs at {best:.2f}, %; {ORACLE}"))
    leak = (run.masks.get("leak") or {}).get("overall")
    if leak is not None:
        found.append((leak, "leak: context pixels labelled as the object, %"))
    if not found:
        found.append((None, "not scored: no ground truth, or eval_miou.py has not run"))
    minutes = run.minutes()
    if minutes:
        found.append(
            (duration(sum(minutes.values())), "hours and minutes of " + ", ".join(minutes))
        )
    return "".join(
        f'<div class="tile"><b>{_figure(value)}</b><small>{html.escape(text)}</small></div>'
        for value, text in found
    )


def _figure(value: float | str | None) -> str:
    """Return a figure with one decimal, a text as it is, or a dash."""
    if isinstance(value, str):
        return value
    return "&ndash;" if value is None else f"{value:.1f}"


def duration(minutes: float) -> str:
    """Return minutes as `H:MM`."""
    hours, rest = divmod(round(minutes), 60)
    return f"{hours}:{rest:02d}"


def run_table(runs: Sequence[Run]) -> str:
    """Return a table of the figures of several runs."""
    names = ("run", "masks", "CAMs", f"CAMs, best threshold ({ORACLE})", "leak", "h:min", "gate")
    rows = []
    for number, run in enumerate(runs):
        minutes, leak = run.minutes(), run.masks.get("leak") or {}
        figures = [run.masks.get("miou"), run.cams.get("miou")]
        figures += [run.cams.get("oracle", (None, None))[1], leak.get("overall")]
        figures += [duration(sum(minutes.values())) if minutes else None]
        cells = "".join(f'<td class="number">{_figure(value)}</td>' for value in figures)
        gate = "yes" if run.gated else "no"
        rows.append(
            f"<tr><td>{_line(number)}{html.escape(run.name)}</td>{cells}<td>{gate}</td></tr>"
        )
    columns = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table>{body}</table></div>'


def colour_of(number: int) -> str:
    """Return the CSS colour of a run."""
    return f"var(--run{number % RUN_COLOURS})"


def _line(number: int) -> str:
    """Return a short line in the colour of a run."""
    return f'<span class="run" style="background:{colour_of(number)}"></span>'


def facts_of(runs: Sequence[Run], more: dict[str, str]) -> str:
    """Return a list of what each run is and how it was made."""
    parts = []
    for run in runs:
        config, stages = run.noted.get("config") or {}, run.minutes()
        times = ", ".join(f"{stage} {minutes:.1f} min" for stage, minutes in stages.items())
        protocol = run.masks.get("protocol") or {}
        found = {
            "run": str(run.home),
            "method": config.get("method"),
            "backbone": config.get("backbone"),
            "steps": config.get("steps"),
            "seed": config.get("seed"),
            "command": command_of(run.noted),
            "commit": run.noted.get("commit"),
            "processor": run.noted.get("cpu"),
            "time": times and f"{times} (training: from the log; others: from the files' times)",
            "masks": str(run.mask_dir),
            "CAMs": run.cam_dir and f"{run.cam_dir}{', gated by NROIs' if run.gated else ''}",
            "scored on": protocol and f"{protocol.get('list')}, {protocol.get('images')} images",
        }
        parts.append(_definitions({**found, **(more if run is runs[0] else {})}))
    return "".join(parts)


def _definitions(found: dict[str, Any]) -> str:
    """Return a list of names and values; what is None or empty is left out."""
    lines = []
    for name, value in found.items():
        if value not in (None, ""):
            text = html.escape(str(value))
            shown = f"<code>{text}</code>" if name in ("command", "commit") else text
            lines.append(f"<dt>{html.escape(name)}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def command_of(noted: dict[str, Any]) -> str | None:
    """Return the command of a run, as `config.json` has it, else its main flags."""
    if noted.get("command"):
        return str(noted["command"])
    flags = noted.get("flags")
    if not isinstance(flags, dict):
        return None
    names = ("method", "dataset", "root", "list", "steps", "seed")
    given = [(name, flags[name]) for name in names if flags.get(name) is not None]
    words = [word for name, value in given for word in (f"--{name}", str(value))]
    short = ["--short"] if flags.get("short") else []
    return shlex.join(["python", "train_fbr.py", *words, *short]) + " ..."


def class_bars(runs: Sequence[Run], class_names: Sequence[str]) -> str:
    """Return bars of the IoU of each class in its colour; of several runs below one another."""
    names, colours = ["background", *class_names], palette().tolist()
    scored = [(number, run) for number, run in enumerate(runs) if run.masks]
    if not scored:
        return "<p>Not scored.</p>"
    rows, absent = [], 0
    for index, name in enumerate(names):
        values = [(number, run.masks["iou"].get(name)) for number, run in scored]
        if all(value is None for _, value in values):
            absent += 1
            continue
        bars = "".join(_bar(number, value, colours[index], len(runs)) for number, value in values)
        texts = " / ".join(_figure(value) for _, value in values)
        rows.append(
            f'<span>{key(colours[index])}{html.escape(name)}</span><span class="track">{bars}'
            f'</span><span class="values">{texts}</span>'
        )
    note = f'<p class="note">{absent} classes are in no truth and no mask.</p>' if absent else ""
    kind = "bars several" if len(runs) > 1 else "bars"
    return f'<div class="{kind}">{"".join(rows)}</div>{note}'


def _bar(number: int, value: float | None, colour: Sequence[int], runs: int) -> str:
    """Return one bar; with several runs it has the colour of its run."""
    ground = colour_of(number) if runs > 1 else f"rgb({','.join(map(str, colour))})"
    return f'<span class="bar" style="width:{value or 0:.2f}%;background:{ground}"></span>'


def threshold_sweep(runs: Sequence[Run]) -> str:
    """Return the mIoU of the CAMs over the background threshold."""
    found, marks, texts = [], [], []
    for number, run in enumerate(runs):
        if not run.cams.get("sweep"):
            continue
        colour = colour_of(number)
        found.append(Curve(run.name, colour, [tuple(pair) for pair in run.cams["sweep"]]))
        used = (run.cams.get("protocol") or {}).get("bg_threshold")
        best, percent = run.cams["oracle"]
        if used is not None:
            marks.append(Mark(f"in use: {used:g}", colour, used, run.cams["miou"]))
        marks.append(Mark(f"{ORACLE}: {best:.2f}", colour, best, percent))
        in_use = f"{used:g} in use, {run.cams['miou']:.1f}; " if used is not None else ""
        texts.append(
            f"{_line(number)}{html.escape(run.name)}: {in_use}best {best:.2f}, {percent:.1f} "
            f"({ORACLE})"
        )
    drawing = chart(found, marks=marks, height=200, label="mIoU over the background threshold")
    caption = "mIoU in % over the background threshold. " + "<br>".join(texts)
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>" if found else ""


def log_curves(runs: Sequence[Run]) -> str:
    """Return a drawing per value of the logs over the steps, the losses first."""
    names = dict.fromkeys(name for run in runs for row in run.log for name in row)
    ordered = [name for name in names if name not in (*SPEED, "step")]
    ordered += [name for name in SPEED if name in names]
    figures = []
    for name in ordered:
        found = []
        for number, run in enumerate(runs):
            points = [(row["step"], row[name]) for row in run.log if _is_number(row.get(name))]
            if points:
                found.append(Curve(run.name, colour_of(number), points))
        last = " / ".join(f"{curve.points[-1][1]:.3g}" for curve in found)
        drawing = chart(found, height=120, label=f"{name} over the steps")
        caption = f"<figcaption><b>{html.escape(name)}</b>, last {last}</figcaption>"
        figures.append(f"<figure>{drawing}{caption}</figure>" if drawing else "")
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")
