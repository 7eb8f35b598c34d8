"""Decides what each step computes. Plain Python integers: no torch here."""

from __future__ import annotations

import time
from collections import deque
from itertools import chain, islice
from typing import NamedTuple

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import FinishReason, Sequence, SequenceStatus

LOOKAHEAD = 32
"""How many waiting sequences are tried where the first does not fit into the pool."""


class ScheduledSequence(NamedTuple):
    """`num_new_tokens` tokens of `seq`, from its first uncomputed one on."""

    seq: Sequence
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the chunk ends at the sequence's last known token, so that the step draws the next one."""
        return self.num_new_tokens == self.seq.num_remaining_tokens


class Batch(NamedTuple):
    """What one step computes. The first `num_decodes` entries have one new token each."""

    scheduled: list[ScheduledSequence]
    num_decodes: int

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_new_tokens for entry in self.scheduled)


class Scheduler:
    """Continuous batching with chunked prefill, preemption by recomputation and a shared prefix cache.

    Each step, running sequences decode first (one token each); what is left of the token budget goes to prefill chunks,
    running sequences before waiting ones, in order of arrival. Three rules keep it fair and free of deadlock:

    * A sequence gets blocks for all its known tokens when it is admitted, so only decoding ever asks for more. When no
      block is free, the *newest* running sequence gives its blocks back and waits in front; the oldest always gets on.
    * A prompt longer than half the budget takes at most half of it while shorter ones wait for prefill.
    * When the first waiting sequence does not fit into the pool, smaller ones may pass it, `max_passes` times at most.

    Args:
        block_manager: the pool; it must hold at least `max_model_len` tokens.
        max_num_seqs: most running sequences.
        max_num_batched_tokens: the token budget of a step, at least `max_num_seqs`.
        max_model_len: a sequence that has this many tokens is finished (`length`).
        eos_token_ids: ids that finish a sequence (`stop`) unless it ignores them.
        max_passes: how often the first waiting sequence may be passed by.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: frozenset[int] = frozenset(),
        max_passes: int = 64,
    ):
        if block_manager.num_blocks * block_manager.block_size < max_model_len:
            raise ValueError(
                f"max_model_len ({max_model_len}) must not exceed the pool of "
                f"{block_manager.num_blocks} blocks of {block_manager.block_size} tokens."
            )
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.eos_token_ids = eos_token_ids
        self.max_passes = max_passes
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission: the newest is last

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Queues a sequence of 1 to max_model_len - 1 tokens (longer ones could not generate anything)."""
        if not 1 <= seq.num_tokens < self.max_model_len:
            raise ValueError(f"a sequence must have 1 to {self.max_model_len - 1} tokens, got {seq.num_tokens}.")
        seq.times.setdefault("arrival", time.perf_counter())
        self.waiting.append(seq)

    def schedule(self) -> Batch:
        """Chooses the next step's work; empty only where nothing is unfinished."""
        decodes = self._schedule_decodes()
        chunks = self._schedule_prefills(self.max_num_batched_tokens - len(decodes))
        # A chunk of one token (a prefix hit can leave just one) is computed as a decode is.
        decodes += [chunk for chunk in chunks if chunk.num_new_tokens == 1]
        chunks = [chunk for chunk in chunks if chunk.num_new_tokens > 1]
        return Batch(decodes + chunks, len(decodes))

    def update(self, batch: Batch, token_ids: list[int | None]) -> list[Sequence]:
        """Books a step that has run: `advance` and `book` in one.

        Args:
            batch: what `schedule` returned.
            token_ids: for each entry the token drawn, or None where the chunk did not reach the sequence's end.

        Returns the sequences that got a token.
        """
        starts = self.advance(batch)
        return self.book(batch, starts, token_ids)

    def advance(self, batch: Batch) -> list[int]:
        """Counts a launched step's tokens as computed, before they are: the next step can then be scheduled at once.

        The tokens that the step draws are in flight until `book`. Returns for each entry its first computed position.
        """
        starts = []
        for entry in batch.scheduled:
            seq = entry.seq
            starts.append(seq.num_computed_tokens)
            if seq.status is SequenceStatus.RUNNING:  # else it was aborted while the step ran
                seq.num_in_flight += entry.samples
                seq.num_computed_tokens += entry.num_new_tokens
        return starts

    def book(self, batch: Batch, starts: list[int], token_ids: list[int | None]) -> list[Sequence]:
        """Takes in the tokens of a step that `advance` counted; arguments and result as in `update`.

        A later step may have been launched meanwhile. What it computes for a sequence that ends here is dropped.
        """
        advanced = []
        for (seq, _), start, token_id in zip(batch.scheduled, starts, token_ids, strict=True):
            if seq.is_finished:
                continue
            if token_id is not None:
                seq.num_in_flight -= 1
                seq.token_ids.append(token_id)
            if seq.status is SequenceStatus.RUNNING:  # else it was preempted while the step ran
                self.block_manager.cache_computed_blocks(seq, start)
            if token_id is not None:
                seq.times.setdefault("first_token", time.perf_counter())
                reason = self._finish_reason(seq, token_id)
                if reason:
                    self.finish(seq, reason)
                advanced.append(seq)
        return advanced

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """Takes a sequence out, wherever it is; a finished one is left as it is."""
        if seq.is_finished:
            return
        (self.running if seq.status is SequenceStatus.RUNNING else self.waiting).remove(seq)
        self.block_manager.free(seq)
        seq.num_in_flight = 0
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason = reason
        seq.times["finished"] = time.perf_counter()

    def check_integrity(self) -> None:
        """Raises RuntimeError where blocks and sequences disagree."""
        self.block_manager.check_integrity(self.running)
        if any(seq.block_table for seq in self.waiting):
            raise RuntimeError("A waiting sequence holds blocks.")

    def _finish_reason(self, seq: Sequence, token_id: int) -> FinishReason | None:
        params = seq.sampling_params
        if token_id in params.stop_token_ids or (token_id in self.eos_token_ids and not params.ignore_eos):
            return FinishReason.STOP
        return FinishReason.LENGTH if self._reaches_length(seq, len(seq.token_ids)) else None

    def _reaches_length(self, seq: Sequence, num_tokens: int) -> bool:
        return num_tokens - seq.num_prompt_tokens >= seq.sampling_params.max_tokens or num_tokens >= self.max_model_len

    def _schedule_decodes(self) -> list[ScheduledSequence]:
        scheduled = []
        for seq in list(self.running):
            if seq.num_remaining_tokens != 1:
                continue
            if seq.num_in_flight and self._reaches_length(seq, seq.num_tokens):
                continue  # the token in flight is its last, whichever it is
            while seq.status is SequenceStatus.RUNNING and not self.block_manager.append_slot(seq):
                self._preempt(self.running[-1])
            if seq.status is SequenceStatus.RUNNING:
                scheduled.append(ScheduledSequence(seq, 1))
        return scheduled

    def _schedule_prefills(self, budget: int) -> list[ScheduledSequence]:
        half = self.max_num_batched_tokens // 2
        prefilling = [seq for seq in self.running if seq.num_remaining_tokens > 1]
        short_waits = any(0 < seq.num_remaining_tokens <= half for seq in chain(prefilling, self.waiting))
        long_budget = max(1, half) if short_waits else budget

        scheduled: list[ScheduledSequence] = []

        def take(seq: Sequence) -> None:
            nonlocal budget, long_budget
            num_new_tokens = min(seq.num_remaining_tokens, budget)
            if seq.num_remaining_tokens > half:
                num_new_tokens = min(num_new_tokens, long_budget)
                long_budget -= num_new_tokens
            budget -= num_new_tokens
            if num_new_tokens:
                scheduled.append(ScheduledSequence(seq, num_new_tokens))

        for seq in prefilling:
            take(seq)
        while budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self._admit_next()
            if seq is None:
                break
            take(seq)
        return scheduled

    def _admit_next(self) -> Sequence | None:
        """Moves one waiting sequence to the running ones: the first, or a later one that fits where the first does not."""
        for index, seq in enumerate(islice(self.waiting, LOOKAHEAD)):
            if self.block_manager.allocate(seq):
                for passed in islice(self.waiting, index):
                    passed.num_times_passed += 1
                del self.waiting[index]
                if seq.num_cached_tokens is None:
                    seq.num_cached_tokens = seq.num_computed_tokens
                seq.times.setdefault("scheduled", time.perf_counter())
                seq.status = SequenceStatus.RUNNING
                self.running.append(seq)
                return seq
            if seq.num_times_passed >= self.max_passes:
                break
        return None

    def _preempt(self, seq: Sequence) -> None:
        """Takes a running sequence's blocks; it waits in front of the queue and computes its tokens again."""
        self.running.remove(seq)
        self.block_manager.free(seq)
        seq.status = SequenceStatus.PREEMPTED
        seq.num_preemptions += 1
        self.waiting.appendleft(seq)
