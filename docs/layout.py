"""`python docs/layout.py`: write `docs/layout.md`, a drawing of which room imports which.

A room is a folder in a package, or a file that lies directly in one. Each stage script is a room of
its own.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("train_fbr", "infer_cam", "crf_postprocess", "eval_miou")
PACKAGES = ("tool", "network", "data", "voc12", "coco14")
PAGE = ROOT / "docs" / "layout.md"
_HEAD = """# Layout

A room is a folder of a package, or a file that lies directly in one. Each stage has a room of its
name in `tool/`. Rooms import the file formats, and these import general helpers. An arrow points
from a room to one that it imports. `python docs/layout.py` makes this page, and
`tests/test_imports.py` fails if the page is out of date or a room imports what it must not.
"""


def files() -> list[Path]:
    """Return every Python file of the stages and packages."""
    inside = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [*(ROOT / f"{stage}.py" for stage in STAGES), *inside]


def module_of(path: Path) -> str:
    """Return the dotted name of a file; a package's is the folder's."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere in it, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def file_graph() -> dict[str, set[str]]:
    """Return {module: the modules of ours that it imports}."""
    modules = {module_of(path) for path in files()}
    graph = {}
    for path in files():
        targets = set()
        for name in imported(path):
            # `from tool.parallel import dist` names a module, `from tool.files import locked` none
            target = name if name in modules else name.rpartition(".")[0]
            targets |= {target} & modules
        graph[module_of(path)] = targets - {module_of(path)}
    return graph


def room_of(module: str) -> str:
    """Return the room of a module: `tool.crf.dense` -> `tool.crf`, `tool.files` -> itself."""
    return ".".join(module.split(".")[:2])


def room_graph() -> dict[str, set[str]]:
    """Return {room: the rooms that it imports}."""
    graph: dict[str, set[str]] = {}
    for module, targets in file_graph().items():
        if module in ("tool", "network", "data"):
            continue  # an empty `__init__.py`
        room = room_of(module)
        graph.setdefault(room, set()).update({room_of(target) for target in targets} - {room})
    return graph


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the nodes in floors: each stands one above the highest that it imports.

    Raises:
        graphlib.CycleError: Some import each other in a circle; names them.
    """
    sorter, ordered = graphlib.TopologicalSorter(graph), []
    sorter.prepare()
    while sorter.is_active():
        ordered.append(sorted(sorter.get_ready()))
        sorter.done(*ordered[-1])
    return ordered


def package_graph() -> dict[str, set[str]]:
    """Return {package or stage: what it imports}; the commands of a benchmark are apart."""
    graph: dict[str, set[str]] = {}
    for module, targets in file_graph().items():
        package = package_of(module)
        graph.setdefault(package, set()).update(map(package_of, targets - {module}))
        graph[package].discard(package)
    return graph


def package_of(module: str) -> str:
    """Return the package of a module; `voc12` is the facts of the benchmark."""
    package, _, rest = module.partition(".")
    return f"{package} commands" if rest and package in ("voc12", "coco14") else package


def drawing(graph: dict[str, set[str]], title: str, rooms: Iterable[str]) -> str:
    """Return a Mermaid drawing of some rooms; an arrow points to what is imported."""
    shown = [room for floor in reversed(floors(graph)) for room in floor if room in set(rooms)]
    names = {room: f"n{number}" for number, room in enumerate(shown)}
    lines = [f"## {title}\n", "```mermaid", "flowchart TD"]
    lines += [f'  {names[room]}["{room.replace(".", "/")}"]' for room in shown]
    for room in shown:
        lines += [f"  {names[room]} --> {names[t]}" for t in sorted(graph[room]) if t in names]
    return "\n".join([*lines, "```", ""])


def table(graph: dict[str, set[str]]) -> str:
    """Return a Markdown table of the rooms, the highest floor first."""
    count = dict.fromkeys(graph, 0)
    for room in map(room_of, map(module_of, files())):
        count[room] = count.get(room, 0) + 1
    rows = ["| room | files | imports |", "|---|---|---|"]
    for floor in reversed(floors(graph)):
        for room in floor:
            targets = ", ".join(sorted(graph[room])).replace(".", "/") or "nothing"
            rows.append(f"| {room.replace('.', '/')} | {count[room]} | {targets} |")
    return "## Rooms\n\n" + "\n".join(rows) + "\n"


def page() -> str:
    """Return the text of `docs/layout.md`."""
    graph = room_graph()
    tool = [room for room in graph if room.startswith("tool")]
    network = [room for room in graph if room.startswith("network")]
    data = [room for room in graph if room.startswith(("data", "voc12", "coco14"))]
    inner = sum(t.startswith("tool") for room in tool for t in graph[room])
    between = (
        f"The rooms of `tool/` import each other {inner} times, over "
        f"{len(floors({room: graph[room] for room in tool}))} floors.\n"
    )
    packages = package_graph()
    parts = [
        _HEAD,
        drawing(packages, "Stages and packages", packages),
        drawing(graph, "tool", tool),
        between,
        drawing(graph, "network", network),
        drawing(graph, "data and the benchmarks", data),
        table(graph),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
