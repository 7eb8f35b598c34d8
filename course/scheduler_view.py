"""What notebook 09 uses: runs of the scheduler, with and without a model, step by step, and the checkers of its exercises.

A `Replay` holds what a trace recorded and derives the rest (which tokens are in the cache at each step). It serves any
engine made with ``trace=True``: ``step_through(Replay.of(llm))`` shows the slider.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, NamedTuple

from course import plots
from course.exercises import Wrong, checker, expect_equal
from nanovllm import SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import ScheduledSequence, Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.engine.trace import StepTrace, Trace


class Request(NamedTuple):
    """A prompt that is handed over right before step `arrives`, and the number of tokens that it wants."""

    prompt: list[int]
    max_tokens: int
    arrives: int = 0


def name(seq_id: int) -> str:
    """A, B, C, ... for sequences 0, 1, 2, ...; S26, S27, ... after the letters."""
    return chr(ord("A") + seq_id) if seq_id < 26 else f"S{seq_id}"


def names(seq_ids: Iterable[int]) -> str:
    """Names one after the other, or a dash."""
    return " ".join(map(name, seq_ids)) or "-"


class Replay:
    """The steps of a run and what follows from them; raises ValueError where there are none.

    Attributes:
        steps: as traced.
        block_size: token slots of a block.
        budget: most tokens of one step.
        prompt_tokens: length of each sequence's prompt, as far as the run got to its end.
        cached: for each step, how many tokens of each running sequence were in the cache when it began.
        known: for each step, how many tokens each running sequence had, prompt and drawn ones.
    """

    def __init__(self, steps: list[StepTrace], block_size: int, budget: int):
        if not steps:
            raise ValueError("the run has no steps yet: serve a request first.")
        self.steps = steps
        self.block_size = block_size
        self.budget = budget
        self.prompt_tokens: dict[int, int] = {}
        self.cached: list[dict[int, int]] = []
        self.known: list[dict[int, int]] = []
        for step in steps:
            for chunk in step.scheduled:
                if chunk.samples:
                    self.prompt_tokens.setdefault(chunk.seq_id, chunk.start + chunk.num_tokens)
        drawn: dict[int, int] = {}
        computed: dict[int, int] = {}
        for step in steps:
            computed |= step.admitted
            computed |= {chunk.seq_id: chunk.start for chunk in step.scheduled}
            self.cached.append({seq_id: computed[seq_id] for seq_id in step.running})
            self.known.append(
                {
                    seq_id: self.prompt_tokens.get(seq_id, computed[seq_id]) + drawn.get(seq_id, 0)
                    for seq_id in step.running
                }
            )
            for chunk in step.scheduled:
                computed[chunk.seq_id] += chunk.num_tokens
            for seq_id in step.tokens:
                drawn[seq_id] = drawn.get(seq_id, 0) + 1

    @classmethod
    def of(cls, llm: Any) -> Replay:
        """What an engine made with ``trace=True`` recorded so far; raises ValueError for another one."""
        if llm.trace is None:
            raise ValueError("llm records no trace: make it with LLM(..., trace=True).")
        return cls(llm.trace.steps, llm.scheduler.block_manager.block_size, llm.config.max_num_batched_tokens)

    def faults(self) -> list[str]:
        """What contradicts itself in the record, frame by frame: counts against tables, chunks against tokens, budget."""
        found = []
        for step, cached, known in zip(self.steps, self.cached, self.known, strict=True):
            holders = Counter(block for table in step.block_tables.values() for block in table)
            if [holders[block] for block in range(len(step.ref_counts))] != step.ref_counts:
                found.append(f"step {step.step}: reference counts are not those of the block tables")
            if any(step.ref_counts[block] for block in step.cached_blocks):
                found.append(f"step {step.step}: a kept block is in use")
            if sum(chunk.num_tokens for chunk in step.scheduled) > self.budget:
                found.append(f"step {step.step}: more tokens than the budget")
            for chunk in step.scheduled:
                slots = len(step.block_tables[chunk.seq_id]) * self.block_size
                if chunk.start != cached[chunk.seq_id] or chunk.start + chunk.num_tokens > min(
                    slots, known[chunk.seq_id]
                ):
                    found.append(f"step {step.step}: the chunk of {name(chunk.seq_id)} is not what was left to compute")
        return found

    @property
    def sequences(self) -> list[int]:
        """Ids of all sequences that ran or waited."""
        return sorted({seq_id for step in self.steps for seq_id in (*step.running, *step.waiting)})

    def decisions(self) -> list[tuple]:
        """Everything that the scheduler decided, without times and drawn tokens: equal for equal decisions."""
        return [
            (
                [(c.seq_id, c.start, c.num_tokens, c.samples) for c in step.scheduled],
                step.admitted,
                step.preempted,
                step.running,
                step.waiting,
                step.block_tables,
                step.ref_counts,
                step.cached_blocks,
                step.finished,
            )
            for step in self.steps
        ]

    def first_token_step(self, seq_id: int) -> int:
        """The step that drew the sequence's first token; raises ValueError if none did."""
        for step in self.steps:
            if seq_id in step.tokens:
                return step.step
        raise ValueError(f"sequence {seq_id} got no token in this run.")

    def pool(self, index: int) -> str:
        """The pool at one step, a character a block: its reference count, ``c`` for free but cached, ``.`` for empty."""
        step = self.steps[index]
        kept = set(step.cached_blocks)
        return "".join(
            str(min(count, 9)) if count else "c" if block in kept else "."
            for block, count in enumerate(step.ref_counts)
        )

    def line(self, index: int) -> str:
        """One step as a line: prefill chunks as ``A[0:32]``, decodes as ``A``, queues, pool and what happened."""
        step = self.steps[index]
        work = [
            f"{name(c.seq_id)}[{c.start}:{c.start + c.num_tokens}]"
            if c.num_tokens > 1 or not c.samples
            else name(c.seq_id)
            for c in step.scheduled
        ]
        events = [f"{name(s)} hits {hit}" for s, hit in step.admitted.items() if hit]
        events += [f"{name(s)} PREEMPTED" for s in step.preempted]
        events += [f"{name(s)} done" for s in step.finished]
        return (
            f"{index:>4}  {' '.join(work):<26} {names(step.running):<8} {names(step.waiting):<8} "
            f"{self.pool(index)}  {', '.join(events)}"
        ).rstrip()

    def print_steps(self, first: int = 0, last: int | None = None) -> None:
        """Print `line` for every step from `first` up to `last` (all by default)."""
        blocks = max(4, len(self.steps[0].ref_counts))
        print(f"step  {'computes':<26} {'running':<8} {'waiting':<8} {'pool':<{blocks}}  events")
        for index in range(first, len(self.steps) if last is None else last + 1):
            print(self.line(index))

    def print_tables(self) -> None:
        """Print each block table where it changed: step, sequence, physical blocks in logical order."""
        before: dict[int, list[int]] = {}
        for step in self.steps:
            changed = {s: table for s, table in step.block_tables.items() if before.get(s) != table}
            if changed:
                print(f"{step.step:>4}  " + "   ".join(f"{name(s)} {table}" for s, table in changed.items()))
            before = step.block_tables


# --- runs ----------------------------------------------------------------------------------------------------------


def simulate(
    requests: list[Request],
    *,
    num_blocks: int,
    budget: int,
    block_size: int = 16,
    max_num_seqs: int = 8,
    max_passes: int = 64,
    enable_prefix_caching: bool = True,
    scheduler_class: type[Scheduler] = Scheduler,
    max_steps: int = 10_000,
) -> Replay:
    """Run the engine's scheduler without any model: every drawn token is a number that occurs nowhere else.

    Sequences are numbered in order of arrival, as the engine numbers them.

    Raises:
        RuntimeError: the requests were not served within `max_steps` steps.
    """
    blocks = BlockManager(num_blocks, block_size, enable_prefix_caching)
    scheduler = scheduler_class(
        blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=num_blocks * block_size,
        max_passes=max_passes,
    )
    trace, fresh, todo = Trace(), count(10**9), list(enumerate(sorted(requests, key=lambda each: each.arrives)))
    for step in range(max_steps):
        while todo and (todo[0][1].arrives <= step or not scheduler.has_unfinished):
            seq_id, request = todo.pop(0)
            params = SamplingParams(max_tokens=request.max_tokens, ignore_eos=True)
            scheduler.add(Sequence(seq_id, request.prompt, params))
        if not scheduler.has_unfinished:
            return Replay(trace.steps, block_size, budget)
        batch = scheduler.schedule()
        trace.decided(scheduler, batch, time.perf_counter())
        advanced = scheduler.update(batch, [next(fresh) if entry.samples else None for entry in batch.scheduled])
        trace.booked(scheduler, advanced)
        scheduler.check_integrity()
    raise RuntimeError(f"the requests were not served within {max_steps} steps.")


def drive(llm: Any, requests: list[Request]) -> list[list[int]]:
    """Serve the requests with a real engine, greedily, each added right before its step; returns the drawn ids."""
    todo = sorted(enumerate(requests), key=lambda item: item[1].arrives)
    ids: dict[int, int] = {}
    step = 0
    while todo or llm.has_unfinished:
        while todo and (todo[0][1].arrives <= step or not llm.has_unfinished):
            index, request = todo.pop(0)
            params = SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True)
            ids[index] = llm.add_request(request.prompt, params)
        llm.step()
        step += 1
    return [llm.take_output(ids[index])["token_ids"] for index in range(len(requests))]


def fill(blocks: BlockManager, seq_id: int, token_ids: list[int]) -> Sequence:
    """Give a new sequence its blocks and pretend that a step computed all its tokens; RuntimeError if none are left."""
    seq = Sequence(seq_id, token_ids, SamplingParams())
    if not blocks.allocate(seq):
        raise RuntimeError(f"{len(token_ids)} tokens do not fit into {blocks.num_free_blocks} free blocks.")
    before, seq.num_computed_tokens = seq.num_computed_tokens, seq.num_tokens
    seq.num_cached_tokens = before
    seq.status = SequenceStatus.RUNNING
    blocks.cache_computed_blocks(seq, before)
    return seq


def reserved_slots(lengths: list[int], block_size: int, max_model_len: int) -> dict[str, int]:
    """Token slots that sequences of these final lengths take: one buffer of the longest length each, or blocks."""
    return {
        "used": sum(lengths),
        "one buffer each": len(lengths) * max_model_len,
        f"blocks of {block_size}": sum(-(-length // block_size) * block_size for length in lengths),
    }


class GreedyPrefill(Scheduler):
    """The engine's scheduler without its rule for long prompts: whoever comes first takes all that is left."""

    def _schedule_prefills(self, budget: int) -> list[ScheduledSequence]:
        scheduled = []
        queue = [seq for seq in self.running if seq.num_remaining_tokens > 1]
        while budget > 0:
            seq = queue.pop(0) if queue else self._admit_next() if len(self.running) < self.max_num_seqs else None
            if seq is None:
                break
            scheduled.append(ScheduledSequence(seq, min(seq.num_remaining_tokens, budget)))
            budget -= scheduled[-1].num_new_tokens
        return scheduled


class Latency(NamedTuple):
    """Seconds that one budget costs: a reader's longest wait between two tokens, and a newcomer's to its first."""

    budget: int
    longest_gap: float
    first_token: float


def measure_budget(make_llm: Callable[[int], Any], budget: int, prompt: list[int], newcomer: list[int]) -> Latency:
    """Decode `prompt`, let a long `newcomer` arrive after eight steps, and time both; `make_llm` gets the budget.

    Of three runs after a warm-up the best figures count: what else the machine does can only add time.
    """
    greedy = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    found = []
    with make_llm(budget) as llm:
        for _ in range(4):
            reader = llm.add_request(prompt, greedy)
            for _ in range(8):
                llm.step()
            began = time.perf_counter()
            request = llm.add_request(newcomer, one)
            gaps = []
            while not llm.get_request(request).is_finished:
                gaps.append(llm.step().seconds)
            found.append((max(gaps), time.perf_counter() - began))
            for each in (reader, request):
                llm.abort(each)
                llm.take_output(each)
    best = [min(values) for values in zip(*found[1:], strict=True)]
    return Latency(budget, *best)


# --- pictures ------------------------------------------------------------------------------------------------------

_EMPTY, _KEPT, _EDGE = "#FFFFFF", "#E3E3DF", "#8A8F98"


def colour(seq_id: int) -> str:
    """The colour of a sequence, the same in every picture."""
    return plots.COLOURS[seq_id % len(plots.COLOURS)]


def draw_step(replay: Replay, step: int) -> Any:
    """One step: the sequences with their tokens and block tables, and the pool with its reference counts."""
    trace = replay.steps[step]
    figure, (left, right) = plots.figure(1, 2, figsize=(11.0, 4.4), width_ratios=(2.3, 1))
    rows = [(seq_id, True) for seq_id in trace.running] + [(seq_id, False) for seq_id in trace.waiting]
    chunks = {chunk.seq_id: chunk for chunk in trace.scheduled}
    width = max(max(known.values(), default=1) for known in replay.known)
    width = -(-max(width, *replay.prompt_tokens.values(), 1) // replay.block_size) * replay.block_size
    most = max(len(each.running) + len(each.waiting) for each in replay.steps)
    for row, (seq_id, runs) in enumerate(rows):
        ink = colour(seq_id)
        if runs:
            cached, known = replay.cached[step][seq_id], replay.known[step][seq_id]
            left.barh(row, cached, color=ink, alpha=0.35, height=0.62)
            left.barh(row, known - cached, left=cached, color="none", edgecolor=ink, linewidth=0.8, height=0.62)
            if seq_id in chunks:
                left.barh(row, chunks[seq_id].num_tokens, left=chunks[seq_id].start, color=ink, height=0.62)
            for index, block in enumerate(trace.block_tables[seq_id]):
                middle = (index + 0.5) * replay.block_size
                left.text(middle, row - 0.42, f"{block}", ha="center", va="bottom", fontsize=8, color="#5A5F66")
        else:
            length = replay.prompt_tokens.get(seq_id, 0) + sum(seq_id in s.tokens for s in replay.steps[:step])
            left.barh(row, length, color="none", edgecolor=_EDGE, linestyle=":", height=0.62)
            left.text(2, row, "waits", va="center", fontsize=9, color="#5A5F66")
    labels = [
        f"{name(s)}{' preempted' if s in trace.preempted else ''}{f' hit {h}' if (h := trace.admitted.get(s)) else ''}"
        for s, _ in rows
    ]
    left.set_yticks(range(len(rows)), labels)
    left.set(xlim=(0, width), ylim=(most - 0.4, -0.7), xlabel="token position (small numbers: physical blocks)")
    left.set_xticks(range(0, width + 1, replay.block_size))
    left.grid(axis="y", visible=False)
    tokens = sum(chunk.num_tokens for chunk in trace.scheduled)
    ended = f"; {names(trace.finished)} done" if trace.finished else ""
    left.set_title(
        f"Step {step}: {trace.num_prefill_tokens} prefill + {trace.num_decode_tokens} decode = {tokens} of "
        f"{replay.budget} tokens{ended}"
    )
    _draw_pool(right, replay, step)
    return figure


def _draw_pool(axes: Any, replay: Replay, step: int) -> None:
    from matplotlib.patches import Rectangle

    trace = replay.steps[step]
    owners: dict[int, list[int]] = {}
    for seq_id, table in trace.block_tables.items():
        for block in table:
            owners.setdefault(block, []).append(seq_id)
    kept, total = set(trace.cached_blocks), len(trace.ref_counts)
    columns = 4 if total <= 24 else 8
    for block in range(total):
        x, y = block % columns, block // columns
        holders = owners.get(block, [])
        for index, seq_id in enumerate(holders):
            part = 0.9 / len(holders)
            axes.add_patch(Rectangle((x + index * part, y), part, 0.9, color=colour(seq_id), alpha=0.45, linewidth=0))
        background = "none" if holders else _KEPT if block in kept else _EMPTY
        hatch = "///" if block in kept else None
        axes.add_patch(Rectangle((x, y), 0.9, 0.9, facecolor=background, edgecolor=_EDGE, hatch=hatch, linewidth=0.8))
        axes.text(x + 0.06, y + 0.08, str(block), va="top", fontsize=8, color="#5A5F66")
        state = f"{names(holders)}\n{trace.ref_counts[block]}" if holders else "kept" if block in kept else ""
        box = {"facecolor": "#FBFBF9", "edgecolor": "none", "pad": 1.0} if block in kept else None
        axes.text(x + 0.45, y + 0.54, state, ha="center", va="center", fontsize=9, bbox=box)
    free = sum(count == 0 for count in trace.ref_counts)
    axes.set_title(f"Pool: {total - free} used, {len(kept)} kept, {free - len(kept)} empty")
    axes.set(xlim=(-0.1, columns), ylim=(-(-total // columns), -0.1), aspect="equal")
    axes.axis("off")


def draw_timeline(replay: Replay, title: str = "") -> Any:
    """All steps at once, a row a sequence: when it waited, computed prompt tokens, decoded, was preempted, was done."""
    from matplotlib.patches import Patch, Rectangle

    rows = {seq_id: row for row, seq_id in enumerate(replay.sequences)}
    figure, axes = plots.figure(figsize=(11.0, 1.5 + 0.38 * len(rows)))
    inks = {"waits": "#DFE1E0", "prefill": plots.COLOURS[0], "decode": plots.COLOURS[2], "runs, no turn": "#F4E3B5"}
    last = {seq_id: step.step for step in replay.steps for seq_id in step.finished}
    for step in replay.steps:
        kinds = dict.fromkeys(step.waiting, "waits") | dict.fromkeys(step.running, "runs, no turn")
        for chunk in step.scheduled:
            kinds[chunk.seq_id] = "decode" if chunk.samples and chunk.num_tokens == 1 else "prefill"
        for seq_id, kind in kinds.items():
            axes.add_patch(Rectangle((step.step, rows[seq_id] - 0.38), 0.94, 0.76, color=inks[kind], linewidth=0))
        for seq_id in step.preempted:
            axes.plot(step.step + 0.47, rows[seq_id], "x", color=plots.COLOURS[1], markersize=9, markeredgewidth=2.5)
        for seq_id, hit in step.admitted.items():
            if hit:
                axes.plot(step.step + 0.47, rows[seq_id], "*", color="white", markersize=8)
    for seq_id, step in last.items():
        axes.plot([step + 1] * 2, [rows[seq_id] - 0.38, rows[seq_id] + 0.38], color="#2B2B2B", linewidth=2)
    axes.set_yticks(list(rows.values()), [name(seq_id) for seq_id in rows])
    axes.set(xlim=(0, len(replay.steps)), ylim=(len(rows) - 0.5, -0.6), xlabel="step", title=title)
    axes.grid(axis="y", visible=False)
    from matplotlib.lines import Line2D

    handles = [Patch(color=ink, label=kind) for kind, ink in inks.items()]
    handles += [
        Line2D([], [], color=plots.COLOURS[1], marker="x", linestyle="", markeredgewidth=2.5, label="preempted"),
        Line2D([], [], color=plots.COLOURS[0], marker="*", markerfacecolor="white", linestyle="", label="prefix hit"),
        Line2D([], [], color="#2B2B2B", linewidth=2, label="done"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def step_through(replay: Replay, static: int, alt: str) -> Any:
    """The stepper: step `static` as a still picture for the reader, and under it a slider through all steps."""
    import ipywidgets

    slider = ipywidgets.IntSlider(0, min=0, max=len(replay.steps) - 1, description="step")
    slider.layout.width = "70%"
    return plots.beside(lambda step: draw_step(replay, step), {"step": static}, alt, step=slider)


def draw_latencies(latencies: list[Latency]) -> Any:
    """What the budget trades: the running reader's longest gap against the newcomer's wait, in milliseconds."""
    figure, axes = plots.figure(figsize=(6.6, 3.4))
    budgets = [each.budget for each in latencies]
    for values, label, marker in (
        ([each.longest_gap * 1e3 for each in latencies], "longest gap between two tokens of the reader", "o"),
        ([each.first_token * 1e3 for each in latencies], "newcomer's wait for its first token", "s"),
    ):
        axes.plot(budgets, values, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set(
        xlabel="budget (tokens a step)", ylabel="milliseconds", title="One long prompt arrives while another decodes"
    )
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 4)
    axes.legend(loc="upper left")
    return figure


# --- exercises of notebook 09 --------------------------------------------------------------------------------------


@checker("slot-of-token")
def _slot_of_token(slot: Callable[[list[int], int, int], int]) -> str:
    table = [7, 2, 9]
    got = [slot(list(table), position, 16) for position in (0, 5, 16, 21, 47)]
    want = [112, 117, 32, 37, 159]
    if got == [0, 5, 16, 21, 47]:
        raise Wrong("You return the position itself. Token 0 lies in physical block 7 of the pool, not in block 0.")
    if got == [block * 16 for block in (7, 7, 2, 2, 9)]:
        raise Wrong("You return the first slot of the right block: tokens 0 and 5 would overwrite each other.")
    expect_equal(
        f"For the table {table} and blocks of 16 the slots of positions 0, 5, 16, 21, 47",
        got,
        want,
        hint="position 21 is number 5 of logical block 1, which is physical block 2: 2 * 16 + 5",
    )
    import torch

    from nanovllm.engine.input_batch import prepare_inputs
    from nanovllm.engine.scheduler import Batch

    for size in (16, 32):
        seq = Sequence(0, list(range(1, 61)), SamplingParams())
        seq.block_table = [3, 11, 0, 6]
        engine = prepare_inputs(Batch([ScheduledSequence(seq, 60)], 0), size, torch.device("cpu")).metadata.slot_mapping
        mine = [slot(list(seq.block_table), position, size) for position in range(60)]
        expect_equal(f"For 60 tokens in blocks of {size} the slot mapping", mine, engine.tolist())
    return "This is the engine's slot mapping, and all the address arithmetic that paging needs"


@checker("shareable-tokens")
def _shareable_tokens(shareable: Callable[[list[int], list[int], int], int]) -> str:
    one = list(range(100, 140))
    cases = [
        (
            one[:36] + [1, 2, 3],
            one,
            16,
            "36 equal tokens are two full blocks of 16 and a part: only full blocks are shared",
        ),
        (
            one[:32],
            one,
            16,
            "all 32 are in the cache, but the last token must be computed: its logits give the next one",
        ),
        ([1, *one[1:]], one, 16, "the first token differs, so every key and value after it does"),
        (one[:20] + [1] + one[21:], one, 4, "what comes after a difference has seen other tokens, equal ids or not"),
        (one, one[:10], 4, "of 10 tokens only 8 fill blocks of 4"),
        ([5], [5], 16, "a prompt of one token has nothing to share: it must be computed"),
    ]
    rng = random.Random(0)
    for _ in range(200):
        size = rng.choice((2, 4, 16))
        first = [rng.randrange(2) for _ in range(rng.randrange(1, 60))]
        second = first[: rng.randrange(len(first) + 1)] + [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
        cases.append((second, first, size, "compare block by block from the start, and leave one token to compute"))
    for prompt, cached, size, hint in cases:
        blocks = BlockManager(64, size)
        fill(blocks, 0, cached)
        want = len(blocks.cached_prefix(Sequence(1, prompt, SamplingParams()))) * size
        got = shareable(list(prompt), list(cached), size)
        shown = f"prompt {_short(prompt)} after {_short(cached)}, blocks of {size}: the number of shared tokens"
        expect_equal(shown, got, want, hint)
    return "Your count equals the engine's on 200 random pairs of prompts as well"


@checker("decode-or-preempt")
def _decode_or_preempt(plan: Callable[[list[tuple[int, int]], int, int], tuple[list[int], list[int]]]) -> str:
    cases = [
        ([(20, 2), (30, 2)], 0, "both have room in their last block: nobody needs one"),
        ([(33, 2), (30, 2)], 1, "the first takes the free block"),
        (
            [(33, 2), (30, 2), (40, 3)],
            0,
            "the first needs a block and there is none: the newest gives all of its blocks",
        ),
        ([(33, 2), (33, 2), (30, 2), (20, 2)], 0, "the newest gave two blocks: they serve two of the others"),
        ([(30, 2), (33, 2)], 0, "here the newest is the one that needs a block: it preempts itself"),
        (
            [(33, 2), (49, 3), (17, 1)],
            0,
            "one block came back, and the second one finds none: now it is the newest itself",
        ),
    ]
    rng = random.Random(1)
    for _ in range(300):
        running = []
        for _ in range(rng.randrange(1, 7)):
            tokens = rng.choice((16, 17, 20, 32, 33, 48, 49, rng.randrange(2, 60)))
            running.append((tokens, -(-(tokens - 1) // 16)))
        cases.append((running, rng.randrange(3), "serve the oldest first; whoever finds no block preempts the newest"))
    for running, free, hint in cases:
        want = _engine_plan(running, free)
        got = plan([tuple(pair) for pair in running], free, 16)
        shown = f"running (tokens, blocks) {running} with {free} free: (who decodes, who is preempted)"
        expect_equal(shown, tuple(list(part) for part in got), want, hint)
    return "The oldest always gets on, so the queue always moves: no deadlock"


def _engine_plan(running: list[tuple[int, int]], free: int) -> tuple[list[int], list[int]]:
    """What the engine's scheduler does with sequences that all decode and share no blocks."""
    held = sum(blocks for _, blocks in running)
    manager = BlockManager(held + free, 16, enable_prefix_caching=False)
    scheduler = Scheduler(manager, max_num_seqs=len(running), max_num_batched_tokens=1024, max_model_len=1)
    for seq_id, (tokens, _) in enumerate(running):
        seq = Sequence(seq_id, [1] * (tokens - 1), SamplingParams())
        manager.allocate(seq)
        seq.num_computed_tokens = tokens - 1
        seq.token_ids.append(1)
        seq.status = SequenceStatus.RUNNING
        scheduler.running.append(seq)
    decodes = scheduler._schedule_decodes()
    order = [seq.seq_id for seq in scheduler.waiting]
    return [entry.seq.seq_id for entry in decodes], order[::-1]


def _short(token_ids: list[int]) -> str:
    return (
        str(token_ids) if len(token_ids) <= 6 else f"[{', '.join(map(str, token_ids[:3]))}, ... {len(token_ids)} ids]"
    )
