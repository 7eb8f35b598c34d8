"""The decode branch counts the token that it is about to compute, and puts it one position too far."""

from __future__ import annotations

from collections.abc import Callable

from course.museum import Exhibit


def buggy(num_tokens: int, num_computed: int, num_new: int) -> list[int]:
    """Positions of the next `num_new` tokens of a sequence that knows `num_tokens`, `num_computed` of them cached."""
    if num_new == 1:
        return [num_tokens]
    return list(range(num_computed, num_computed + num_new))


def fixed(num_tokens: int, num_computed: int, num_new: int) -> list[int]:
    """One rule for prompts, chunks and decodes: new tokens follow the computed ones."""
    return list(range(num_computed, num_computed + num_new))


def detect(positions_of: Callable[[int, int, int], list[int]]) -> None:
    """A prompt of 6 tokens in chunks of 4 and 2, then three decodes: together the positions of one prefill."""
    seen, num_tokens, computed = [], 6, 0
    for num_new in (4, 2, 1, 1, 1):
        seen += positions_of(num_tokens, computed, num_new)
        computed += num_new
        num_tokens = max(num_tokens, computed + 1)  # the step that reaches the end draws one more
    assert seen == list(range(9)), f"in chunks the positions are {seen}, in one prefill they are {list(range(9))}"


EXHIBIT = Exhibit(
    name="off_by_one_decode_position",
    chapter="05_prefill_vs_decode",
    title="Decoded tokens sit one position too far",
    symptom="None that a reader sees: the text is fluent, often even the same. The logits are off from the second token on.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="easy to make wherever prefill and decode have branches of their own; nano-vllm's prepare_decode has to "
    "write len(seq) - 1",
)
