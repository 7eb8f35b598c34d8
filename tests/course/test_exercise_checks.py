"""What a check says to a stub, a right answer and a wrong one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from course import exercises
from course.exercises import CORRECT, NOT_DONE, WRONG, NotDone, Wrong, checker, expect_close, expect_equal, grade


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(exercises, "_checkers", {})


def _square_checker():
    @checker("square")
    def _(square):
        expect_close("square(3)", square(3), 9, hint="multiply x by itself")
        return "that is x times x"


@pytest.mark.parametrize(
    "answer",
    [..., lambda x: ..., lambda x: ... * x, lambda x: (x, ...)],
    ids=["ellipsis", "returned", "in arithmetic", "in a tuple"],
)
def test_a_stub_is_not_done(answer):
    _square_checker()
    assert grade("square", answer).verdict == NOT_DONE


def test_not_implemented_and_notdone_are_not_done():
    def stub(x):
        raise NotImplementedError

    _square_checker()
    assert grade("square", stub).verdict == NOT_DONE

    @checker("other")
    def _(answer):
        raise NotDone

    assert grade("other", 1).verdict == NOT_DONE


def test_a_right_answer_is_correct_and_praised():
    _square_checker()
    assert str(grade("square", lambda x: x * x)) == "square: correct. that is x times x."


def test_a_wrong_answer_shows_both_numbers_and_the_hint():
    _square_checker()
    verdict = grade("square", lambda x: 2 * x)
    assert verdict.verdict == WRONG
    assert verdict.message == "square(3) is 6, but should be 9. Multiply x by itself."


def test_an_exception_in_the_answer_is_a_wrong_answer():
    _square_checker()
    verdict = grade("square", lambda x: x / 0)
    assert verdict.verdict == WRONG
    assert "ZeroDivisionError" in verdict.message


def test_an_unknown_exercise_names_the_known_ones():
    _square_checker()
    with pytest.raises(ValueError, match="'cube'; known: square"):
        grade("cube", 1)


def test_one_id_has_one_checker():
    _square_checker()
    namespace = {"__name__": "elsewhere", "checker": checker}
    with pytest.raises(ValueError, match="already checked by"):
        exec("@checker('square')\ndef f(answer): pass", namespace)


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        (0.125, 1 / 8, True),
        (0.126, 1 / 8, False),
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
        (math.inf, math.inf, True),
        (torch.tensor([1.0, 2.0]), [1, 2], True),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), np.array([1.0, 2.0]), True),
        (torch.tensor([1.0, 2.5]), [1, 2], False),
        (torch.ones(2, 1), torch.ones(2), False),
        ("one", 1.0, False),
        (None, 1.0, False),
    ],
)
def test_expect_close(got, want, ok):
    if ok:
        expect_close("x", got, want)
    else:
        with pytest.raises(Wrong, match="x (is|has shape)"):
            expect_close("x", got, want)


def test_expect_close_names_the_place():
    with pytest.raises(Wrong, match=r"x is 5 at \[1, 0\], but should be 3"):
        expect_close("x", torch.tensor([[1.0, 2.0], [5.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_expect_equal():
    expect_equal("x", [1, 2], [1, 2])
    expect_equal("x", torch.arange(3), torch.arange(3))
    for got, want in ((1, 2), (True, 1), ("a", "b")):
        with pytest.raises(Wrong, match="x is"):
            expect_equal("x", got, want)


def test_check_shows_text_html_and_verdict(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: shown.append(data))

    @checker("pictured")
    def _(answer):
        raise Wrong("a <b> message", picture=lambda axes: axes.plot([0, 1]))

    assert exercises.check("pictured", 1) is None
    verdict, picture = shown
    assert verdict["text/plain"] == "pictured: not right yet. a <b> message"
    assert "a &lt;b&gt; message" in verdict["text/html"]
    assert verdict[exercises.VERDICT_MIME]["verdict"] == WRONG
    assert picture["image/png"].startswith("iVBOR")


def test_correct_is_the_only_verdict_for_a_checker_that_returns():
    @checker("silent")
    def _(answer):
        return None

    assert grade("silent", 1).verdict == CORRECT
