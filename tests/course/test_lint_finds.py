"""The lint of notebooks notices each fault: one fault is put into a notebook in order, and is found."""

from __future__ import annotations

import shutil

import nbformat
import pytest
from small_course import make_small_course

from course import notebooks
from course.notebooks import execute, lint

PROSE = {
    "title": "# Small\n\nWhat is twice a number?",
    "learn": "## What you will learn",
    "needs": execute.needs_text(None),
    "predict-first": "## Predict",
    "experiment-one": "## Experiment",
    "recap": "## Recap\n\n1. a?\n2. b?\n3. c?",
    "reading": "## Further reading",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The small course with all its sections, run once."""
    with pytest.MonkeyPatch.context() as patch:
        small = make_small_course(tmp_path_factory.mktemp("executed"), patch)
        small.notebook.cells = [nbformat.v4.new_markdown_cell(t, id=n) for n, t in PROSE.items()] + small.notebook.cells
        small.save()
        execute.execute(small.path)
        return small.folder


@pytest.fixture
def course(executed, tmp_path, monkeypatch):
    """A copy of it to break; two of the lint's demands are lowered to its size."""
    monkeypatch.setattr(lint, "COMPARED_OUTPUTS", 1)
    monkeypatch.setattr(lint, "EXERCISES", 1)
    shutil.copytree(executed, tmp_path, dirs_exist_ok=True)
    small = make_small_course(tmp_path, monkeypatch, fresh=False)
    small.notebook = notebooks.read(small.path)
    return small


def faults(course) -> str:
    course.save()
    return "\n".join(lint.faults(course.path) + lint.faults_together([course.path]))


def test_a_notebook_in_order_has_no_faults(course):
    assert faults(course) == ""
    assert "GiB of memory" in course.cell("needs").source


def _edit(name, **changes):
    def edit(course):
        course.cell(name).update(changes)

    return edit


def _tag(name, tags):
    def edit(course):
        course.cell(name).metadata["tags"] = tags

    return edit


def _drop(name):
    def edit(course):
        course.notebook.cells.remove(course.cell(name))

    return edit


BREAKS = {
    "hexadecimal id": (_edit("after", id="8fa2b3c4-11"), "give it a name"),
    "numbered id": (_edit("after", id="cell-7"), "give it a name"),
    "same id twice": (_edit("after", id="judge"), "2 cells have the id 'judge'"),
    "no recap": (_drop("recap"), "no Markdown cell 'recap'"),
    "no prediction": (_drop("predict-first"), "no Markdown cell 'predict*'"),
    "no experiment": (_drop("experiment-one"), "no cell 'experiment*'"),
    "two questions": (_edit("recap", source="## Recap\n\n1. a?\n2. b?"), "three questions"),
    "typed needs": (_edit("needs", source="## Needs\n\nAbout 3 s."), "the needs cell is generated"),
    "no heading": (_edit("title", source="Small"), "heading of level 1"),
    "misspelt tag": (_tag("after", ["nbval-check-outputs"]), "unknown tag"),
    "misspelt marker": (_edit("setup", source="# NBVAL_CHECK_OUTPUT (why)\n1"), "nbval ignores the marker"),
    "no stored output": (_edit("after", outputs=[]), "no stored output"),
    "no execution count": (_edit("after", execution_count=None), "from a fresh kernel"),
    "changed code": (_edit("after", source="print(factor + 0)"), "not of this code"),
    "stored error": (
        _edit("after", outputs=[nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]),
        "stores an error",
    ),
    "stderr": (_edit("setup", outputs=[nbformat.v4.new_output("stream", name="stderr", text="w")]), "from stderr"),
    "absolute path": (_edit("setup", outputs=[nbformat.v4.new_output("stream", text="/home/me/x")]), "absolute path"),
    "dead link": (_edit("reading", source="## Reading\n\n[x](nowhere.md)"), "which does not exist"),
    "no check cell": (_tag("judge", []), "the next code cell is not its check"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_fault_is_found(course, name):
    edit, message = BREAKS[name]
    edit(course)
    assert message in faults(course)


def test_answers_that_are_missing_or_belong_to_nothing_are_found(course):
    (course.folder / "solutions" / "00_small" / "double.py").rename(
        course.folder / "solutions" / "00_small" / "triple.py"
    )
    found = faults(course)
    assert "has no solution file" in found
    assert "triple.py belongs to no exercise" in found


def test_a_file_that_is_not_canonical_is_found(course):
    course.path.write_text(course.path.read_text().replace('"nbformat_minor": 5', '"nbformat_minor": 4'))
    assert "not in canonical form" in "\n".join(lint.faults(course.path))
