"""What a request returns."""

from __future__ import annotations

from typing import TypedDict


class Metrics(TypedDict):
    """Times of one request, in seconds, and what the prefix cache saved.

    Attributes:
        queued: from arrival to the first step that computed some of it.
        first_token: from arrival to its first token (TTFT).
        per_token: mean time between its tokens after the first (TPOT); None where there is only one.
        total: from arrival to its end.
        prefix_cached_tokens: prompt tokens that were not computed because their KV blocks were cached.
        preemptions: how often it lost its blocks and was computed again.
    """

    queued: float | None
    first_token: float | None
    per_token: float | None
    total: float | None
    prefix_cached_tokens: int
    preemptions: int


class Completion(TypedDict):
    """One generated text.

    Attributes:
        text: the generated text without special tokens and stop strings; None where the model has no tokenizer.
        token_ids: the generated ids, an end-of-sequence id included.
        finish_reason: "stop", "length", "abort" or "error".
        logprobs: one dict {token id: log probability} a generated token, or None where they were not asked for.
        metrics: see Metrics.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str
    logprobs: list[dict[int, float]] | None
    metrics: Metrics


class RequestOutput(Completion, total=False):
    """The result for one prompt: its first completion and, with `n` > 1, all of them under "outputs"."""

    outputs: list[Completion]


class StreamOutput(TypedDict):
    """The next piece of a stream.

    Attributes:
        text: new text (maybe empty); None where the model has no tokenizer.
        token_ids: the ids drawn since the last piece.
        finish_reason: None until the last piece.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str | None
