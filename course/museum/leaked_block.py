"""A block that two sequences shared and that nobody gives back."""

from __future__ import annotations

from collections.abc import Callable

from course.museum import Exhibit
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams


def buggy(manager: BlockManager, seq: Sequence) -> None:
    """Take back the blocks of a finished sequence; those that somebody else still uses stay."""
    for block in reversed(seq.block_table):
        if manager.ref_counts[block] == 1:
            manager.ref_counts[block] = 0
            manager.free_blocks[block] = None
    seq.block_table = []


def fixed(manager: BlockManager, seq: Sequence) -> None:
    """The same; each sequence takes its own reference away, and the last one frees the block."""
    for block in reversed(seq.block_table):
        manager.ref_counts[block] -= 1
        if manager.ref_counts[block] == 0:
            manager.free_blocks[block] = None
    seq.block_table = []


def detect(free: Callable[[BlockManager, Sequence], None]) -> None:
    """Two sequences that share a full block, freed one after the other: then every block must be free again."""
    manager = BlockManager(num_blocks=8, block_size=4)
    sequences = [Sequence(number, [7, 7, 7, 7, number], SamplingParams()) for number in range(2)]
    for seq in sequences:
        if not manager.allocate(seq):
            raise RuntimeError("8 blocks are enough for this test")
        seq.num_computed_tokens = seq.num_tokens
        manager.cache_computed_blocks(seq, 0)
    for seq in sequences:
        free(manager, seq)
    assert manager.num_free_blocks == 8, (
        f"both sequences are gone, but {8 - manager.num_free_blocks} of 8 blocks is not free; "
        f"reference counts {manager.ref_counts}"
    )


EXHIBIT = Exhibit(
    name="leaked_block",
    chapter="04_kv_cache_sizing",
    title="A shared block that nobody gives back",
    symptom="Answers stay right. After each group of requests with a common prefix a few blocks are missing, fewer sequences run "
    "at once, and some hours later none is admitted. Only a restart helps.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make wherever blocks are counted; BlockManager.check_integrity in nanovllm/engine/block_manager.py finds it.",
)
