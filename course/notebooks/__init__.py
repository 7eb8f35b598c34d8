"""The notebooks as files: where they are, how they are written, which cells belong to an exercise.

``python -m course.notebooks`` formats, executes and checks them; see `course.notebooks.__main__`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "notebooks"

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python"}
ID_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
NAME_PATTERN = re.compile(r"\d\d_[a-z0-9_]+\.ipynb")

Notebook = dict[str, Any]
Cell = dict[str, Any]


def paths(names: Iterable[str] = ()) -> list[Path]:
    """Return the course's notebooks in order, or those that `names` mean: a path, a file name, a stem or its number.

    Raises:
        ValueError: a name means no notebook.
    """
    every = sorted(path for path in FOLDER.glob("*.ipynb") if NAME_PATTERN.fullmatch(path.name))
    if not names:
        return every
    found = []
    for name in names:
        stem = Path(name).stem
        hits = [path for path in every if stem in (path.stem, path.stem[:2])]
        if not hits:
            raise ValueError(f"no notebook {name!r}; there are: {', '.join(path.stem for path in every)}")
        found += hits
    return found


def read(path: Path) -> Notebook:
    """Read a notebook; cell sources and stream texts come back as one string each.

    Nothing is mended on the way, as ``nbformat.read`` would do with ids that occur twice.
    """
    from nbformat.v4 import reads

    return reads(path.read_text(encoding="utf-8"))


def canonical(notebook: Notebook) -> str:
    """Return the one text that a notebook of this course has: sorted keys, one-space indent, no noise of one machine.

    Left out are widget states (they hold one session's model ids), execution times, and whatever an editor keeps
    in the metadata. Cell ids, tags, outputs and execution counts stay; cells that lack an id raise in `lint`.
    """
    cells = [_canonical_cell(cell) for cell in notebook["cells"]]
    metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write(path: Path, notebook: Notebook) -> bool:
    """Write `notebook` in canonical form; return whether the file changed."""
    text = canonical(notebook)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def source(cell: Cell) -> str:
    """Return a cell's source as one string."""
    return "".join(cell["source"])


def tags(cell: Cell) -> list[str]:
    """Return a cell's tags."""
    return list(cell.get("metadata", {}).get("tags", []))


def is_checked(cell: Cell) -> bool:
    """Tell whether nbval compares this cell's output: by the tag, or by a whole comment line."""
    marked = any(line.strip().lstrip("#").strip() == "NBVAL_CHECK_OUTPUT" for line in source(cell).splitlines())
    return cell["cell_type"] == "code" and (marked or "nbval-check-output" in tags(cell))


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook: the indices of its stub cell and of its check cell, and the answers beside it."""

    id: str
    stub: int
    check: int | None
    solution: Path
    wrong: tuple[Path, ...]


def exercises(path: Path, notebook: Notebook) -> list[Exercise]:
    """Return the notebook's exercises in their order; `check` is None where the check cell is missing."""
    checks = {tag[len("check-") :]: i for i, c in enumerate(notebook["cells"]) for tag in _marks(c, "check-")}
    return [
        Exercise(
            id=tag[len("exercise-") :],
            stub=index,
            check=checks.get(tag[len("exercise-") :]),
            solution=FOLDER / "solutions" / path.stem / f"{tag[len('exercise-') :]}.py",
            wrong=tuple(sorted((FOLDER / "wrong" / path.stem).glob(f"{tag[len('exercise-') :]}__*.py"))),
        )
        for index, cell in enumerate(notebook["cells"])
        for tag in _marks(cell, "exercise-")
    ]


def _marks(cell: Cell, prefix: str) -> list[str]:
    return [tag for tag in tags(cell) if tag.startswith(prefix)]


def _canonical_cell(cell: Cell) -> Cell:
    kept = sorted(set(tags(cell)))
    clean: Cell = {
        "cell_type": cell["cell_type"],
        "id": cell.get("id", ""),
        "metadata": {"tags": kept} if kept else {},
        "source": _lines(source(cell).rstrip()),
    }
    if cell["cell_type"] == "code":
        clean["execution_count"] = cell["execution_count"]
        clean["outputs"] = [_canonical_output(output) for output in cell["outputs"]]
    return clean


def _canonical_output(output: dict[str, Any]) -> dict[str, Any]:
    clean = {key: value for key, value in output.items() if key != "transient"}
    if "text" in clean:
        clean["text"] = _lines("".join(clean["text"]))
    if "data" in clean:
        clean["data"] = {
            kind: value
            if kind.endswith("json")
            else _lines(("".join(value)).rstrip("\n") if "image/" in kind else value)
            for kind, value in clean["data"].items()
            if kind != "application/vnd.jupyter.widget-view+json"
        }
    return clean


def _lines(text: str | list[str]) -> list[str]:
    return "".join(text).splitlines(keepends=True)
