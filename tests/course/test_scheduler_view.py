"""The lesson on the scheduler: its replays say what the engine did, and its checkers know right from wrong."""

from __future__ import annotations

import copy
import random

import pytest

from course import plots, scheduler_view
from course.exercises import CORRECT, WRONG, grade
from course.scheduler_view import GreedyPrefill, Replay, Request, simulate
from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager


def traffic(seed: int, number: int = 12) -> list[Request]:
    """Random requests, half of them with a common beginning."""
    rng = random.Random(seed)
    common = [rng.randrange(1000) for _ in range(40)]

    def request(index: int) -> Request:
        start = common[: rng.randrange(41)] if index % 2 else []
        own = [rng.randrange(1000) for _ in range(rng.randrange(1, 90))]
        return Request(start + own, rng.randrange(1, 40), rng.randrange(30))

    return sorted((request(index) for index in range(number)), key=lambda request: request.arrives)


@pytest.mark.parametrize("seed", range(5))
def test_a_simulated_run_serves_everyone_without_contradictions(seed):
    requests = traffic(seed)
    replay = simulate(requests, num_blocks=14, budget=24, max_num_seqs=5)
    assert replay.faults() == []
    assert sum(len(step.preempted) for step in replay.steps) > 0
    for seq_id, request in enumerate(requests):
        assert replay.prompt_tokens[seq_id] == len(request.prompt)
        assert sum(seq_id in step.tokens for step in replay.steps) == request.max_tokens
        drawn = [step.step for step in replay.steps if seq_id in step.tokens]
        assert replay.first_token_step(seq_id) == drawn[0]
    assert replay.sequences == list(range(len(requests)))


@pytest.fixture(scope="module")
def engine_run():
    requests = traffic(7, number=8)
    with LLM(
        dtype="float32",
        device="cpu",
        trace=True,
        kvcache_block_size=16,
        num_kvcache_blocks=12,
        max_num_batched_tokens=32,
        max_num_seqs=4,
    ) as llm:
        answers = scheduler_view.drive(llm, requests)
        return requests, answers, Replay.of(llm)


def test_the_engine_decides_as_the_simulation_does(engine_run):
    requests, answers, replay = engine_run
    assert [len(answer) for answer in answers] == [request.max_tokens for request in requests]
    assert simulate(requests, num_blocks=12, budget=32, max_num_seqs=4).decisions() == replay.decisions()
    assert simulate(requests, num_blocks=13, budget=32, max_num_seqs=4).decisions() != replay.decisions()
    assert replay.faults() == []


def test_known_and_cached_tokens_are_those_of_the_sequences(engine_run):
    """Against the engine's own counters, read at every step of a second run."""
    requests, _, replay = engine_run
    seen = []

    class Watched(scheduler_view.Scheduler):
        def schedule(self):
            batch = super().schedule()
            seen.append({seq.seq_id: (seq.num_computed_tokens, seq.num_tokens) for seq in self.running})
            return batch

    simulate(requests, num_blocks=12, budget=32, max_num_seqs=4, scheduler_class=Watched)
    for index, expected in enumerate(seen):
        cached, known = replay.cached[index], replay.known[index]
        assert {seq_id: (cached[seq_id], known[seq_id]) for seq_id in cached} == expected


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda step: step.ref_counts.__setitem__(0, 7), "reference counts"),
        (lambda step: step.cached_blocks.append(0), "kept block is in use"),
        (lambda step: setattr(step.scheduled[0], "start", 3), "chunk of A"),
        (lambda step: setattr(step.scheduled[0], "num_tokens", 33), "budget"),
    ],
)
def test_a_contradiction_is_found(spoil, message):
    replay = simulate([Request(list(range(40)), 4)], num_blocks=4, budget=32)
    steps = copy.deepcopy(replay.steps)
    spoil(steps[1 if message == "chunk of A" else 0])
    spoiled = Replay(replay.steps, 16, 32)
    spoiled.steps = steps
    assert any(message in fault for fault in spoiled.faults())


def test_lines_say_what_happened():
    beginning = list(range(32))
    requests = [Request([*beginning, 1, 2], 2), Request([*beginning, 7], 2, arrives=1)]
    replay = simulate(requests, num_blocks=6, budget=48)
    assert [line.split() for line in map(replay.line, range(2))] == [
        ["0", "A[0:34]", "A", "-", "111..."],
        ["1", "A", "B", "A", "B", "-", "2211..", "B", "hits", "32,", "A", "done"],
    ]
    assert scheduler_view.name(27) == "S27"


def test_without_its_rule_short_prompts_wait():
    rng = random.Random(0)
    requests = [Request([rng.randrange(1000) for _ in range(n)], 2) for n in (300, 10)]
    plain, fair = (
        simulate(requests, num_blocks=32, budget=32, scheduler_class=each)
        for each in (GreedyPrefill, scheduler_view.Scheduler)
    )
    assert plain.first_token_step(1) == 9 and fair.first_token_step(1) == 0
    assert plain.faults() == fair.faults() == []


def test_reserved_slots():
    slots = scheduler_view.reserved_slots([1, 16, 17], 16, 100)
    assert slots == {"used": 34, "one buffer each": 300, "blocks of 16": 64}


def test_fill_shares_and_refuses():
    blocks = BlockManager(3, 16)
    assert scheduler_view.fill(blocks, 0, list(range(20))).block_table == [0, 1]
    assert scheduler_view.fill(blocks, 1, list(range(18))).block_table == [0, 2]
    with pytest.raises(RuntimeError, match="do not fit"):
        scheduler_view.fill(blocks, 2, [5])


def test_an_engine_without_a_trace_is_refused():
    with LLM(num_kvcache_blocks=8) as llm, pytest.raises(ValueError, match="trace=True"):
        Replay.of(llm)


def test_an_engine_that_served_nothing_is_refused():
    with LLM(num_kvcache_blocks=8, trace=True) as llm, pytest.raises(ValueError, match="no steps yet"):
        Replay.of(llm)


def test_a_run_that_does_not_end_is_reported():
    with pytest.raises(RuntimeError, match="within 3 steps"):
        simulate([Request([1, 2, 3], 10)], num_blocks=2, budget=8, max_steps=3)


def test_a_budget_is_measured():
    def make_llm(budget):
        return LLM(max_num_batched_tokens=budget, max_num_seqs=2, num_kvcache_blocks=32, enable_prefix_caching=False)

    ids = list(range(5, 105))
    one, many = (scheduler_view.measure_budget(make_llm, budget, ids[:5], ids) for budget in (8, 256))
    assert one.budget == 8 and 0 < one.longest_gap <= one.first_token
    assert one.first_token > many.first_token  # 15 steps against one


def test_the_checkers_judge():
    assert grade("slot-of-token", lambda table, p, size: table[p // size] * size + p % size).verdict == CORRECT
    assert grade("slot-of-token", lambda table, p, size: table[0] * size + p).verdict == WRONG
    assert grade("shareable-tokens", lambda prompt, cached, size: 0).verdict == WRONG
    assert grade("decode-or-preempt", lambda running, free, size: ([], [])).verdict == WRONG
    assert scheduler_view._engine_plan([(33, 2), (30, 2), (40, 3)], 0) == ([0, 1], [2])


def test_every_figure_shows_its_run(engine_run):
    replay = engine_run[2]
    for step in range(len(replay.steps)):
        left, right = scheduler_view.draw_step(replay, step).axes
        trace = replay.steps[step]
        assert [tick.get_text().split()[0] for tick in left.get_yticklabels()] == [
            scheduler_view.name(s) for s in (*trace.running, *trace.waiting)
        ]
        used = sum(count > 0 for count in trace.ref_counts)
        assert right.get_title(loc="left").startswith(f"Pool: {used} used, {len(trace.cached_blocks)} kept")
    latencies = [scheduler_view.Latency(16, 0.01, 0.2), scheduler_view.Latency(32, 0.02, 0.1)]
    (axes,) = scheduler_view.draw_latencies(latencies).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[10, 20], [200, 100]]
    for figure in (scheduler_view.draw_step(replay, 0), scheduler_view.draw_timeline(replay)):
        assert plots.png(figure).startswith(b"\x89PNG")


def test_the_stepper_moves(engine_run, capsys):
    widget = scheduler_view.step_through(engine_run[2], static=3, alt="a step")
    widget.children[0].value = 5
    assert widget.children[0].max == len(engine_run[2].steps) - 1


def test_generated_text_is_greedy(engine_run):
    """`drive` hands requests over one by one and draws what `generate` draws."""
    requests, answers, _ = engine_run
    with LLM(dtype="float32", device="cpu") as llm:
        for request, answer in zip(requests, answers, strict=True):
            params = SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True)
            assert llm.generate([request.prompt], params, use_tqdm=False)[0]["token_ids"] == answer
