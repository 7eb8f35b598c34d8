"""The scheduler on Python integers: no torch, a fake model and a shadow KV cache (see fake_model.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_model import PROPERTY, AheadEngine, Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import FinishReason, Sequence, SequenceStatus
from nanovllm.sampling_params import SamplingParams

# Few different tokens, so that prompts and outputs share prefixes, end-of-sequence ids come up and hashes are hit.
VOCAB = 3
EOS = 0


@st.composite
def engines(draw: st.DrawFn, kind: type[Engine] = Engine) -> Engine:
    block_size = draw(st.integers(1, 5))
    num_blocks = draw(st.integers(2, 12).filter(lambda n: n * block_size >= 3))
    max_num_seqs = draw(st.integers(1, 6))
    return kind(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, 24)),
        max_model_len=draw(st.integers(3, num_blocks * block_size)),
        enable_prefix_caching=draw(st.booleans()),
        vocab_size=VOCAB,
        eos_token_ids={EOS},
        max_passes=draw(st.integers(0, 4)),
    )


def draw_request(draw: st.DrawFn, max_model_len: int) -> dict:
    return dict(
        prompt=draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=min(max_model_len - 1, 30))),
        max_tokens=draw(st.integers(1, 20)),
        ignore_eos=draw(st.booleans()),
        stop_token_ids=draw(st.sampled_from([None, [1]])),
    )


@PROPERTY
@given(st.data())
def test_property_same_tokens_whatever_the_pool_the_budget_and_the_cache(data):
    """Every request gives what it gives alone, in the derived number of steps, with and without aborts."""
    engine = data.draw(engines())
    for _ in range(data.draw(st.integers(1, 10))):
        engine.add(**draw_request(data.draw, engine.scheduler.max_model_len))
    aborts = data.draw(st.dictionaries(st.integers(0, 30), st.integers(0, len(engine.sequences) - 1), max_size=4))
    while engine.scheduler.has_unfinished:
        if len(engine.steps) in aborts:
            engine.abort(engine.sequences[aborts[len(engine.steps)]])
        assert len(engine.steps) < engine.total_tokens
        engine.step()
    engine.check_idle()
    engine.check_outputs()


@PROPERTY
@given(st.data())
def test_property_same_tokens_when_each_step_is_launched_before_the_last_is_booked(data):
    """Requests come, are aborted, stop and are preempted while their tokens are in flight; prefixes are shared meanwhile."""
    engine = data.draw(engines(AheadEngine))
    for _ in range(data.draw(st.integers(1, 10))):
        engine.add(**draw_request(data.draw, engine.scheduler.max_model_len))
        for _ in range(data.draw(st.integers(0, 3))):
            engine.step()
    aborts = data.draw(st.dictionaries(st.integers(0, 30), st.integers(0, len(engine.sequences) - 1), max_size=4))
    for number in range(max(aborts, default=0) + 1):
        if number in aborts:
            engine.abort(engine.sequences[aborts[number]])
        engine.step()
    engine.run()
    engine.check_outputs()


class RequestsComeAndGo(RuleBasedStateMachine):
    """Requests arrive and are aborted at any time, also while a step is being computed."""

    @initialize(engine=engines())
    def start(self, engine: Engine) -> None:
        self.engine = engine

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        self.engine.add(**draw_request(data.draw, self.engine.scheduler.max_model_len))

    @rule(data=st.data())
    def add_a_longer_one_with_the_same_prefix(self, data: st.DataObject) -> None:
        if self.engine.sequences:
            seq = data.draw(st.sampled_from(self.engine.sequences))
            prompt = seq.token_ids[: data.draw(st.integers(1, self.engine.scheduler.max_model_len - 1))]
            self.engine.add(prompt, max_tokens=data.draw(st.integers(1, 20)), ignore_eos=True)

    @rule(num=st.integers(1, 6))
    def step(self, num: int) -> None:
        for _ in range(num):
            self.engine.step()

    @precondition(lambda self: self.engine.scheduler.has_unfinished)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = [*self.engine.scheduler.waiting, *self.engine.scheduler.running]
        self.engine.abort(data.draw(st.sampled_from(live)))

    @precondition(lambda self: self.engine.scheduler.has_unfinished)
    @rule(data=st.data())
    def abort_while_the_step_runs(self, data: st.DataObject) -> None:
        engine = self.engine
        batch = engine.scheduler.schedule()
        tokens = engine.model.execute(batch)
        seq = data.draw(st.sampled_from([entry.seq for entry in batch.scheduled]))
        engine.abort(seq)
        before = list(seq.token_ids)
        assert seq not in engine.scheduler.update(batch, tokens)
        assert seq.token_ids == before and seq.finish_reason is FinishReason.ABORT
        engine.scheduler.check_integrity()

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "engine"):
            live = [*self.engine.scheduler.waiting, *self.engine.scheduler.running]
            assert {seq.seq_id for seq in live} == {s.seq_id for s in self.engine.sequences if not s.is_finished}

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(self.engine.total_tokens):
                if self.engine.scheduler.has_unfinished:
                    self.engine.step()
            self.engine.check_idle()
            self.engine.check_outputs()


TestRequestsComeAndGo = RequestsComeAndGo.TestCase
TestRequestsComeAndGo.settings = settings(PROPERTY, stateful_step_count=25)


@PROPERTY
@given(st.data())
def test_property_nobody_starves_while_others_keep_coming(data):
    """A request waits only for those that were ahead of it and for `max_passes` that may pass it."""
    engine = data.draw(engines())
    scheduler = engine.scheduler
    limit = scheduler.max_model_len - 1
    for _ in range(data.draw(st.integers(0, 4))):
        engine.add(**draw_request(data.draw, scheduler.max_model_len))
    large = engine.add([1] * data.draw(st.integers(1, limit)), max_tokens=data.draw(st.integers(1, 10)))
    small_prompt, small_tokens = data.draw(st.integers(1, min(3, limit))), data.draw(st.integers(1, 3))
    # While `large` is unfinished the oldest running sequence is one that was ahead, one that passed, or itself.
    most_steps = engine.total_tokens + scheduler.max_passes * (small_prompt + small_tokens - 1)
    for _ in range(most_steps):
        while len(scheduler.waiting) < 3:
            engine.add([2] * small_prompt, max_tokens=small_tokens)
        engine.step()
        if large.is_finished:
            break
    assert large.is_finished
    assert large.num_times_passed <= scheduler.max_passes


# What each rule of the docstring says, one test each


def test_decodes_come_first_and_prefill_takes_the_rest_of_the_budget():
    engine = Engine(num_blocks=32, block_size=4, max_num_batched_tokens=10)
    first = engine.add([1, 2, 3], max_tokens=9)
    engine.step()
    second = engine.add([4] * 9, max_tokens=9)
    batch = engine.step()
    assert batch.scheduled == [(first, 1), (second, 9)] and batch.num_decodes == 1
    assert batch.num_tokens == engine.scheduler.max_num_batched_tokens


def test_a_prompt_is_computed_in_chunks_and_drawn_from_once():
    engine = Engine(num_blocks=32, block_size=4, max_num_batched_tokens=8)
    seq = engine.add(list(range(21)), max_tokens=2)
    engine.run()
    assert [entry.num_new_tokens for batch in engine.steps for entry in batch.scheduled] == [8, 8, 5, 1]
    assert seq.num_completion_tokens == 2
    engine.check_outputs()


def test_requests_start_in_order_of_arrival():
    engine = Engine(num_blocks=64, block_size=4, max_num_seqs=2, max_num_batched_tokens=16)
    seqs = [engine.add([i] * 5, max_tokens=3) for i in range(7)]
    engine.run()
    scheduled = [seq.times["scheduled"] for seq in seqs]
    assert scheduled == sorted(scheduled)


def test_the_newest_running_sequence_is_preempted_and_waits_in_front():
    engine = Engine(num_blocks=6, block_size=2, max_num_batched_tokens=16, enable_prefix_caching=False)
    old, middle, new = (engine.add([i] * 3, max_tokens=8) for i in (1, 2, 3))
    later = engine.add([4] * 3, max_tokens=2)
    while not engine.num_preemptions:
        engine.step()
    assert [seq.num_preemptions for seq in (old, middle, new, later)] == [0, 0, 1, 0]
    assert engine.scheduler.waiting[0] is new and new.status is SequenceStatus.PREEMPTED
    assert new.num_computed_tokens == 0 and new.num_completion_tokens > 0
    engine.run()
    assert old.num_preemptions == 0
    engine.check_outputs()


def test_preempted_sequences_come_back_in_order_of_arrival():
    engine = Engine(num_blocks=8, block_size=1, max_num_seqs=4, enable_prefix_caching=False)
    seqs = [engine.add([i], max_tokens=7) for i in range(4)]
    while engine.num_preemptions < 2:
        engine.step()
    assert list(engine.scheduler.waiting) == seqs[-engine.num_preemptions :]
    engine.run()
    engine.check_outputs()


def test_max_passes_bounds_how_often_the_first_waiting_sequence_is_passed():
    engine = Engine(num_blocks=10, block_size=1, max_num_seqs=8, max_passes=3)
    engine.add([1] * 4, max_tokens=6)
    engine.step()
    large = engine.add([2] * 8, max_tokens=1)
    for _ in range(40):
        engine.add([3], max_tokens=1)
    engine.run()
    assert large.num_times_passed == 3
    started = sorted(engine.sequences, key=lambda seq: seq.times["scheduled"])
    assert started.index(large) == 4
    engine.check_outputs()


def test_only_sequences_that_fit_are_passed_over_by_ones_that_do():
    """Where the first waiting sequence fits it is taken, even when max_num_seqs lets only one in."""
    engine = Engine(num_blocks=10, block_size=1, max_num_seqs=1)
    engine.add([1] * 2, max_tokens=1)
    large, small = engine.add([2] * 8, max_tokens=1), engine.add([3], max_tokens=1)
    engine.run()
    assert large.num_times_passed == 0
    assert large.times["scheduled"] < small.times["scheduled"]


@pytest.mark.parametrize(
    ("params", "reason", "num"),
    [
        (dict(max_tokens=3), FinishReason.LENGTH, 3),
        (dict(max_tokens=9, stop_token_ids="second"), FinishReason.STOP, 2),
        (dict(max_tokens=9, eos="second"), FinishReason.STOP, 2),
        (dict(max_tokens=4, eos="second", ignore_eos=True), FinishReason.LENGTH, 4),
        (dict(max_tokens=4, eos="second", stop_token_ids="second", ignore_eos=True), FinishReason.STOP, 2),
    ],
)
def test_finish_reasons(params, reason, num):
    probe = Engine(num_blocks=8, block_size=4)
    seq = probe.add([5, 6, 7], max_tokens=2)
    probe.run()
    second = seq.token_ids[-1]
    params = {name: ([second] if value == "second" else value) for name, value in params.items()}
    engine = Engine(num_blocks=8, block_size=4, eos_token_ids=params.pop("eos", ()))
    seq = engine.add([5, 6, 7], **params)
    engine.run()
    assert (seq.finish_reason, seq.num_completion_tokens) == (reason, num)
    assert set(seq.times) == {"arrival", "scheduled", "first_token", "finished"}
    assert list(seq.times.values()) == sorted(seq.times.values())


@pytest.mark.parametrize("status", list(SequenceStatus))
def test_a_sequence_can_be_finished_in_any_state_and_only_once(status):
    engine = Engine(num_blocks=6, block_size=2, max_num_seqs=3, enable_prefix_caching=False)
    for i in range(4):
        engine.add([i] * 3, max_tokens=8)
    while not (engine.num_preemptions and engine.scheduler.running) or (
        status is SequenceStatus.FINISHED and not engine.sequences[0].is_finished
    ):
        engine.step()
    if status is SequenceStatus.WAITING:
        engine.add([9], max_tokens=1)
    seq = next(seq for seq in engine.sequences if seq.status is status)
    reason = seq.finish_reason
    engine.abort(seq)
    assert seq.finish_reason is (reason or FinishReason.ABORT) and seq.block_table == []
    finished = seq.times["finished"]
    engine.scheduler.finish(seq, FinishReason.ERROR)
    assert seq.finish_reason is (reason or FinishReason.ABORT) and seq.times["finished"] == finished
    engine.run()
    engine.check_outputs()


def test_a_sequence_that_can_never_fit_is_refused_at_once():
    engine = Engine(num_blocks=4, block_size=4, max_model_len=10)
    for num in (0, 10, 11):
        with pytest.raises(ValueError, match="1 to 9 tokens"):
            engine.scheduler.add(Sequence(0, [1] * num, SamplingParams()))
    assert not engine.scheduler.has_unfinished
    with pytest.raises(ValueError, match=r"max_model_len \(17\).*4 blocks of 4"):
        Scheduler(BlockManager(4, 4), max_num_seqs=1, max_num_batched_tokens=8, max_model_len=17)


def test_a_wrong_number_of_tokens_is_an_error():
    engine = Engine(num_blocks=4, block_size=4)
    engine.add([1, 2])
    batch = engine.scheduler.schedule()
    with pytest.raises(ValueError):
        engine.scheduler.update(batch, [])


def test_check_integrity_sees_a_waiting_sequence_with_blocks():
    engine = Engine(num_blocks=4, block_size=4)
    engine.add([1, 2]).block_table = [0]
    with pytest.raises(RuntimeError, match="waiting"):
        engine.scheduler.check_integrity()


def test_nothing_here_needs_torch():
    """The tests of scheduler and block manager pass in an interpreter that cannot import torch."""
    here = Path(__file__).parent
    root = here.parents[2]
    script = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, NoTorch())
import pytest
files = [{str(here)!r} + "/" + name for name in ("test_block_manager.py", "test_scheduler.py", "test_regressions.py")]
code = pytest.main(["--noconftest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not needs_torch and not thousand", *files])
assert "torch" not in sys.modules
sys.exit(int(code))
"""
    environment = {**os.environ, "PROPERTY_EXAMPLES": "5", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=here, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
