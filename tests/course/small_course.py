"""A small course of one notebook in a temporary folder, on which the machinery itself is tested."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from course import notebooks
from course.notebooks import kernel

CHECKERS = '''
from course.exercises import checker, expect_close

@checker("double")
def _(double):
    """The checker of this small course."""
    expect_close("double(3)", double(3), 6.0, hint="multiply by two")
    return "twice is twice"
'''

CELLS = [
    ("setup", [], CHECKERS + "\nfrom course.exercises import check\nfactor = 2\n"),
    ("stub", ["exercise-double"], "def double(x):\n    return ...\n"),
    ("judge", ["check-double"], 'check("double", double)'),
    ("after", ["nbval-check-output"], "print(factor)"),
]


class SmallCourse:
    """One notebook with one exercise, its solution and its wrong answers; tests change them and run."""

    def __init__(self, folder: Path, fresh: bool = True) -> None:
        self.folder = folder
        self.path = folder / "00_small.ipynb"
        if fresh:
            self._make()

    def _make(self) -> None:
        cells = []
        for name, tags, source in CELLS:
            cell = nbformat.v4.new_code_cell(source, id=name)
            if tags:
                cell.metadata["tags"] = tags
            cells.append(cell)
        self.notebook = nbformat.v4.new_notebook(cells=cells)
        self.save()
        self.solve("def double(x):\n    return factor * x\n")
        self.wrong("adds_two", "# caught: but should be 6\ndef double(x):\n    return x + 2\n")

    def save(self) -> None:
        notebooks.write(self.path, self.notebook)

    def cell(self, name: str):
        return next(cell for cell in self.notebook.cells if cell["id"] == name)

    def solve(self, text: str) -> None:
        self._put("solutions", "double", text)

    def wrong(self, why: str, text: str) -> None:
        self._put("wrong", f"double__{why}", text)

    def _put(self, kind: str, name: str, text: str) -> None:
        target = self.folder / kind / "00_small" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def make_small_course(folder: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool = True) -> SmallCourse:
    """Make `folder` the course's notebook folder while the patch lasts; with `fresh`, write the notebook into it."""
    for module in (notebooks, kernel):
        monkeypatch.setattr(module, "FOLDER", folder)
    kernel.use_test_environment()
    return SmallCourse(folder, fresh)
