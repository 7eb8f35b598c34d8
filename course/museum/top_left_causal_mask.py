"""The causal triangle is put into the upper left corner of a mask that has more keys than queries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course.museum import Exhibit


def buggy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (new, D), k and v (context, D), the context's last tokens being the new ones -> (new, D)."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril()
    scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ v


def fixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The triangle ends in the lower right corner: the last query is the last token and sees everything."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ v


def detect(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """The rows of a chunk are the last rows of the whole prompt."""
    q, k, v = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = attention(q, k, v)
    for new in (1, 3):
        error = (attention(q[-new:], k, v) - whole[-new:]).abs().max().item()
        assert error < 1e-9, f"a chunk of {new} after {6 - new} tokens is off by {error:.2f}"


EXHIBIT = Exhibit(
    name="top_left_causal_mask",
    chapter="05_prefill_vs_decode",
    title="A chunk sees the beginning of its context instead of its own past",
    symptom="Whole prompts are right. Chunks, and every decoded token, attend to the first keys only.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="scaled_dot_product_attention(is_causal=True) aligns a non-square mask at the upper left, as its "
    "documentation says; flash-attn did so before version 2.1",
)
