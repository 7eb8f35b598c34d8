"""The three modes of an exercise: as shipped, with the solution, with every wrong answer.

One kernel serves a whole notebook. Cells run in order; at an exercise the names in the kernel are remembered, the stub
and each wrong answer run with the check cell after them, and the names are put back after each. The solution
comes last and stays, so the cells after it see a right answer. Names are put back, objects are not copied: an answer
must not change an object that an earlier cell made. The solution, judged after all the wrong answers, would then fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course.exercises import CORRECT, NOT_DONE, VERDICT_MIME, WRONG
from course.notebooks import Exercise, Notebook, exercises, read
from course.notebooks.kernel import running

_EXPECTED = {"stub": NOT_DONE, "solution": CORRECT, "wrong": WRONG}


@dataclass(frozen=True)
class Outcome:
    """What the check said to one answer, and what is amiss about that (empty when it is as it must be)."""

    notebook: str
    exercise: str
    mode: str
    answer: str
    verdict: str
    message: str
    fault: str

    def __str__(self) -> str:
        return f"{self.notebook} {self.exercise} [{self.answer}] {self.verdict}: {self.fault or self.message}"


class CellFailed(Exception):
    """A cell of the notebook itself, not of an answer, raised an error."""


def run(path: Path) -> list[Outcome]:
    """Run every exercise of the notebook in its three modes.

    Raises:
        CellFailed: a cell that belongs to no exercise raised an error.
    """
    notebook = read(path)
    todo = {exercise.stub: exercise for exercise in exercises(path, notebook)}
    outcomes: list[Outcome] = []
    if not todo:
        return outcomes
    last = max(exercise.check or exercise.stub for exercise in todo.values())
    done: set[int] = set()
    with running(notebook) as client:
        for index, cell in enumerate(notebook["cells"][: last + 1]):
            if cell["cell_type"] != "code" or index in done:
                continue
            if index in todo:
                outcomes += _three_modes(client, path.stem, notebook, todo[index])
                done.add(todo[index].check or index)
            elif problem := run_cell(client, cell, index):
                raise CellFailed(f"{path.name}, cell {cell['id']!r}: {problem}")
    return outcomes


def _three_modes(client: Any, name: str, notebook: Notebook, exercise: Exercise) -> list[Outcome]:
    answers = [("stub", "as shipped", "".join(notebook["cells"][exercise.stub]["source"]))]
    answers += [("wrong", path.stem, path.read_text(encoding="utf-8")) for path in exercise.wrong]
    if exercise.solution.is_file():
        answers.append(("solution", "solution", exercise.solution.read_text(encoding="utf-8")))
    outcomes = []
    in_kernel(client, "remember_names")
    for mode, answer, text in answers:
        verdict, message, fault = judge(client, notebook, exercise, text)
        fault = fault or _fault(mode, verdict, message, text)
        outcomes.append(Outcome(name, exercise.id, mode, answer, verdict, message, fault))
        if mode != "solution":
            in_kernel(client, "put_names_back")
    return outcomes


def judge(client: Any, notebook: Notebook, exercise: Exercise, text: str) -> tuple[str, str, str]:
    """Run `text` in place of the stub, then the check cell; return ``(verdict, message, fault)``."""
    if exercise.check is None:
        return "", "", "the exercise has no check cell"
    stub, check = notebook["cells"][exercise.stub], notebook["cells"][exercise.check]
    stub["source"] = text
    if problem := run_cell(client, stub, exercise.stub):
        return "", "", f"the answer's own cell raised {problem}"
    if problem := run_cell(client, check, exercise.check):
        return "", "", f"the check cell raised {problem}"
    for output in check["outputs"]:
        said = output.get("data", {}).get(VERDICT_MIME)
        if said and said["exercise"] == exercise.id:
            return said["verdict"], said["message"], ""
    return "", "", f"the check cell gave no verdict on {exercise.id!r}"


def _fault(mode: str, verdict: str, message: str, text: str) -> str:
    if verdict != _EXPECTED[mode]:
        return f"the check says {verdict!r} where it must say {_EXPECTED[mode]!r}: {message}"
    if mode == "wrong":
        caught = promised(text)
        if not caught:
            return "its first line must be '# caught: <part of the message that the student sees>'"
        if caught not in message:
            return f"caught for another reason; promised {caught!r}, got {message!r}"
    return ""


def promised(text: str) -> str:
    """Return the part of the message that a wrong answer's first line promises, or an empty string."""
    first = text.partition("\n")[0]
    return first[len("# caught:") :].strip() if first.startswith("# caught:") else ""


def run_cell(client: Any, cell: Any, index: int) -> str:
    """Run one cell; return its error as ``Name: text``, or an empty string."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except (CellTimeoutError, DeadKernelError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_kernel(client: Any, function: str) -> None:
    """Call `remember_names` or `put_names_back` on the kernel's own names."""
    from nbformat.v4 import new_code_cell

    call = f"__import__({__name__!r}, fromlist=['modes']).{function}(get_ipython().user_ns)"
    client.execute_cell(new_code_cell(call), 0, store_history=False)


_names: dict[str, Any] = {}


def remember_names(user_names: dict[str, Any]) -> None:
    """Remember which objects the kernel's names mean; runs in the kernel."""
    _names.clear()
    _names.update(user_names)


def put_names_back(user_names: dict[str, Any]) -> None:
    """Let the kernel's names mean again what `remember_names` saw; runs in the kernel."""
    for name in set(user_names) - set(_names):
        del user_names[name]
    user_names.update(_names)
