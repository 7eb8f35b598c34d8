"""The block manager alone: allocation, sharing by chained hash, eviction. No torch."""

from __future__ import annotations

import pytest
from fake_model import PROPERTY, FakeModel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanovllm.engine.block_manager import BlockManager, hash_block
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams


def make_sequence(token_ids: list[int], seq_id: int = 0) -> Sequence:
    return Sequence(seq_id, token_ids, SamplingParams())


def compute(blocks: BlockManager, seq: Sequence) -> None:
    """Computes all known tokens of the sequence."""
    before, seq.num_computed_tokens = seq.num_computed_tokens, seq.num_tokens
    blocks.cache_computed_blocks(seq, before)


def run(blocks: BlockManager, token_ids: list[int]) -> int:
    """Allocates, computes and frees a sequence; returns how many of its tokens were cached."""
    seq = make_sequence(token_ids)
    assert blocks.allocate(seq)
    cached = seq.num_computed_tokens
    compute(blocks, seq)
    blocks.free(seq)
    return cached


class Blocks(RuleBasedStateMachine):
    """Sequences of few different tokens are allocated, computed in chunks, grown and freed in any order."""

    @initialize(num_blocks=st.integers(1, 10), size=st.integers(1, 4), caching=st.booleans())
    def start(self, num_blocks: int, size: int, caching: bool) -> None:
        self.blocks = BlockManager(num_blocks, size, caching)
        self.model = FakeModel(self.blocks, vocab_size=2)
        self.live: list[Sequence] = []
        self.gone: list[list[int]] = []

    def allocate(self, token_ids: list[int]) -> None:
        blocks, seq = self.blocks, make_sequence(token_ids, len(self.gone) + len(self.live))
        shared = blocks.cached_prefix(seq)
        needed = blocks.num_blocks_for(len(token_ids)) - sum(blocks.ref_counts[block] > 0 for block in shared)
        before = (list(blocks.ref_counts), list(blocks.free_blocks), dict(blocks.block_of_hash))
        if blocks.allocate(seq):
            assert needed <= len(before[1])
            assert seq.block_table[: len(shared)] == shared
            assert len(seq.block_table) == blocks.num_blocks_for(len(token_ids))
            assert seq.num_computed_tokens == len(shared) * blocks.block_size < len(token_ids)
            self.live.append(seq)
        else:
            assert needed > len(before[1])
            assert before == (blocks.ref_counts, list(blocks.free_blocks), blocks.block_of_hash)
            assert seq.block_table == []

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def allocate_any(self, token_ids: list[int]) -> None:
        self.allocate(token_ids)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def allocate_again(self, data: st.DataObject) -> None:
        token_ids = data.draw(st.sampled_from(self.gone))
        self.allocate(token_ids[: data.draw(st.integers(1, len(token_ids)))])

    @precondition(lambda self: any(seq.num_remaining_tokens for seq in self.live))
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from([seq for seq in self.live if seq.num_remaining_tokens]))
        num, before = data.draw(st.integers(1, seq.num_remaining_tokens)), seq.num_computed_tokens
        self.model.write(seq, num, set())
        self.model.read(seq, num)
        seq.num_computed_tokens += num
        self.blocks.cache_computed_blocks(seq, before)

    @precondition(lambda self: any(not seq.num_remaining_tokens for seq in self.live))
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        seq = data.draw(st.sampled_from([seq for seq in self.live if not seq.num_remaining_tokens]))
        seq.token_ids.append(token)
        free, table = self.blocks.num_free_blocks, list(seq.block_table)
        full = seq.num_tokens > len(table) * self.blocks.block_size
        if self.blocks.append_slot(seq):
            assert seq.block_table[: len(table)] == table
            assert len(seq.block_table) == len(table) + full
        else:
            assert full and free == 0 and seq.block_table == table
            seq.token_ids.pop()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.blocks.free(seq)
        assert seq.block_table == [] and seq.num_computed_tokens == 0
        self.gone.append(seq.token_ids)

    @invariant()
    def counts_follow_from_the_tables_and_every_computed_position_is_right(self) -> None:
        if hasattr(self, "blocks"):
            self.blocks.check_integrity(self.live)
            for seq in self.live:
                if seq.num_computed_tokens:
                    self.model.read(seq, 0)

    def teardown(self) -> None:
        if hasattr(self, "blocks"):
            for seq in self.live:
                self.blocks.free(seq)
            assert self.blocks.num_free_blocks == self.blocks.num_blocks


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(PROPERTY, stateful_step_count=40)


def test_hashes_are_chained():
    first = hash_block(0, [1, 2])
    assert hash_block(0, [1, 2]) == first
    assert len({first, hash_block(first, [1, 2]), hash_block(0, [2, 1]), hash_block(first, [3, 4])}) == 4
    assert len({hash_block(0, ids) for ids in ([1], [1 + 2**8], [1 + 2**16], [1 + 2**32], [1, 0], [0, 1])}) == 6
    assert first.bit_length() > 64


@pytest.mark.parametrize(
    ("num_tokens", "cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (11, 8), (12, 8), (13, 12), (16, 12)]
)
def test_whole_blocks_are_shared_and_one_token_is_always_left(num_tokens, cached):
    blocks = BlockManager(8, 4)
    tokens = list(range(16))
    run(blocks, tokens)
    assert run(blocks, tokens[:num_tokens]) == cached


def test_a_prefix_hit_ends_at_the_first_different_token():
    blocks = BlockManager(100, 4)
    tokens = list(range(16))
    run(blocks, tokens)
    for different in range(16):
        other = [*tokens, 99]
        other[different] = 1000 + different
        assert run(blocks, other) == different // 4 * 4


def test_equal_blocks_after_different_prefixes_are_not_shared():
    blocks = BlockManager(16, 2)
    run(blocks, [1, 1, 7, 7, 0])
    assert run(blocks, [2, 2, 7, 7, 0]) == 0
    assert run(blocks, [7, 7, 0]) == 0
    assert run(blocks, [1, 1, 7, 7, 0]) == 4


def test_live_sequences_share_blocks_and_count_their_references():
    blocks = BlockManager(6, 2)
    first, second = make_sequence([1, 2, 3, 4, 5], 0), make_sequence([1, 2, 3, 4, 6], 1)
    blocks.allocate(first)
    compute(blocks, first)
    blocks.allocate(second)
    assert second.block_table[:2] == first.block_table[:2] and second.block_table[2] != first.block_table[2]
    assert [blocks.ref_counts[block] for block in first.block_table] == [2, 2, 1]
    blocks.free(first)
    blocks.check_integrity([second])
    assert blocks.num_free_blocks == 3
    assert run(blocks, [1, 2, 3, 4, 7]) == 4
    blocks.check_integrity([second])


def test_nothing_is_shared_before_it_is_computed():
    blocks = BlockManager(8, 2)
    first, second = make_sequence([1, 2, 3, 4, 5], 0), make_sequence([1, 2, 3, 4, 5], 1)
    blocks.allocate(first)
    first.num_computed_tokens = 3
    blocks.cache_computed_blocks(first, 0)
    blocks.allocate(second)
    assert second.num_computed_tokens == 2
    assert second.block_table[0] == first.block_table[0]
    assert not set(second.block_table[1:]) & set(first.block_table)


def test_the_least_recently_used_content_is_evicted_first_and_a_tail_before_its_head():
    blocks = BlockManager(6, 1)
    run(blocks, [1, 2, 3])
    run(blocks, [4, 5, 6])
    assert run(blocks, [1, 9]) == 1  # one new block: the tail of the sequence used longest ago goes, 3
    assert blocks.cached_prefix(make_sequence([1, 2, 3, 0])) != []
    lengths = [len(blocks.cached_prefix(make_sequence(tokens))) for tokens in ([1, 2, 3, 0], [4, 5, 6, 0], [1, 9, 0])]
    assert lengths == [2, 3, 2]
    run(blocks, [7, 8])  # two more: 2, and then the tail of 4 5 6
    lengths = [len(blocks.cached_prefix(make_sequence(tokens))) for tokens in ([1, 2, 3, 0], [4, 5, 6, 0], [1, 9, 0])]
    assert lengths == [1, 2, 2]


def test_empty_blocks_are_taken_before_cached_ones():
    blocks = BlockManager(8, 2)
    run(blocks, [1, 2, 3, 4, 5])
    run(blocks, [6, 7, 8, 9, 0])
    assert run(blocks, [1, 2, 3, 4, 5]) == 4


def test_allocation_is_all_or_nothing():
    blocks = BlockManager(4, 2)
    run(blocks, [1, 2, 3, 4, 5])
    holder = make_sequence([9, 9, 9, 9])
    blocks.allocate(holder)
    before = (list(blocks.ref_counts), list(blocks.free_blocks), dict(blocks.block_of_hash))
    seq = make_sequence([1, 2, 3, 4, 5])
    # Two blocks are free, one of them is the cached prefix: what is shared cannot be handed out a second time.
    assert not blocks.allocate(seq)
    assert (seq.block_table, seq.num_computed_tokens) == ([], 0)
    assert before == (blocks.ref_counts, list(blocks.free_blocks), blocks.block_of_hash)
    blocks.free(holder)
    assert blocks.allocate(seq)


def test_append_slot_takes_a_block_only_where_the_last_is_full():
    blocks = BlockManager(3, 2)
    seq = make_sequence([1])
    blocks.allocate(seq)
    sizes = []
    for _ in range(5):
        seq.token_ids.append(1)
        assert blocks.append_slot(seq)
        sizes.append(len(seq.block_table))
    assert sizes == [1, 2, 2, 3, 3]
    seq.token_ids.append(1)
    assert not blocks.append_slot(seq)
    assert len(seq.block_table) == 3
    blocks.check_integrity([seq])


def test_without_prefix_caching_nothing_is_hashed():
    blocks = BlockManager(8, 2, enable_prefix_caching=False)
    assert [run(blocks, [1, 2, 3, 4, 5]) for _ in range(2)] == [0, 0]
    assert blocks.block_of_hash == blocks.hash_of_block == {}


def broken_count(blocks: BlockManager, seq: Sequence) -> None:
    blocks.ref_counts[seq.block_table[0]] += 1


def lost_block(blocks: BlockManager, seq: Sequence) -> None:
    blocks.free_blocks.popitem()


def freed_while_used(blocks: BlockManager, seq: Sequence) -> None:
    blocks.free_blocks[seq.block_table[0]] = None


def held_twice(blocks: BlockManager, seq: Sequence) -> None:
    blocks.ref_counts[seq.block_table[0]] += 1
    seq.block_table.append(seq.block_table[0])


def one_way_hash(blocks: BlockManager, seq: Sequence) -> None:
    blocks.block_of_hash[1] = 7


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_count, "Reference counts"),
        (lost_block, "free list"),
        (freed_while_used, "free list"),
        (held_twice, "holds a block twice"),
        (one_way_hash, "prefix cache disagree"),
    ],
)
def test_check_integrity_sees(damage, message):
    blocks = BlockManager(8, 2)
    seq = make_sequence([1, 2, 3])
    blocks.allocate(seq)
    blocks.check_integrity([seq])
    damage(blocks, seq)
    with pytest.raises(RuntimeError, match=message):
        blocks.check_integrity([seq])
