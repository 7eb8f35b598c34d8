"""An online softmax that rescales the sum of its weights when the maximum grows, and forgets the weighted values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course.museum import Exhibit


def buggy(scores: Tensor, values: Tensor, tile: int) -> Tensor:
    """Scores (T) and values (T, D), read `tile` at a time -> softmax(scores) @ values (D)."""
    top, norm, acc = torch.tensor(float("-inf")), torch.tensor(0.0), torch.zeros(values.shape[1])
    for s, v in zip(scores.split(tile), values.split(tile)):
        new_top = torch.maximum(top, s.max())
        weights = torch.exp(s - new_top)
        norm = norm * torch.exp(top - new_top) + weights.sum()
        acc = acc + weights @ v
        top = new_top
    return acc / norm


def fixed(scores: Tensor, values: Tensor, tile: int) -> Tensor:
    """Everything that was summed under the old maximum shrinks with it."""
    top, norm, acc = torch.tensor(float("-inf")), torch.tensor(0.0), torch.zeros(values.shape[1])
    for s, v in zip(scores.split(tile), values.split(tile)):
        new_top = torch.maximum(top, s.max())
        weights, rescale = torch.exp(s - new_top), torch.exp(top - new_top)
        norm = norm * rescale + weights.sum()
        acc = acc * rescale + weights @ v
        top = new_top
    return acc / norm


def detect(attend: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """The largest score lies in the last tile, so the maximum grows on the way; with values of 1 the answer is 1."""
    got = attend(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3, 1), 1).item()
    assert abs(got - 1) < 1e-6, f"an average of three values of 1 is {got:.2f}, not 1"


EXHIBIT = Exhibit(
    name="unscaled_accumulator",
    chapter="10_write_a_paged_attention_kernel",
    title="The maximum moves, and the accumulator does not hear of it",
    symptom="Contexts that fit into one tile are right to the last digit, and so are those whose largest score comes first. "
    "The outputs of all others are too large. No NaN, no error; only the text becomes odd, and odder in long conversations.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make wherever a softmax is computed in pieces: Milakov and Gimelshein, arXiv 1805.02867, algorithm 3, has "
    "one factor for the sum, and attention needs it twice.",
)
