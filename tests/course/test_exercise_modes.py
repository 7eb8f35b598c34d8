"""The three modes of an exercise, and proof that they notice each way in which an exercise can be broken."""

from __future__ import annotations

import asyncio
from queue import Empty

import psutil
import pytest

from course import notebooks
from course.notebooks import kernel, modes


def faults(course) -> dict[str, str]:
    return {outcome.answer: outcome.fault for outcome in modes.run(course.path)}


def test_stub_solution_and_wrong_answer_are_told_apart(small_course):
    outcomes = modes.run(small_course.path)
    assert {o.answer: o.verdict for o in outcomes} == {
        "as shipped": "not done",
        "double__adds_two": "wrong",
        "solution": "correct",
    }
    assert not [o.fault for o in outcomes if o.fault]


def test_a_wrong_answer_that_passes_is_a_fault(small_course):
    small_course.wrong("is_right", "# caught: anything\ndef double(x):\n    return 2 * x\n")
    assert "must say 'wrong'" in faults(small_course)["double__is_right"]


def test_a_wrong_answer_caught_for_another_reason_is_a_fault(small_course):
    small_course.wrong("raises", "# caught: but should be 6\ndef double(x):\n    return undefined\n")
    assert "another reason" in faults(small_course)["double__raises"]


def test_a_wrong_answer_must_promise_its_message(small_course):
    small_course.wrong("silent", "def double(x):\n    return x\n")
    assert "first line" in faults(small_course)["double__silent"]


def test_a_solution_that_is_wrong_is_a_fault(small_course):
    small_course.solve("def double(x):\n    return 3 * x\n")
    assert "must say 'correct'" in faults(small_course)["solution"]


def test_a_stub_that_gives_the_answer_away_is_a_fault(small_course):
    small_course.cell("stub").source = "def double(x):\n    return 2 * x\n"
    small_course.save()
    assert "must say 'not done'" in faults(small_course)["as shipped"]


def test_names_of_one_answer_do_not_reach_the_next(small_course):
    small_course.wrong(
        "a_leak", "# caught: but should be 6\nfactor = 5\nhelper = 1\ndef double(x):\n    return 5 * x\n"
    )
    small_course.wrong("b_uses_it", "# caught: name 'helper'\ndef double(x):\n    return helper * x\n")
    assert not any(faults(small_course).values())


def test_an_answer_whose_cell_raises_is_a_fault(small_course):
    small_course.wrong("syntax", "# caught: x\n1 / 0\n")
    assert "ZeroDivisionError" in faults(small_course)["double__syntax"]


def test_a_failing_cell_of_the_notebook_ends_the_run(small_course):
    small_course.cell("setup").source += "\nraise RuntimeError('broken')"
    small_course.save()
    with pytest.raises(modes.CellFailed, match="setup.*broken"):
        modes.run(small_course.path)


def test_no_kernel_outlives_its_notebook(small_course):
    before = set(psutil.Process().children(recursive=True))
    with kernel.running(notebooks.read(small_course.path)):
        assert set(psutil.Process().children(recursive=True)) - before
    assert not set(psutil.Process().children(recursive=True)) - before


def test_a_reply_whose_notice_got_lost_is_found_at_the_next_look():
    waits = []

    async def get_msg(timeout):
        waits.append(timeout)
        if len(waits) < 3:
            raise Empty
        return "reply"

    assert asyncio.run(kernel.looking_again(get_msg, seconds=2)(timeout=300)) == "reply"
    assert waits == [2, 2, 2]


def test_looking_again_and_again_ends_at_the_timeout():
    waited = []

    async def nothing(timeout):
        waited.append(timeout)
        await asyncio.sleep(timeout)
        raise Empty

    with pytest.raises(Empty):
        asyncio.run(kernel.looking_again(nothing, seconds=0.02)(timeout=0.05))
    assert 2 <= len(waited) <= 4 and sum(waited) < 0.06
