"""Mistakes that engines of this kind have made, each a test by name. No torch; the shadow KV cache finds wrong content.

test_end_to_end.py has the same names against transformers, where a model is needed to see the mistake.
"""

from __future__ import annotations

import random

import pytest
from fake_model import Engine

from nanovllm.engine.sequence import FinishReason, SequenceStatus


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_sequence_outgrows_the_pool(enable_prefix_caching):
    """Prompts fit together, but not what they grow to: the newest gives way and loses nothing."""
    engine = Engine(num_blocks=8, block_size=4, enable_prefix_caching=enable_prefix_caching)
    seqs = [engine.add([i] * 4, max_tokens=20) for i in range(4)]
    engine.run()
    assert engine.num_preemptions > 0
    assert seqs[0].num_preemptions == 0
    engine.check_outputs()


def test_sequence_outgrows_the_pool_alone():
    engine = Engine(num_blocks=4, block_size=4)
    seq = engine.add([1, 2, 3], max_tokens=1000)
    engine.run()
    assert (seq.num_tokens, seq.finish_reason, seq.num_preemptions) == (16, FinishReason.LENGTH, 0)
    engine.check_outputs()


@pytest.mark.parametrize("length", range(8, 14))
def test_fully_cached_prompt(length):
    """At least the last token is computed: its logits are needed. Its block is not shared then."""
    engine = Engine(num_blocks=16, block_size=4)
    prompt = list(range(length))
    first = engine.add(prompt, max_tokens=5)
    engine.run()
    second = engine.add(prompt, max_tokens=5)
    batch = engine.step()
    cached = (length - 1) // 4 * 4
    assert second.num_cached_tokens == cached
    assert batch.scheduled == [(second, length - cached)]
    assert batch.num_decodes == (length - cached == 1)
    engine.run()
    assert second.completion_token_ids == first.completion_token_ids
    engine.check_outputs()


def test_fully_cached_prompt_while_its_owner_still_decodes():
    engine = Engine(num_blocks=16, block_size=4)
    prompt = list(range(8))
    first = engine.add(prompt, max_tokens=9)
    engine.step()
    second = engine.add(prompt, max_tokens=9)
    engine.step()
    assert second.num_cached_tokens == 4
    assert second.block_table[0] == first.block_table[0] and second.block_table[1] != first.block_table[1]
    engine.run()
    engine.check_outputs()


def test_preempted_sequence_with_a_prefix_hit():
    """A preempted sequence finds its own blocks again, those of generated tokens too, and goes on where it was."""
    engine = Engine(num_blocks=9, block_size=2)
    old, new = engine.add([1] * 4, max_tokens=8), engine.add([2] * 5, max_tokens=8)
    while not new.num_preemptions:
        engine.step()
    num_tokens = new.num_tokens
    assert num_tokens > new.num_prompt_tokens
    while new.status is SequenceStatus.PREEMPTED:
        batch = engine.step()
    computed = dict(batch.scheduled)[new]
    assert num_tokens - computed > new.num_prompt_tokens  # from the cache, beyond the prompt
    assert new.num_cached_tokens == 0  # of the prompt, at its first admission
    engine.run()
    assert old.num_preemptions == 0
    engine.check_outputs()


def test_identical_prefixes_in_one_step():
    """Both are computed, the first copy is the one that is shared, and nothing breaks when either goes."""
    for finishes_first in (0, 1):
        engine = Engine(num_blocks=16, block_size=2)
        prompt = list(range(6))
        twins = [engine.add([*prompt, 50 + i], max_tokens=2 if i == finishes_first else 9) for i in range(2)]
        batch = engine.step()
        assert [num for _, num in batch.scheduled] == [7, 7]
        assert not set(twins[0].block_table) & set(twins[1].block_table)
        third = engine.add([*prompt, 60], max_tokens=9)
        engine.step()
        assert third.num_cached_tokens == 6
        assert third.block_table[:3] == [engine.blocks.block_of_hash[key] for key in twins[0].block_hashes[:3]]
        engine.run()
        fourth = engine.add([*prompt, 70], max_tokens=2)
        engine.run()
        assert fourth.num_cached_tokens == 6
        engine.check_outputs()


def test_identical_prefixes_in_one_step_and_then_eviction():
    """The unshared copy of a twin is handed out again without taking the shared copy's hash away."""
    engine = Engine(num_blocks=8, block_size=2)
    prompt = [1, 2, 3, 4, 5]
    engine.add(prompt, max_tokens=1), engine.add(prompt, max_tokens=1)
    engine.run()
    for i in range(4):
        engine.add([10 + i] * 3, max_tokens=3)
        last = engine.add(prompt, max_tokens=3)
        engine.run()
    assert last.num_cached_tokens == 4
    engine.check_outputs()


def test_max_num_seqs_20():
    """A number that is no power of two: all twenty run at once, never more, and all fifty finish."""
    engine = Engine(num_blocks=400, block_size=4, max_num_seqs=20, max_num_batched_tokens=200)
    for i in range(50):
        engine.add([i, i + 1, i + 2], max_tokens=6 + i % 5)
    engine.run()
    assert max(len(batch.scheduled) for batch in engine.steps) == 20
    assert max(batch.num_decodes for batch in engine.steps) == 20
    engine.check_outputs()


def test_block_hash_chain_stale_after_eviction():
    """The first block of a chain is evicted before its second: the second must not be found without the first."""
    engine = Engine(num_blocks=6, block_size=2)
    prompt = [1, 2, 3, 4, 5]
    engine.add(prompt, max_tokens=1)
    engine.run()
    head, tail = (engine.blocks.block_of_hash[key] for key in engine.sequences[0].block_hashes[:2])
    engine.blocks.free_blocks.move_to_end(head, last=False)  # evict the head first
    engine.add([7, 7], max_tokens=1)
    engine.run()
    assert head not in engine.blocks.hash_of_block or len(engine.blocks.hash_of_block) == 2
    assert tail in engine.blocks.hash_of_block
    again = engine.add(prompt, max_tokens=4)
    engine.run()
    assert again.num_cached_tokens == 0
    third = engine.add(prompt, max_tokens=4)
    engine.run()
    assert third.num_cached_tokens == 4
    engine.check_outputs()


def test_block_hash_chain_stale_after_reuse():
    """A block keeps no hash of what it held before, though it is never filled again."""
    engine = Engine(num_blocks=4, block_size=4)
    prompt = list(range(13))
    engine.add(prompt, max_tokens=2)
    engine.run()
    assert len(engine.blocks.hash_of_block) == 3
    for i in range(4):
        engine.add([50 + i], max_tokens=1)  # takes a block, writes one slot of it
    engine.run()
    assert len(engine.blocks.hash_of_block) == 0
    again = engine.add(prompt, max_tokens=2)
    engine.run()
    assert again.num_cached_tokens == 0
    engine.check_outputs()


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9])
def test_decode_position_off_by_one(length):
    """The decoded token is the newest, at position num_tokens - 1, in the block where that position belongs."""
    engine = Engine(num_blocks=8, block_size=4, max_num_batched_tokens=32)
    seq = engine.add(list(range(length)), max_tokens=10)
    engine.step()
    for generated in range(1, 9):
        batch = engine.scheduler.schedule()
        assert batch.scheduled == [(seq, 1)] and batch.num_decodes == 1
        assert seq.num_computed_tokens == seq.num_tokens - 1 == length + generated - 1
        assert len(seq.block_table) == (length + generated - 1) // 4 + 1
        engine.scheduler.update(batch, engine.model.execute(batch))
        slot = engine.model.slot(seq, length + generated - 1)
        assert engine.model.cache[slot][:2] == (seq.token_ids[length + generated - 1], length + generated - 1)
    engine.run()
    engine.check_outputs()


@pytest.mark.parametrize("large_first", [True, False])
def test_head_of_line_blocking_by_a_large_prompt_in_chunks(large_first):
    """A prompt of hundreds of chunks leaves half of each step to shorter ones; they start at once, and it goes on."""
    engine = Engine(num_blocks=1000, block_size=4, max_num_batched_tokens=16, max_num_seqs=4)
    large = engine.add([1] * 3000, max_tokens=2)
    if large_first:
        engine.step()
    shorts = [engine.add([2 + i] * 6, max_tokens=3) for i in range(3)]
    start = len(engine.steps)
    while not all(short.is_finished for short in shorts):
        before = large.num_computed_tokens
        engine.step()
        assert large.num_computed_tokens > before
    # Half of the budget is 8 tokens: 18 tokens of prompts take 3 steps, and two more tokens each take 2.
    assert len(engine.steps) - start <= 5
    engine.run()
    # Alone again, it takes the whole budget.
    assert len(engine.steps) <= 5 + 1 + 3000 / 16 + 2
    engine.check_outputs()


def test_head_of_line_blocking_by_a_large_prompt_behind_steady_short_ones():
    """The other way round: short ones that keep coming leave a share of each step to the large one."""
    engine = Engine(num_blocks=400, block_size=4, max_num_batched_tokens=16, max_num_seqs=4)
    large = engine.add([1] * 400, max_tokens=1)
    while not large.is_finished:
        while len(engine.scheduler.waiting) < 6:
            engine.add([2] * 6, max_tokens=1)
        engine.step()
    # Of 16 tokens at most 8 go to it while short prompts wait, and never fewer than 16 less those of three short ones.
    assert len(engine.steps) <= 400 / 5 + 1
    engine.run()
    engine.check_outputs()


def test_head_of_line_blocking_by_a_large_request_that_waits_for_memory():
    """Short ones pass a request that does not fit yet; it still starts after a bounded number of passes."""
    engine = Engine(num_blocks=100, block_size=4, max_num_seqs=8, max_num_batched_tokens=400)
    holder = engine.add([1] * 200, max_tokens=150)
    engine.step()
    large = engine.add([2] * 300, max_tokens=2)
    shorts = [engine.add([3 + i] * 8, max_tokens=4) for i in range(20)]
    steps = 0
    while not all(short.is_finished for short in shorts):
        engine.step()
        steps += 1
    assert not holder.is_finished and large.status is SequenceStatus.WAITING
    assert steps <= 4 * 4  # twenty of them, seven at a time, four steps each
    assert large.num_times_passed == 20
    engine.run()
    engine.check_outputs()


@pytest.mark.parametrize("length", [1, 5, 14, 15])
def test_max_model_len_reached(length):
    engine = Engine(num_blocks=8, block_size=4, max_model_len=16)
    seq = engine.add(list(range(length)), max_tokens=100)
    engine.run()
    assert (seq.num_tokens, seq.finish_reason) == (16, FinishReason.LENGTH)
    assert max(entry.position for entry in engine.model.cache.values()) == 14  # the last token is never computed
    engine.check_outputs()


@pytest.mark.parametrize("limit", ["max_tokens", "max_model_len"])
def test_eos_and_length_in_the_same_step(limit):
    """The model's own end wins, the sequence ends once, and the token is part of the output."""
    probe = Engine(num_blocks=8, block_size=4)
    eos = probe.add([1, 2, 3], max_tokens=4)
    probe.run()
    engine = Engine(
        num_blocks=8,
        block_size=4,
        eos_token_ids=[eos.token_ids[-1]],
        max_model_len=7 if limit == "max_model_len" else 32,
    )
    seq = engine.add([1, 2, 3], max_tokens=4 if limit == "max_tokens" else 100)
    engine.run()
    assert seq.finish_reason is FinishReason.STOP
    assert seq.completion_token_ids == eos.completion_token_ids


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_thousand_requests_with_random_aborts_end_with_every_block_free(enable_prefix_caching):
    """And everything that can go on in between did: preemptions, hits, chunks, passes, aborts in each state."""
    rng = random.Random(0)
    engine = Engine(
        num_blocks=40,
        block_size=4,
        max_num_seqs=20,
        max_num_batched_tokens=64,
        vocab_size=50,
        eos_token_ids=[0],
        enable_prefix_caching=enable_prefix_caching,
        max_passes=8,
    )
    prefixes = [[rng.randrange(50) for _ in range(rng.randint(1, 40))] for _ in range(12)]
    aborted = dict.fromkeys((SequenceStatus.WAITING, SequenceStatus.RUNNING, SequenceStatus.PREEMPTED), 0)
    readmitted_with_a_hit = 0
    to_come = 1000
    while to_come or engine.scheduler.has_unfinished:
        for _ in range(rng.randint(0, min(8, to_come))):
            prompt = rng.choice(prefixes) + [rng.randrange(50) for _ in range(rng.randint(0, 8))]
            if rng.random() < 0.02:
                prompt += [rng.randrange(50) for _ in range(rng.randint(60, 100))]
            engine.add(prompt, max_tokens=rng.randint(1, 24), ignore_eos=rng.random() < 0.3)
            to_come -= 1
        if rng.random() < 0.3 and engine.scheduler.has_unfinished:
            live = [*engine.scheduler.waiting, *engine.scheduler.running]
            status = rng.choice(sorted({seq.status for seq in live}, key=lambda status: status.value))
            seq = rng.choice([seq for seq in live if seq.status is status])
            aborted[seq.status] += 1
            engine.abort(seq)
        preempted = [seq for seq in engine.scheduler.waiting if seq.status is SequenceStatus.PREEMPTED]
        batch = engine.step()
        chunks = {seq.seq_id: num for seq, num in batch.scheduled}
        readmitted_with_a_hit += sum(
            seq.num_computed_tokens > chunks[seq.seq_id]
            for seq in preempted
            if seq.seq_id in chunks and seq.block_table
        )
    assert len(engine.sequences) == 1000
    engine.check_idle()
    engine.check_outputs()
    assert min(aborted.values()) >= 10
    assert engine.num_preemptions >= 100
    assert max(seq.num_times_passed for seq in engine.sequences) == 8
    if enable_prefix_caching:
        assert readmitted_with_a_hit >= 20
        assert sum(seq.num_cached_tokens or 0 for seq in engine.sequences) >= 2000
