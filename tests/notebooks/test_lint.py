"""Every notebook keeps to the course's form; see `course.notebooks.lint` for what that is."""

from __future__ import annotations

import pytest

from course import notebooks
from course.notebooks import lint

PATHS = notebooks.paths()


def test_there_are_notebooks():
    assert PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_is_in_order(path):
    assert lint.faults(path) == []


def test_exercise_ids_are_unique_and_no_answer_is_left_over():
    assert lint.faults_together(PATHS) == []
