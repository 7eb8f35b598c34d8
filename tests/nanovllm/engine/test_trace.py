"""The trace says what happened: it is compared with the tokens, the pool and the requests' own counters."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from tiny import make_checkpoint, random_prompts

from nanovllm import LLM, SamplingParams


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run under pressure: chunks, preemptions and a prompt that comes again."""
    folder = make_checkpoint(tmp_path_factory.mktemp("trace"))
    prompts = random_prompts(6, 20, 60, seed=4)
    params = SamplingParams(temperature=0, max_tokens=40)
    with LLM(folder, trace=True, num_kvcache_blocks=16, max_num_batched_tokens=32, max_num_seqs=6) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for _ in range(2):  # the second time its blocks are still there
            outputs += llm.generate(prompts[:1], params, use_tqdm=False)
        yield llm, prompts + 2 * prompts[:1], outputs


def test_tokens_and_reasons(traced):
    llm, _, outputs = traced
    tokens: dict[int, list[int]] = {}
    finished: dict[int, str] = {}
    for step in llm.trace.steps:
        for seq_id, token in step.tokens.items():
            tokens.setdefault(seq_id, []).append(token)
        finished |= step.finished
    assert [tokens[i] for i in range(8)] == [output["token_ids"] for output in outputs]
    assert [finished[i] for i in range(8)] == [output["finish_reason"] for output in outputs]


def test_preemptions_and_prefix_hits(traced):
    llm, _, outputs = traced
    preempted = Counter(seq_id for step in llm.trace.steps for seq_id in step.preempted)
    assert [preempted[i] for i in range(8)] == [output["metrics"]["preemptions"] for output in outputs]
    assert sum(preempted.values()) > 0
    first_hit = {}
    for step in llm.trace.steps:
        for seq_id, cached in step.admitted.items():
            first_hit.setdefault(seq_id, cached)
    assert [first_hit[i] for i in range(8)] == [output["metrics"]["prefix_cached_tokens"] for output in outputs]
    assert first_hit[7] > 0


def test_every_step_is_consistent(traced):
    llm, _, _ = traced
    for index, step in enumerate(llm.trace.steps):
        assert step.step == index
        held = Counter(block for table in step.block_tables.values() for block in table)
        assert [held[block] for block in range(16)] == step.ref_counts
        assert all(step.ref_counts[block] == 0 for block in step.cached_blocks)
        assert step.num_prefill_tokens + step.num_decode_tokens <= 32
        assert {chunk.seq_id for chunk in step.scheduled} <= set(step.running)
        assert not set(step.running) & set(step.waiting)


def test_exports(traced, tmp_path):
    llm, _, _ = traced
    frame = llm.trace.to_pandas()
    assert len(frame) == len(llm.trace.steps)
    assert frame["decode_tokens"].sum() + frame["prefill_tokens"].sum() == sum(
        chunk.num_tokens for step in llm.trace.steps for chunk in step.scheduled
    )
    assert frame["start"].is_monotonic_increasing
    assert json.loads(json.dumps(llm.trace.to_json()))[0]["scheduled"]
    llm.trace.to_chrome(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event["tid"] == "engine" for event in events) == len(llm.trace.steps)


def test_no_trace_unless_asked(traced):
    llm, _, _ = traced
    with LLM(llm.config.model) as plain:
        assert plain.trace is None
