"""A model and a KV cache without torch that notice every wrong slot, and a driver for the scheduler.

The fake model is a recurrence: the state of a position is a hash of the previous position's state, read from the cache
through the block table, and of its own token; the next token is a function of the last state. So a wrong slot, position,
block, stale hash or share changes the tokens, as it would change a real model's. In addition each step compares all the
positions that it attends to with what must stand there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Batch, Scheduler
from nanovllm.engine.sequence import FinishReason, Sequence, SequenceStatus
from nanovllm.sampling_params import SamplingParams

PROPERTY = settings(
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "100")),
    deadline=None,
    derandomize=True,  # the same examples in each run
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""Settings of the property tests. PROPERTY_EXAMPLES=5000 searches longer."""

MASK64 = 2**64 - 1


def next_state(state: int, token: int) -> int:
    return ((state ^ (token + 1)) * 6364136223846793005 + 1442695040888963407) & MASK64


def states_of(token_ids: Iterable[int]) -> list[int]:
    """The state at each position: it depends on every token up to there."""
    states, state = [], 0
    for token in token_ids:
        state = next_state(state, token)
        states.append(state)
    return states


def token_from(state: int, vocab_size: int) -> int:
    return (state >> 33) % vocab_size


class Entry(NamedTuple):
    token: int
    position: int
    state: int


class FakeModel:
    """Computes tokens as a pure function of the sequence so far, by way of a shadow KV cache (slot -> Entry)."""

    def __init__(self, block_manager: BlockManager, vocab_size: int):
        self.block_manager = block_manager
        self.vocab_size = vocab_size
        self.cache: dict[int, Entry] = {}

    def execute(self, batch: Batch, in_flight: dict[int, int] | None = None) -> list[int | None]:
        """`in_flight`: by seq_id, the tokens that the step before drew and that the sequences do not know yet."""
        self.in_flight = in_flight or {}
        written: set[int] = set()
        for seq, num_new_tokens in batch.scheduled:
            self.write(seq, num_new_tokens, written)
        states = [self.read(seq, num_new_tokens) for seq, num_new_tokens in batch.scheduled]
        return [
            token_from(state, self.vocab_size) if entry.samples else None
            for entry, state in zip(batch.scheduled, states, strict=True)
        ]

    def tokens(self, seq: Sequence) -> list[int]:
        """The sequence's tokens and the one in flight, if it has one."""
        if not seq.num_in_flight:
            return seq.token_ids
        assert seq.num_in_flight == 1
        return [*seq.token_ids, self.in_flight[seq.seq_id]]

    def slot(self, seq: Sequence, position: int) -> int:
        size = self.block_manager.block_size
        return seq.block_table[position // size] * size + position % size

    def write(self, seq: Sequence, num_new_tokens: int, written: set[int]) -> None:
        """Stores the chunk's tokens; no slot twice in one step, and none that anybody else may read."""
        blocks = self.block_manager
        for position in range(seq.num_computed_tokens, seq.num_computed_tokens + num_new_tokens):
            slot = self.slot(seq, position)
            block = slot // blocks.block_size
            assert slot not in written, f"two sequences write slot {slot} in one step"
            assert blocks.ref_counts[block] == 1, f"{seq} writes block {block}, which others use"
            assert block not in blocks.hash_of_block, f"{seq} writes block {block}, which is shared by its hash"
            written.add(slot)
            before = self.cache[self.slot(seq, position - 1)].state if position else 0
            token = self.tokens(seq)[position]
            self.cache[slot] = Entry(token, position, next_state(before, token))

    def read(self, seq: Sequence, num_new_tokens: int) -> int:
        """The state at the chunk's end, after checking every position that the chunk attends to."""
        end = seq.num_computed_tokens + num_new_tokens
        token_ids = self.tokens(seq)[:end]
        states = states_of(token_ids)
        for position in range(end):
            found = self.cache.get(self.slot(seq, position))
            expected = Entry(token_ids[position], position, states[position])
            assert found == expected, f"{seq}, position {position}: the cache holds {found}, not {expected}"
        return states[-1]


class Engine:
    """A scheduler, its block manager and the fake model. Every step is checked.

    Attributes:
        steps: batches so far.
        total_tokens: sum of the most tokens that each request can have, less one each. In each step the oldest running
            sequence computes at least one token, it is never preempted, and its last token is never computed: so all
            requests are finished after at most this many steps.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        max_model_len: int | None = None,
        enable_prefix_caching: bool = True,
        vocab_size: int = 1000,
        eos_token_ids: Iterable[int] = (),
        **scheduler_arguments: Any,
    ):
        self.blocks = BlockManager(num_blocks, block_size, enable_prefix_caching)
        self.model = FakeModel(self.blocks, vocab_size)
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=num_blocks * block_size if max_model_len is None else max_model_len,
            eos_token_ids=frozenset(eos_token_ids),
            **scheduler_arguments,
        )
        self.sequences: list[Sequence] = []
        self.steps: list[Batch] = []
        self.total_tokens = 0

    def add(self, prompt: list[int], max_tokens: int = 4, **params: Any) -> Sequence:
        seq = Sequence(len(self.sequences), prompt, SamplingParams(max_tokens=max_tokens, **params))
        self.scheduler.add(seq)
        self.sequences.append(seq)
        self.total_tokens += self.most_tokens(seq) - 1
        return seq

    def most_tokens(self, seq: Sequence) -> int:
        return min(seq.num_prompt_tokens + seq.sampling_params.max_tokens, self.scheduler.max_model_len)

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        self.check(batch)
        computed = {seq.seq_id: seq.num_computed_tokens + num for seq, num in batch.scheduled}
        tokens = self.model.execute(batch)
        advanced = self.scheduler.update(batch, tokens)
        assert advanced == [entry.seq for entry, t in zip(batch.scheduled, tokens, strict=True) if t is not None]
        for seq in self.scheduler.running:
            assert seq.num_computed_tokens == computed.get(seq.seq_id, seq.num_computed_tokens)
        self.scheduler.check_integrity()
        self.steps.append(batch)
        return batch

    def check(self, batch: Batch) -> None:
        """What has to be true of any batch."""
        scheduler, blocks = self.scheduler, self.blocks
        assert bool(batch.scheduled) == scheduler.has_unfinished, "a step does nothing although requests wait"
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert 0 <= batch.num_tokens <= scheduler.max_num_batched_tokens
        assert len({seq.seq_id for seq, _ in batch.scheduled}) == len(batch.scheduled)
        for index, (seq, num_new_tokens) in enumerate(batch.scheduled):
            assert seq.status is SequenceStatus.RUNNING
            assert 1 <= num_new_tokens <= seq.num_remaining_tokens
            assert (num_new_tokens == 1) == (index < batch.num_decodes)
        if batch.scheduled:
            oldest = scheduler.running[0]
            assert any(seq is oldest for seq, _ in batch.scheduled), "the oldest sequence does not get on"
        for seq in scheduler.running:
            assert len(seq.block_table) == blocks.num_blocks_for(seq.num_tokens)
            assert seq.num_tokens < scheduler.max_model_len
        scheduler.check_integrity()

    def run(self) -> None:
        """Steps until everything is finished, in the promised number of steps, and checks what is left."""
        while self.scheduler.has_unfinished:
            assert len(self.steps) < self.total_tokens, f"not finished after {len(self.steps)} steps"
            self.step()
        self.check_idle()

    def check_idle(self) -> None:
        assert not self.scheduler.waiting and not self.scheduler.running
        assert self.blocks.num_free_blocks == self.blocks.num_blocks
        assert self.blocks.ref_counts == [0] * self.blocks.num_blocks
        self.scheduler.check_integrity()
        for seq in self.sequences:
            assert seq.is_finished and seq.finish_reason is not None and seq.block_table == []

    def abort(self, seq: Sequence) -> None:
        self.scheduler.finish(seq, FinishReason.ABORT)
        self.scheduler.check_integrity()

    def expected(self, seq: Sequence) -> tuple[list[int], FinishReason]:
        """What the request gives when it is alone, in one pass and with unlimited memory: a loop of a few lines."""
        params, scheduler = seq.sampling_params, self.scheduler
        stops = set(params.stop_token_ids) | (set() if params.ignore_eos else scheduler.eos_token_ids)
        token_ids = seq.prompt_token_ids
        while True:
            token_ids.append(token_from(states_of(token_ids)[-1], self.model.vocab_size))
            if token_ids[-1] in stops:
                return token_ids[seq.num_prompt_tokens :], FinishReason.STOP
            if len(token_ids) == self.most_tokens(seq):
                return token_ids[seq.num_prompt_tokens :], FinishReason.LENGTH

    def check_outputs(self) -> None:
        """Every request has its tokens; an aborted one has the first of them."""
        for seq in self.sequences:
            tokens, reason = self.expected(seq)
            if seq.finish_reason is FinishReason.ABORT:
                assert seq.completion_token_ids == tokens[: seq.num_completion_tokens]
            else:
                assert (seq.completion_token_ids, seq.finish_reason) == (tokens, reason), seq

    @property
    def num_preemptions(self) -> int:
        return sum(seq.num_preemptions for seq in self.sequences)


class AheadEngine(Engine):
    """Launches each step before the one before is booked, as the engine does on a GPU.

    There, what a launched step reads and writes it does after all steps before it and before all after it, whatever the
    host decides meanwhile. So the fake model computes a step at its launch, and only its tokens come later.
    """

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.launched: list[tuple[Batch, list[int], list[int | None]]] = []

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        self.check(batch)
        if batch.scheduled:
            self.steps.append(batch)
            in_flight = {}
            for last, _, tokens in self.launched:
                in_flight = {seq.seq_id: token for (seq, _), token in zip(last.scheduled, tokens, strict=True)}
            tokens = self.model.execute(batch, in_flight)
            self.launched.append((batch, self.scheduler.advance(batch), tokens))
        if len(self.launched) == 2 or (self.launched and not batch.scheduled):
            self.book()
        return batch

    def book(self) -> None:
        self.scheduler.book(*self.launched.pop(0))
        for seq in self.scheduler.running:
            assert seq.num_computed_tokens <= seq.num_tokens and 0 <= seq.num_in_flight <= 1
        self.scheduler.check_integrity()

    def check(self, batch: Batch) -> None:
        scheduler = self.scheduler
        assert batch.scheduled or self.launched or not scheduler.has_unfinished, (
            "nothing goes on although requests wait"
        )
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert batch.num_tokens <= scheduler.max_num_batched_tokens
        for seq, num_new_tokens in batch.scheduled:
            assert seq.status is SequenceStatus.RUNNING
            assert seq.num_computed_tokens + num_new_tokens <= scheduler.max_model_len
        scheduler.check_integrity()

    def run(self) -> None:
        """A request may cost a spare row, and one that is preempted with its last token in flight is computed again."""
        while self.scheduler.has_unfinished:
            assert len(self.steps) <= 4 * self.total_tokens + 4 * len(self.sequences)
            self.step()
        self.check_idle()

    def check_idle(self) -> None:
        while self.launched:
            self.book()
        super().check_idle()
