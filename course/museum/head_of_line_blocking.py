"""A step's token budget that goes to the first prompt alone."""

from __future__ import annotations

from collections.abc import Callable

from course.museum import Exhibit


def buggy(remaining: list[int], budget: int) -> list[int]:
    """Prompt tokens left, in order of arrival -> how many of each this step computes."""
    chunks = []
    for tokens in remaining:
        chunks.append(min(tokens, budget))
        budget -= chunks[-1]
    return chunks


def fixed(remaining: list[int], budget: int) -> list[int]:
    """The same, but prompts longer than half the budget share one half while shorter ones wait."""
    half = budget // 2
    for_long_ones = half if any(0 < tokens <= half for tokens in remaining) else budget
    chunks = []
    for tokens in remaining:
        chunk = min(tokens, budget, for_long_ones if tokens > half else budget)
        if tokens > half:
            for_long_ones -= chunk
        budget -= chunk
        chunks.append(chunk)
    return chunks


def detect(chunks: Callable[[list[int], int], list[int]]) -> None:
    """A short prompt behind a long one: how many steps does it wait for its first token?"""
    remaining, steps = [3000, 10], 0
    while remaining[1]:
        remaining = [left - chunk for left, chunk in zip(remaining, chunks(remaining, 64), strict=True)]
        steps += 1
    assert steps <= 2, f"a prompt of 10 tokens behind one of 3,000 got its first token after {steps} steps of 64 tokens"


EXHIBIT = Exhibit(
    name="head_of_line_blocking",
    chapter="09_scheduler_and_paging",
    title="One long prompt makes everybody wait",
    symptom="Throughput is as high as ever and every answer is right. But whenever somebody sends a long document, short "
    "questions behind it take seconds to their first word.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="First come, first served inside one token budget, the obvious way to write chunked prefill; the rule that "
    "prevents it is in Scheduler._schedule_prefills of nanovllm/engine/scheduler.py.",
)
