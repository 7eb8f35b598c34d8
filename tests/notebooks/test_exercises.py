"""Every exercise as shipped, with its solution, and with each wrong answer."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from course import notebooks
from course.notebooks import kernel, modes

counts: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def write_counts():
    kernel.use_test_environment()
    yield
    folder = notebooks.ROOT / ".cache" / "counts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exercises.json").write_text(json.dumps(counts), encoding="utf-8")


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
def test_exercises_in_three_modes(path):
    outcomes = modes.run(path)
    counts.update(outcome.mode for outcome in outcomes)
    assert {outcome.mode for outcome in outcomes} == {"stub", "solution", "wrong"}
    assert [str(outcome) for outcome in outcomes if outcome.fault] == []
