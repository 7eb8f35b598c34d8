"""Every exhibit's test finds the bug and lets the fix pass."""

import json

import pytest

from course import museum, notebooks
from course.chapters import CHAPTERS


@pytest.mark.parametrize("name", museum.names())
def test_the_detecting_test_fails_on_the_bug_and_passes_on_the_fix(name: str) -> None:
    exhibit = museum.load(name)
    exhibit.detect(exhibit.fixed)
    with pytest.raises(AssertionError) as caught:
        exhibit.detect(exhibit.buggy)
    assert len(str(caught.value).split()) >= 4, "the test says nothing to the student"
    assert exhibit.name == name


@pytest.mark.parametrize("name", museum.names())
def test_a_notebook_shows_the_exhibit(name: str) -> None:
    chapter = museum.load(name).chapter
    assert chapter in {each.name for each in CHAPTERS}
    cells = json.loads((notebooks.FOLDER / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any(f'museum.load("{name}")' in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_an_unknown_exhibit_is_named() -> None:
    with pytest.raises(ValueError, match="no exhibit 'nothing'"):
        museum.load("nothing")
