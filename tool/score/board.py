"""Scores in the TensorBoard of a run, beside what its training wrote there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tool.documents import read_dict
from tool.files import atomic_path

# TensorBoard reads the files of a folder in the order of their names: this one comes last.
NAME = "events.out.tfevents.9999999999.{stem}"
EVENTS = "events.out.tfevents.*"


def write_board(path: Path, document: dict[str, Any]) -> None:
    """Write the scores of a document to the TensorBoard of the run, if the file lies in a run.

    The tag is `score/NAME`, where NAME is that of the JSON file, such as `score/miou` of the masks
    and `score/miou_cam` of the CAMs; it stands at the last step of the run. The IoU of each class
    has a tag below it. A new score of the same name replaces the old one.

    Args:
        path: The JSON file of the document.
        document: The document of `tool.score.document.document_of`.
    """
    folder, stem = path.parent, path.stem
    noted = read_dict(folder / "config.json")
    if noted is None or not any(folder.glob(EVENTS)):
        return
    # Without torch, which stages 3 and 4 do not import.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    steps = (noted.get("config") or {}).get("steps")
    step = steps if type(steps) is int and 0 <= steps < 2**62 else 0
    values = {f"score/{stem}": document["miou"]}
    values |= {f"score/{stem}/{name}": share for name, share in document["iou"].items()}
    written = path.stat().st_mtime
    scores = [
        Summary.Value(tag=tag, simple_value=value)
        for tag, value in values.items()
        if value is not None
    ]
    events = [
        Event(wall_time=written, file_version="brain.Event:2"),
        Event(wall_time=written, step=step, summary=Summary(value=scores)),
    ]
    name = folder / NAME.format(stem=stem)
    with atomic_path(name) as temporary, open(temporary, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
