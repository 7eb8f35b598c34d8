"""Steps launched before the last one's tokens are read: the same tokens as one step at a time, whatever happens between."""

from __future__ import annotations

import random

import pytest
from fake_model import AheadEngine
from tiny import make_checkpoint, random_prompts

from nanovllm import LLM, SamplingParams
from nanovllm.engine.sequence import FinishReason, SequenceStatus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("async"))


def results(outputs):
    return [(output["token_ids"], output["finish_reason"]) for output in outputs]


def compare(folder, prompts, params, **settings):
    """Results of the same requests in turn and ahead, which must be equal. Returns those ahead."""
    with LLM(folder, **settings) as llm:
        assert not llm.async_scheduling
        expected = llm.generate(prompts, params, use_tqdm=False)
    with LLM(folder, **settings, async_scheduling=True) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.scheduler.check_integrity()
        assert llm.scheduler.block_manager.num_free_blocks == llm.scheduler.block_manager.num_blocks
        again = llm.generate(
            prompts, params, use_tqdm=False
        )  # with what the first round left in flight and in the cache
    assert results(outputs) == results(expected)
    if all(param.seed is not None or param.greedy for param in params):
        assert results(again) == results(expected)
    return outputs


def stop_at_third(folder, prompts):
    """Greedy requests, each of which stops at the third token that it draws."""
    with LLM(folder) as llm:
        free = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), use_tqdm=False)
    return [SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[output["token_ids"][2]]) for output in free]


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 20, "max_num_seqs": 5}, {"num_kvcache_blocks": 8}])
def test_lengths_and_chunks_and_preemption(folder, settings):
    prompts = random_prompts(12, 1, 60, seed=1)
    params = [SamplingParams(temperature=0.8, seed=i, max_tokens=1 + i, ignore_eos=i % 2 == 0) for i in range(12)]
    outputs = compare(folder, prompts, params, **settings)
    if "num_kvcache_blocks" in settings:
        assert sum(output["metrics"]["preemptions"] for output in outputs) > 0


def test_a_stop_costs_a_spare_row_but_no_token(folder):
    prompts = random_prompts(8, 3, 40, seed=2)
    outputs = compare(folder, prompts, stop_at_third(folder, prompts), num_kvcache_blocks=12)
    for output in outputs:
        assert output["finish_reason"] == "stop" and len(output["token_ids"]) <= 3


def test_prefixes_that_one_step_fills_are_hit_by_the_next(folder):
    shared = random_prompts(1, 33, 33, seed=3)[0]
    prompts = [shared + tail for tail in random_prompts(6, 1, 20, seed=4)] * 2
    params = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)] * len(prompts)
    outputs = compare(folder, prompts, params, max_num_seqs=3)
    assert sum(output["metrics"]["prefix_cached_tokens"] > 0 for output in outputs) > 6


def test_requests_that_need_known_tokens_take_turns(folder):
    """Penalties read the tokens so far; the engine slows down for them and goes ahead again afterwards."""
    prompts = random_prompts(6, 3, 30, seed=5)
    params = [SamplingParams(temperature=0.7, seed=i, max_tokens=8 + 6 * i) for i in range(5)]
    params.insert(2, SamplingParams(temperature=0, repetition_penalty=1.5, logprobs=1, max_tokens=9))
    outputs = compare(folder, prompts, params)
    assert len(outputs[2]["logprobs"]) == len(outputs[2]["token_ids"])


@pytest.mark.parametrize("ends_by", ["length", "abort"])
def test_the_engine_goes_ahead_again_once_who_looks_back_has_ended(folder, ends_by):
    """Though nobody has taken that result yet: `generate` takes all of them at its end."""
    with LLM(folder, async_scheduling=True) as llm:
        llm.add_request([1, 2, 3], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
        looks_back = llm.add_request([4, 5], SamplingParams(max_tokens=5, repetition_penalty=1.2, ignore_eos=True))
        ahead = []
        while llm.has_unfinished:
            llm.step()
            if ends_by == "abort" and len(ahead) == 3:
                llm.abort(looks_back)
            ahead.append(bool(llm._in_flight))
        assert llm.get_request(looks_back).is_finished
    assert not any(ahead[:4]) and sum(ahead) >= 20


def test_aborts_between_launch_and_booking(folder):
    draw = random.Random(6)
    prompts = random_prompts(40, 1, 50, seed=6)
    with LLM(folder) as llm:
        alone = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True), use_tqdm=False)
    with LLM(folder, async_scheduling=True, num_kvcache_blocks=20, max_num_seqs=7) as llm:
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        ids = [llm.add_request(prompt, params) for prompt in prompts]
        aborted = set()
        while llm.has_unfinished:
            llm.step()
            if draw.random() < 0.2:
                aborted.add(victim := draw.choice(ids))
                llm.abort(victim)
            llm.scheduler.check_integrity()
        for request_id, expected in zip(ids, alone, strict=True):
            output = llm.take_output(request_id)
            tokens = output["token_ids"]
            assert tokens == expected["token_ids"][: len(tokens)]
            assert output["finish_reason"] == ("abort" if len(tokens) < 30 else "length")
            assert len(tokens) == 30 or request_id in aborted
        assert llm.scheduler.block_manager.num_free_blocks == 20


def test_stream_and_stop_strings(tmp_path):
    params = SamplingParams(temperature=0, max_tokens=40, stop=["the"])
    with LLM() as llm:
        expected = llm.generate("Once upon a time", params, use_tqdm=False)[0]
    with LLM(async_scheduling=True) as llm:
        pieces = list(llm.stream("Once upon a time", params))
        assert "".join(piece["text"] for piece in pieces if piece["text"]) == expected["text"]
        assert [token for piece in pieces for token in piece["token_ids"]] == expected["token_ids"]
        assert pieces[-1]["finish_reason"] == expected["finish_reason"]


def test_a_step_that_fails_takes_its_own_requests_only(folder, monkeypatch):
    with LLM(folder, async_scheduling=True) as llm:
        first = llm.add_request([1, 2, 3], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        while llm.has_unfinished:
            llm.step()
        launch = llm.model_runner.launch
        monkeypatch.setattr(llm.model_runner, "launch", lambda batch: 1 / 0)
        second = llm.add_request([4, 5], SamplingParams(max_tokens=4))
        with pytest.raises(ZeroDivisionError):
            while True:
                llm.step()
        monkeypatch.setattr(llm.model_runner, "launch", launch)
        assert llm.take_output(second)["finish_reason"] == "error"
        assert len(llm.take_output(first)["token_ids"]) == 4
        assert llm.generate([[6, 7]], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)[0]["token_ids"]


# What may go wrong between launch and booking, on the shadow KV cache: it notices a wrong slot, block or share


def test_a_sequence_is_preempted_with_its_token_in_flight():
    engine = AheadEngine(num_blocks=8, block_size=2)
    old, new = engine.add([1] * 4, max_tokens=10), engine.add([2] * 3, max_tokens=10)
    while not new.num_preemptions:
        known = len(new.token_ids)
        engine.step()
    assert new.status is SequenceStatus.PREEMPTED and new.block_table == []
    assert len(new.token_ids) == known + 1  # the token that was in flight was booked after its blocks were gone
    engine.run()
    assert old.num_preemptions == 0
    engine.check_outputs()


def test_blocks_are_handed_out_while_a_launched_step_has_yet_to_write_to_them():
    """The first request stops; a spare row for it is on its way when its blocks go to the next one."""
    probe = AheadEngine(num_blocks=4, block_size=2)
    probe.add([1, 2, 3], max_tokens=2)
    probe.run()
    stop = probe.sequences[0].token_ids[-1]
    engine = AheadEngine(num_blocks=3, block_size=2, max_num_seqs=1, enable_prefix_caching=False)
    first = engine.add([1, 2, 3], max_tokens=3, stop_token_ids=[stop])
    second = engine.add([9, 8, 7, 6], max_tokens=2)
    while not first.is_finished:
        engine.step()
    spare, _, _ = engine.launched[0]
    assert [seq for seq, _ in spare.scheduled] == [first]
    blocks = list(engine.blocks.free_blocks)
    assert len(blocks) == 3  # all are free again, that of the spare row too
    engine.step()
    assert second.block_table and set(second.block_table) <= set(blocks)
    engine.run()
    assert first.finish_reason is FinishReason.STOP
    engine.check_outputs()


def test_a_prefix_is_shared_whose_last_token_was_in_flight():
    """The block that a launched step fills is registered once its tokens are known, and hit by the next step."""
    engine = AheadEngine(num_blocks=16, block_size=4)
    first = engine.add([1, 2], max_tokens=9)
    while first.num_completion_tokens < 2:
        engine.step()
    assert first.num_computed_tokens == 4 == len(first.token_ids)  # the launched step computes the second token drawn
    second = engine.add([*first.token_ids, 5], max_tokens=3)
    engine.step()
    assert second.num_cached_tokens == 4 and second.block_table[0] == first.block_table[0]
    engine.run()
    engine.check_outputs()


def test_no_step_is_launched_for_a_token_after_the_last():
    """Length is known before the token is: only an end that depends on the token costs a spare row."""
    engine = AheadEngine(num_blocks=16, block_size=4)
    engine.add([1, 2, 3], max_tokens=5)
    engine.run()
    assert [batch.num_tokens for batch in engine.steps] == [3, 1, 1, 1, 1]


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_a_thousand_requests_launched_ahead_with_random_aborts_end_with_every_block_free(enable_prefix_caching):
    draw = random.Random(1)
    engine = AheadEngine(
        num_blocks=24,
        block_size=4,
        max_num_seqs=12,
        max_num_batched_tokens=48,
        vocab_size=50,
        eos_token_ids=[0],
        enable_prefix_caching=enable_prefix_caching,
    )
    prefixes = [[draw.randrange(50) for _ in range(draw.randint(1, 30))] for _ in range(10)]
    in_flight_aborted = 0
    while len(engine.sequences) < 1000 or engine.scheduler.has_unfinished:
        for _ in range(draw.randint(0, min(6, 1000 - len(engine.sequences)))):
            prompt = draw.choice(prefixes) + [draw.randrange(50) for _ in range(draw.randint(0, 8))]
            engine.add(prompt, max_tokens=draw.randint(1, 24), ignore_eos=draw.random() < 0.3)
        live = [*engine.scheduler.waiting, *engine.scheduler.running]
        if live and draw.random() < 0.3:
            victim = draw.choice(engine.scheduler.running or live)
            in_flight_aborted += victim.num_in_flight
            engine.abort(victim)
        engine.step()
    engine.check_idle()
    engine.check_outputs()
    assert engine.num_preemptions >= 100 and in_flight_aborted >= 50
    assert not enable_prefix_caching or sum(seq.num_cached_tokens or 0 for seq in engine.sequences) >= 2000
