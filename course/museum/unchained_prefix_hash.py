"""A block's hash that forgets what stands before the block."""

from __future__ import annotations

from collections.abc import Callable

import xxhash

from course.museum import Exhibit
from nanovllm.engine.block_manager import hash_block

BLOCK_SIZE = 16


def buggy(token_ids: list[int]) -> list[int]:
    """The hashes of the full blocks of a prompt."""
    full = len(token_ids) // BLOCK_SIZE
    blocks = (token_ids[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE] for i in range(full))
    return [xxhash.xxh3_128_intdigest(repr(block).encode()) for block in blocks]


def fixed(token_ids: list[int]) -> list[int]:
    """The hashes of the full blocks of a prompt, each chained to the one before."""
    hashes, previous = [], 0
    for index in range(len(token_ids) // BLOCK_SIZE):
        previous = hash_block(previous, token_ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        hashes.append(previous)
    return hashes


def detect(block_hashes: Callable[[list[int]], list[int]]) -> None:
    """The same 16 tokens, once after 16 others and once at the start of a prompt."""
    before, block = list(range(16)), list(range(100, 116))
    second_of_one = block_hashes(before + block)[1]
    first_of_other = block_hashes(block)[0]
    assert second_of_one != first_of_other, (
        "tokens 100 to 115 have one hash at positions 16 to 31 of a prompt and at positions 0 to 15 of another, "
        "so the second prompt would read keys of other positions, computed after other tokens"
    )


EXHIBIT = Exhibit(
    name="unchained_prefix_hash",
    chapter="09_scheduler_and_paging",
    title="A prefix cache that compares blocks and not prefixes",
    symptom="A prompt that begins with text which another prompt had in its middle gets the other one's keys and "
    "values. Nothing fails; the answer is to a context that nobody sent.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make wherever blocks are found by their content; the chained hash of nanovllm/engine/block_manager.py "
    "prevents it.",
)
