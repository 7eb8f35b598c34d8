"""A prompt that is too long and loses its end, which is the question."""

from __future__ import annotations

from collections.abc import Callable

from course.museum import Exhibit


def buggy(instruction: list[int], passages: list[list[int]], question: list[int], limit: int) -> list[int]:
    """The prompt's token ids, at most `limit`; passages come best first."""
    prompt = instruction + [token for passage in passages for token in passage] + question
    return prompt[:limit]


def fixed(instruction: list[int], passages: list[list[int]], question: list[int], limit: int) -> list[int]:
    """The same; what does not fit is a whole passage, the last one in the ranking."""
    kept = list(passages)
    while kept and len(instruction) + sum(map(len, kept)) + len(question) > limit:
        kept.pop()
    return instruction + [token for passage in kept for token in passage] + question


def detect(build: Callable[[list[int], list[list[int]], list[int], int], list[int]]) -> None:
    """One passage too many: the question must still end the prompt, and the best passage must be in it."""
    question = [901, 902, 903]
    prompt = build([1, 2], [[10] * 40, [11] * 40, [12] * 40], question, 100)
    assert len(prompt) <= 100, f"the prompt has {len(prompt)} tokens, but 100 is the limit"
    assert prompt[-3:] == question, f"the prompt ends in {prompt[-3:]} and not in the question {question}"
    assert prompt.count(10) == 40, f"{prompt.count(10)} of the best passage's 40 tokens are left"


EXHIBIT = Exhibit(
    name="question_cut_off",
    chapter="12_rag_capstone",
    title="A prompt cut off at its end",
    symptom="Short passages are answered well. With long ones the model goes on with the text, sums it up, or answers something "
    "that nobody asked: the question never reached it.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make wherever a prompt is built first and measured later; transformers' tokenizers, told to truncate, take "
    "tokens away at the end (truncation_side='right').",
)
