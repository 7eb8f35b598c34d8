"""What every notebook of this course keeps to, checked without running it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course import notebooks
from course.notebooks import Cell, Notebook, execute, modes, source, tags

COMPARED_OUTPUTS = 10
EXERCISES = 2
MEGABYTES = 2
SECTIONS = {
    "title": "a heading and the question",
    "learn": "what you will learn",
    "needs": "runtime and memory, generated",
    "predict*": "a prediction to make before running",
    "recap": "a recap with three questions",
    "reading": "further reading",
}
"""Ids of the Markdown cells that each notebook has; a star stands for any ending."""

EXPERIMENTS = ("experiment", "measure")
"""At least one cell has an id that starts with one of these."""

_HEX = re.compile(r"[0-9a-f]{8}(-|$)|cell-?\d+$|\d+$")
_ABSOLUTE = re.compile(r"(?<![\w/.:])/(?:home|root|Users|tmp|mnt|opt|var|usr|private)/[\w.]|\b[A-Z]:\\\\?\w")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#|attachment:)([^)\s#]+)(?:#[^)]*)?\)")


def faults(path: Path) -> list[str]:
    """Return what is amiss with one notebook, each as a sentence that names the cell."""
    notebook = notebooks.read(path)
    found = [f"{path.name}: {fault}" for check in _CHECKS for fault in check(path, notebook)]
    if path.read_text(encoding="utf-8") != notebooks.canonical(notebook):
        found.append(f"{path.name}: not in canonical form; run: python -m course.notebooks format {path.stem}")
    return found


def faults_together(paths: list[Path]) -> list[str]:
    """Return what is amiss between notebooks: an exercise id used twice, an answer that belongs to no exercise."""
    found = []
    seen: dict[str, str] = {}
    expected: set[Path] = set()
    for path in paths:
        for exercise in notebooks.exercises(path, notebooks.read(path)):
            if seen.setdefault(exercise.id, path.name) != path.name:
                found.append(f"exercise id {exercise.id!r} is in {seen[exercise.id]} and in {path.name}")
            expected |= {exercise.solution, *exercise.wrong}
    for kind in ("solutions", "wrong"):
        for file in sorted((notebooks.FOLDER / kind).rglob("*.py")):
            if file not in expected:
                found.append(f"{file.relative_to(notebooks.FOLDER)} belongs to no exercise of a notebook")
    return found


def _ids(path: Path, notebook: Notebook) -> Iterator[str]:
    ids = [cell.get("id", "") for cell in notebook["cells"]]
    for index, name in enumerate(ids):
        if not notebooks.ID_PATTERN.fullmatch(name) or _HEX.match(name):
            yield f"cell {index} has the id {name!r}; give it a name of [a-z0-9-] that tells what it does"
    for name, count in Counter(ids).items():
        if count > 1:
            yield f"{count} cells have the id {name!r}"


def _sections(path: Path, notebook: Notebook) -> Iterator[str]:
    markdown = {cell["id"]: source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"}
    for wanted, meaning in SECTIONS.items():
        if not any(name == wanted or (wanted[-1] == "*" and name.startswith(wanted[:-1])) for name in markdown):
            yield f"no Markdown cell {wanted!r} ({meaning})"
    if not any(cell["id"].startswith(EXPERIMENTS) for cell in notebook["cells"]):
        yield "no cell 'experiment*' or 'measure*'"
    if "title" in markdown and not markdown["title"].startswith("# "):
        yield "the title cell does not start with a heading of level 1"
    if "recap" in markdown:
        questions = re.findall(r"^\d+\. ", markdown["recap"], flags=re.MULTILINE)
        if questions != ["1. ", "2. ", "3. "]:
            yield "the recap does not end in three questions, numbered 1. 2. 3."
    for name, text in execute.generated_texts(path.stem).items():
        if name in markdown and markdown[name] != text:
            yield f"the {name} cell is generated and out of date; run: python -m course.notebooks format {path.stem}"


def _markers(path: Path, notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        for line in source(cell).splitlines() if cell["cell_type"] == "code" else ():
            comment = line.strip()
            if "nbval" in comment.lower() and "#" in comment and comment != "# NBVAL_CHECK_OUTPUT":
                yield f"cell {cell['id']!r}: nbval ignores the marker {comment!r}; use the tag nbval-check-output"
        for tag in tags(cell):
            known = tag == "nbval-check-output" or re.fullmatch(r"(exercise|check)-[a-z0-9]+(-[a-z0-9]+)*", tag)
            if not known or cell["cell_type"] != "code":
                yield f"cell {cell['id']!r}: unknown tag {tag!r}, or a tag on a cell without code"


def _outputs(path: Path, notebook: Notebook) -> Iterator[str]:
    compared = 0
    counts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        counts.append(cell["execution_count"])
        if notebooks.is_checked(cell):
            comparable = [output for output in cell["outputs"] if _comparable(output)]
            compared += bool(comparable)
            if not comparable or cell["execution_count"] is None:
                yield f"cell {cell['id']!r} is marked as checked but has no stored output to compare"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield f"cell {cell['id']!r} stores an error"
            if output.get("name") == "stderr":
                yield f"cell {cell['id']!r} stores text from stderr"
    if counts != list(range(1, len(counts) + 1)):
        yield "the cells were not run once, in order, from a fresh kernel; run make notebooks"
    if compared < COMPARED_OUTPUTS:
        yield f"{compared} outputs are compared, at least {COMPARED_OUTPUTS} must be"
    record = execute.load_status().get(path.stem)
    if record is None or record["code"] != execute.fingerprint(notebook):
        yield "the stored outputs are not of this code; run make notebooks"


def _exercises(path: Path, notebook: Notebook) -> Iterator[str]:
    found = notebooks.exercises(path, notebook)
    if len(found) < EXERCISES:
        yield f"{len(found)} exercises, at least {EXERCISES} must be there"
    for exercise in found:
        following = (i for i, cell in enumerate(notebook["cells"]) if i > exercise.stub and cell["cell_type"] == "code")
        if exercise.check is None or exercise.check != next(following, None):
            yield f"exercise {exercise.id!r}: the next code cell is not its check, tagged 'check-{exercise.id}'"
        if not exercise.solution.is_file():
            yield f"exercise {exercise.id!r} has no solution file"
        if not exercise.wrong:
            yield f"exercise {exercise.id!r} has no wrong answer"
        for file in exercise.wrong:
            if not modes.promised(file.read_text(encoding="utf-8")):
                yield f"{file.name} does not start with '# caught: <part of the message>'"


def _paths_and_links(path: Path, notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        for text in (source(cell), *_texts(cell)):
            hit = _ABSOLUTE.search(text)
            if hit or str(notebooks.ROOT) in text:
                yield f"cell {cell['id']!r} shows an absolute path"
        if cell["cell_type"] == "markdown":
            for target in _LINK.findall(source(cell)):
                if not (path.parent / target).exists():
                    yield f"cell {cell['id']!r} links to {target!r}, which does not exist"
    if path.stat().st_size > MEGABYTES * 2**20:
        yield f"the file is larger than {MEGABYTES} MiB"


def _comparable(output: dict[str, Any]) -> bool:
    return bool("text" in output or "text/plain" in output.get("data", {}))


def _texts(cell: Cell) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield from ("".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


_CHECKS = (_ids, _sections, _markers, _outputs, _exercises, _paths_and_links)
