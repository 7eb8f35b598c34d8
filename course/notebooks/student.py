"""What an instructor hands out and gets back: a copy of the course without answers, and verdicts on what students wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

from course import notebooks
from course.exercises import WRONG
from course.notebooks import Notebook, exercises, modes, read
from course.notebooks.kernel import running

HANDED_OUT = (
    "nanovllm",
    "hnsw",
    "course",
    "notebooks",
    "helper",
    "test-case",
    "training",
    "benchmarks",
    "scripts",
    "site",
    "README.md",
    "README.zh-CN.md",
    "NANO_VLLM_VS_VLLM.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "environment.yml",
)
"""Everything but the tests, whose runs need the answers; ``make lab`` works in the copy."""

SECONDS_A_CELL = 120
KEPT_BACK = ("solutions", "wrong", "__pycache__", ".ipynb_checkpoints", "out")


def copy_course(target: Path) -> list[Path]:
    """Write the course without its answers into `target` and return the student notebooks.

    Raises:
        FileExistsError: `target` holds something already; a student's work must not be overwritten.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty; name another folder, or remove it first")
    target.mkdir(parents=True, exist_ok=True)
    for name in HANDED_OUT:
        source = notebooks.ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns(*KEPT_BACK))
        elif source.is_file():
            shutil.copy2(source, target / name)
    copies = []
    for path in notebooks.paths():
        copy = target / "notebooks" / path.name
        notebook = read(path)
        clear_answers(path, notebook)
        notebooks.write(copy, notebook)
        copies.append(copy)
    return copies


def clear_answers(path: Path, notebook: Notebook) -> None:
    """Remove the outputs of every exercise's stub and check cell; sources and all other outputs stay."""
    for exercise in exercises(path, notebook):
        for index in (exercise.stub, exercise.check):
            if index is not None:
                notebook["cells"][index] |= {"outputs": [], "execution_count": None}


def grade(path: Path, submission: Path) -> dict[str, tuple[str, str]]:
    """Judge what a student wrote in a copy of the notebook at `path`; returns verdict and message by exercise id.

    Only the cells tagged ``exercise-<id>`` are taken from `submission`. They run inside the course's own notebook, each
    after right answers to the exercises before it: neither a changed check cell nor a broken cell elsewhere counts,
    and a helper that the student defined in another cell is missing. This runs the student's code with your rights.

    Raises:
        modes.CellFailed: a cell of the course's own notebook raised an error.
    """
    notebook = read(path)
    every = exercises(path, notebook)
    answers = _answers(submission)
    verdicts = {exercise.id: ("missing", "the copy has no such cell") for exercise in every}
    todo = {exercise.stub: exercise for exercise in every}
    done: set[int] = set()
    last = max((exercise.check or exercise.stub for exercise in every), default=-1)
    with running(notebook, timeout=SECONDS_A_CELL) as client:
        for index, cell in enumerate(notebook["cells"][: last + 1]):
            if cell["cell_type"] != "code" or index in done:
                continue
            if index in todo:
                exercise = todo[index]
                done.add(exercise.check or index)
                if exercise.id in answers:
                    modes.in_kernel(client, "remember_names")
                    verdict, message, fault = modes.judge(client, notebook, exercise, answers[exercise.id])
                    verdicts[exercise.id] = (verdict or WRONG, fault or message)
                    if "CellTimeoutError" in fault or "DeadKernelError" in fault:
                        break  # nothing more runs in this kernel
                    modes.in_kernel(client, "put_names_back")
                if exercise.solution.is_file():
                    modes.judge(client, notebook, exercise, exercise.solution.read_text(encoding="utf-8"))
            elif problem := modes.run_cell(client, cell, index):
                raise modes.CellFailed(f"{path.name}, cell {cell['id']!r}: {problem}")
    return verdicts


def _answers(submission: Path) -> dict[str, str]:
    """Return the source of each exercise cell of a submitted notebook by exercise id."""
    return {
        tag[len("exercise-") :]: notebooks.source(cell)
        for cell in read(submission)["cells"]
        if cell["cell_type"] == "code"
        for tag in notebooks.tags(cell)
        if tag.startswith("exercise-")
    }
