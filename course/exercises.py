"""Exercises: a stub cell, a check beside it, and three modes that keep both honest.

In a notebook an exercise is two neighbouring code cells:

* the **stub**, tagged ``exercise-<id>``. It runs without error as shipped and leaves ``...`` where the student writes::

      def scale(d):
          return ...

* the **check**, tagged ``check-<id>``, one line: ``check("<id>", scale)``. It says *not done yet* for the stub,
  *correct* for a right answer, and otherwise what went wrong, with numbers or a picture.

The checker is a function in a course module that the notebook imports (importing the module registers it)::

    from course.exercises import Wrong, checker, expect_close

    @checker("scale-for-unit-variance")
    def _(scale):
        expect_close("scale(64)", scale(64), 0.125, hint="divide by the square root of d, not by d")
        return "the scores have variance 1 whatever d is"      # shown after "correct"

A checker gets the student's objects. It raises `Wrong` (or lets `expect_close` / `expect_equal` do so) and returns
the sentence to show when all is right. ``...`` counts as *not done* without any code in the checker: as an answer, as
what the student's function returns, or inside arithmetic. An exception in the student's function is reported as a
wrong answer, so a checker needs no try.

Beside the notebook live one model solution and at least one wrong answer for each exercise, each a replacement for
the whole stub cell::

    notebooks/solutions/<notebook>/<id>.py
    notebooks/wrong/<notebook>/<id>__<why>.py      first line: # caught: <part of the message the student must see>

``python -m course.notebooks check-exercises [NOTEBOOK ...]`` runs the three modes, and so do the tests: the stub is
*not done*, the solution is *correct*, and every wrong answer is caught with the message that its first line names.

An exercise cell defines names and changes no object made by an earlier cell: the modes share one kernel.
"""

from __future__ import annotations

import functools
import html
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOT_DONE = "not done"
CORRECT = "correct"
WRONG = "wrong"

VERDICT_MIME = "application/vnd.nanovllm.verdict+json"
"""A check cell's output carries ``{"exercise", "verdict", "message"}`` under this type; front ends ignore it."""

_checkers: dict[str, Callable[..., str | None]] = {}


class NotDone(Exception):
    """The answer is still a stub. Raised by a checker whose stub cannot be recognised by its ``...``."""


class Wrong(Exception):
    """The answer is wrong.

    Args:
        message: what is wrong, to the student, as a sentence.
        picture: draws what went wrong on the matplotlib axes that it is given.
    """

    def __init__(self, message: str, picture: Callable[[Any], None] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.picture = picture


@dataclass(frozen=True)
class Verdict:
    """What a check found: one of `NOT_DONE`, `CORRECT`, `WRONG`, and the sentence that the student reads."""

    exercise: str
    verdict: str
    message: str
    picture: Callable[[Any], None] | None = None

    def __str__(self) -> str:
        return f"{self.exercise}: {_LABELS[self.verdict]}. {self.message}".rstrip()


_LABELS = {NOT_DONE: "not done yet", CORRECT: "correct", WRONG: "not right yet"}
_COLOURS = {NOT_DONE: "#8a8f98", CORRECT: "#2e9e5b", WRONG: "#d9822b"}


def checker(exercise: str) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    """Register the decorated function as the checker of `exercise` (an id of ``[a-z0-9-]``, unique in the course).

    Raises:
        ValueError: another module already registered that id.
    """

    def register(function: Callable[..., str | None]) -> Callable[..., str | None]:
        known = _checkers.get(exercise)
        if known is not None and known.__module__ != function.__module__:
            raise ValueError(f"exercise {exercise!r} is already checked by {known.__module__}")
        _checkers[exercise] = function
        return function

    return register


def grade(exercise: str, *answers: Any) -> Verdict:
    """Judge `answers` and return the verdict; shows nothing.

    Raises:
        ValueError: no checker is registered for `exercise`.
    """
    if exercise not in _checkers:
        known = ", ".join(sorted(_checkers)) or "none; import the course module that holds the checkers first"
        raise ValueError(f"unknown exercise {exercise!r}; known: {known}")
    try:
        praise = _checkers[exercise](*(_watch(answer) for answer in answers))
    except NotDone as stub:
        return Verdict(exercise, NOT_DONE, str(stub) or "Replace the ... in the cell above, run it, then run this one.")
    except Wrong as wrong:
        return Verdict(exercise, WRONG, wrong.message, wrong.picture)
    except NotImplementedError:
        return Verdict(exercise, NOT_DONE, "Replace the NotImplementedError in the cell above by your answer.")
    except Exception as error:
        if isinstance(error, TypeError) and "ellipsis" in str(error):
            return Verdict(exercise, NOT_DONE, "There is still a ... in the cell above.")
        return Verdict(exercise, WRONG, f"Running your answer raised {type(error).__name__}: {error}{_where(error)}")
    return Verdict(exercise, CORRECT, _sentence(praise or ""))


def check(exercise: str, *answers: Any) -> None:
    """Judge `answers` and show the verdict in the notebook, with the checker's picture when the answer is wrong."""
    from IPython.display import display

    verdict = grade(exercise, *answers)
    text = str(verdict)
    colour = _COLOURS[verdict.verdict]
    head, _, rest = text.partition(". ")
    display(
        {
            "text/plain": text,
            "text/html": f'<div style="border-left: 4px solid {colour}; padding: 0.3em 0.8em"><b>{html.escape(head)}.'
            f'</b> <span style="white-space: pre-wrap">{html.escape(rest)}</span></div>',
            VERDICT_MIME: {"exercise": exercise, "verdict": verdict.verdict, "message": verdict.message},
        },
        raw=True,
    )
    if verdict.picture is not None:
        from course import plots

        figure, axes = plots.figure()
        verdict.picture(axes)
        plots.show(figure)


def expect_equal(what: str, got: Any, want: Any, hint: str = "") -> None:
    """Raise `Wrong` unless ``got == want``; `what` names the value to the student, `hint` says where to look."""
    if isinstance(got, bool) != isinstance(want, bool) or not _same(got, want):
        raise Wrong(_sentence(f"{what} is {_show(got)}, but should be {_show(want)}") + _tail(hint))


def expect_close(what: str, got: Any, want: Any, tol: float = 1e-6, hint: str = "") -> None:
    """Raise `Wrong` unless `got` equals `want` within ``tol * max(1, |want|)`` everywhere, shapes included.

    Numbers, sequences of numbers, NumPy arrays and torch tensors are accepted on both sides.
    """
    import numpy as np

    if got is ...:
        raise NotDone
    got_array, want_array = _array(got), _array(want)
    if got_array is None:
        raise Wrong(_sentence(f"{what} is {_show(got)}, which is no number") + _tail(hint))
    if got_array.shape != want_array.shape:
        raise Wrong(_sentence(f"{what} has shape {got_array.shape}, but should have {want_array.shape}") + _tail(hint))
    if got_array.size == 0:
        return
    # NaN and infinity where a finite number is due are as wrong as can be, and must not slip through a comparison.
    with np.errstate(invalid="ignore"):
        error = np.abs(got_array - want_array) / np.maximum(1.0, np.abs(want_array))
    error = np.where(got_array == want_array, 0.0, np.where(np.isfinite(error), error, np.inf))
    if error.max() > tol:
        at = np.unravel_index(int(error.argmax()), error.shape)
        place = f" at {list(map(int, at))}" if at else ""
        raise Wrong(
            _sentence(f"{what} is {_show(got_array[at])}{place}, but should be {_show(want_array[at])}") + _tail(hint)
        )


def _watch(answer: Any) -> Any:
    """Turn a stub into `NotDone`: an answer of ``...`` at once, a function that returns ``...`` when it is called."""
    if answer is ...:
        raise NotDone
    if not isinstance(answer, types.FunctionType):
        return answer

    @functools.wraps(answer)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = answer(*args, **kwargs)
        if result is ... or (isinstance(result, tuple | list) and any(part is ... for part in result)):
            raise NotDone
        return result

    return watched


def _same(got: Any, want: Any) -> bool:
    verdict = got == want
    return bool(verdict.all()) if hasattr(verdict, "all") else bool(verdict)


def _array(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().to("cpu").double().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _show(value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "size", None) == 1:
        value = value.item()
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."


def _tail(hint: str) -> str:
    return f" {_sentence(hint[0].upper() + hint[1:])}" if hint else ""


def _where(error: Exception) -> str:
    """Name the line of the student's cell in which `error` was raised, if it was."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        if "ipykernel_" in trace.tb_frame.f_code.co_filename:
            place = f" (line {trace.tb_lineno} of your cell)"
        trace = trace.tb_next
    return place
