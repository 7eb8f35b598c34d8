"""Rows behind a smaller batch keep the slots of the larger one before it, and write there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course.museum import Exhibit


def buggy(static_slots: Tensor, slots: Tensor) -> None:
    """Write the slots (B) of a batch into a recorded step's static slots (size)."""
    static_slots[: len(slots)].copy_(slots)


def fixed(static_slots: Tensor, slots: Tensor) -> None:
    """What the batch does not use is padding: slot -1, which means "write nowhere"."""
    static_slots[: len(slots)].copy_(slots)
    static_slots[len(slots) :].fill_(-1)


def detect(fill: Callable[[Tensor, Tensor], None]) -> None:
    """Four sequences, then two: the cache entries of those that left stay as they were."""
    cache = torch.zeros(8)
    static_slots = torch.full((4,), -1)
    for slots, value in ((torch.tensor([1, 3, 5, 7]), 1.0), (torch.tensor([2, 4]), 2.0)):
        fill(static_slots, slots)
        written = static_slots[static_slots >= 0]
        cache[written] = value
    got = cache.tolist()
    assert got[5] == got[7] == 1.0, (
        f"slots 5 and 7 belonged to the first batch, and the second wrote {got[5]}, {got[7]}"
    )


EXHIBIT = Exhibit(
    name="stale_padding_rows",
    chapter="06_cuda_graphs",
    title="Padding rows write into a cache that is not theirs",
    symptom="Rare wrong tokens under load: whenever the batch shrinks within a bucket and a freed block finds a new owner.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="easy to make wherever a batch is padded; nano-vllm fills its slot mapping with -1 before every replay",
)
