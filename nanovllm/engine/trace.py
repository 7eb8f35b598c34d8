"""What the engine decided, step by step, as data: for the notebooks' pictures, for pandas and for Chrome's trace viewer."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nanovllm.engine.scheduler import Batch, Scheduler
from nanovllm.engine.sequence import Sequence

if TYPE_CHECKING:
    import pandas


@dataclass(slots=True)
class ScheduledChunk:
    """`num_tokens` tokens of one sequence, from position `start` on; `samples` if the step draws its next token."""

    seq_id: int
    start: int
    num_tokens: int
    samples: bool


@dataclass(slots=True)
class StepTrace:
    """One step. The queues and blocks are as the step left the scheduler's decision, before its tokens were booked.

    Attributes:
        step: 0, 1, 2, ...
        start, seconds: when it began (seconds since the trace did) and how long it took, scheduling included.
        scheduled: what it computed.
        admitted: prompt or recomputed tokens that each newly admitted sequence found in the prefix cache, by seq_id.
        preempted: sequences whose blocks it took.
        running, waiting: seq_ids in order.
        block_tables: of the running sequences.
        ref_counts: of every block.
        cached_blocks: free blocks whose content is kept for the prefix cache.
        tokens: the token drawn for each sequence that sampled.
        finished: the sequences that ended, with their reasons.
    """

    step: int
    start: float
    seconds: float
    scheduled: list[ScheduledChunk]
    admitted: dict[int, int]
    preempted: list[int]
    running: list[int]
    waiting: list[int]
    block_tables: dict[int, list[int]]
    ref_counts: list[int]
    cached_blocks: list[int]
    tokens: dict[int, int] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)

    @property
    def num_prefill_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.scheduled if chunk.num_tokens > 1 or not chunk.samples)

    @property
    def num_decode_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.scheduled) - self.num_prefill_tokens


class Trace:
    """Collects a StepTrace a step. The engine holds one where it was made with `trace=True`.

    Attributes:
        steps: the steps so far.
    """

    def __init__(self):
        self.steps: list[StepTrace] = []
        self._began = time.perf_counter()
        self._running: set[int] = set()
        self._preemptions: dict[int, int] = {}

    def decided(self, scheduler: Scheduler, batch: Batch, start: float) -> None:
        """Called between `schedule` and `update`; `start` is time.perf_counter() at the step's beginning."""
        blocks = scheduler.block_manager
        computed = {entry.seq.seq_id: entry.seq.num_computed_tokens for entry in batch.scheduled}
        running = [seq.seq_id for seq in scheduler.running]
        self.steps.append(
            StepTrace(
                step=len(self.steps),
                start=start - self._began,
                seconds=0.0,
                scheduled=[
                    ScheduledChunk(entry.seq.seq_id, entry.seq.num_computed_tokens, entry.num_new_tokens, entry.samples)
                    for entry in batch.scheduled
                ],
                admitted={seq_id: computed.get(seq_id, 0) for seq_id in running if seq_id not in self._running},
                preempted=self._newly_preempted([*scheduler.running, *scheduler.waiting]),
                running=running,
                waiting=[seq.seq_id for seq in scheduler.waiting],
                block_tables={seq.seq_id: list(seq.block_table) for seq in scheduler.running},
                ref_counts=list(blocks.ref_counts),
                cached_blocks=[block for block in blocks.free_blocks if block in blocks.hash_of_block],
            )
        )

    def booked(self, scheduler: Scheduler, advanced: list[Sequence]) -> None:
        """Called after `update` and the stop strings, with the sequences that got a token."""
        step = self.steps[-1]
        step.seconds = time.perf_counter() - self._began - step.start
        step.tokens = {seq.seq_id: seq.token_ids[-1] for seq in advanced}
        step.finished = {seq.seq_id: seq.finish_reason.value for seq in advanced if seq.is_finished}
        self._running = {seq.seq_id for seq in scheduler.running}

    def _newly_preempted(self, sequences: list[Sequence]) -> list[int]:
        preempted = [s.seq_id for s in sequences if s.num_preemptions > self._preemptions.get(s.seq_id, 0)]
        self._preemptions = {s.seq_id: s.num_preemptions for s in sequences}
        return preempted

    def to_pandas(self) -> pandas.DataFrame:
        """One row a step: the counts of what it computed, of the queues and of the blocks."""
        import pandas  # the engine itself needs none

        columns = ["start", "seconds", "prefill_tokens", "decode_tokens", "running", "waiting", "admitted"]
        columns += ["prefix_cached_tokens", "preempted", "finished", "used_blocks", "cached_blocks"]
        rows = [
            (
                step.start,
                step.seconds,
                step.num_prefill_tokens,
                step.num_decode_tokens,
                len(step.running),
                len(step.waiting),
                len(step.admitted),
                sum(step.admitted.values()),
                len(step.preempted),
                len(step.finished),
                sum(count > 0 for count in step.ref_counts),
                len(step.cached_blocks),
            )
            for step in self.steps
        ]
        return pandas.DataFrame(rows, columns=columns, index=pandas.RangeIndex(len(rows), name="step"))

    def to_json(self) -> list[dict]:
        """The steps as plain dicts, for a file that a notebook replays."""
        return [asdict(step) for step in self.steps]

    def to_chrome(self, path: str | Path) -> None:
        """Writes the trace-event format that chrome://tracing and Perfetto open: a row of steps, a row a sequence."""
        events = []
        for step in self.steps:
            span = {"ph": "X", "pid": 0, "ts": step.start * 1e6, "dur": step.seconds * 1e6}
            counts = {"prefill_tokens": step.num_prefill_tokens, "decode_tokens": step.num_decode_tokens}
            events.append({**span, "tid": "engine", "name": f"step {step.step}", "args": counts})
            for chunk in step.scheduled:
                name = "decode" if chunk.samples and chunk.num_tokens == 1 else f"prefill {chunk.num_tokens}"
                args = {"start": chunk.start, "token": step.tokens.get(chunk.seq_id)}
                events.append({**span, "tid": f"sequence {chunk.seq_id}", "name": name, "args": args})
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
