"""The whole engine on tiny random checkpoints: greedy tokens are transformers', whatever the engine does meanwhile."""

from __future__ import annotations

import pytest
import torch
from serving import Checkpoint, check_idle, make_llm, tokens
from tiny import make_checkpoint, random_prompts
from transformers import Qwen3ForCausalLM

from nanovllm import LLM, SamplingParams
from nanovllm.engine.input_batch import prepare_inputs
from nanovllm.engine.scheduler import Batch

GREEDY = SamplingParams(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    # Untied weights: with tied ones greedy tokens repeat sooner, and a wrong position would show less.
    return Checkpoint(make_checkpoint(tmp_path_factory.mktemp("tiny"), tie_word_embeddings=False))


def check_greedy(llm: LLM, checkpoint: Checkpoint, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert tokens(outputs) == checkpoint.greedy(prompts, params.max_tokens)
    assert {output["finish_reason"] for output in outputs} == {"length"}
    check_idle(llm)
    return outputs


def watch(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int, int]]]:
    """Records each batch as (sequence, tokens computed before, new tokens)."""
    batches, execute = [], llm.model_runner.execute

    def recording(batch: Batch) -> list[int | None]:
        batches.append([(seq.seq_id, seq.num_computed_tokens, num) for seq, num in batch.scheduled])
        return execute(batch)

    monkeypatch.setattr(llm.model_runner, "execute", recording)
    return batches


def test_alone(checkpoint):
    with make_llm(checkpoint.folder) as llm:
        for prompt in random_prompts(6, 1, 70, seed=1):
            check_greedy(llm, checkpoint, [prompt])


def test_batched_and_ragged(checkpoint):
    with make_llm(checkpoint.folder) as llm:
        outputs = check_greedy(llm, checkpoint, random_prompts(12, 1, 100, seed=2))
    # The comparison means something: the tokens vary within a request and between requests.
    assert sorted(len(set(t)) for t in tokens(outputs))[6] >= 8
    assert len({tuple(t) for t in tokens(outputs)}) == 12


@pytest.mark.parametrize(
    "overrides", [dict(num_key_value_heads=1, num_attention_heads=8), dict(head_dim=40, tie_word_embeddings=False)]
)
def test_other_shapes_under_all_pressures(overrides, tmp_path):
    checkpoint = Checkpoint(make_checkpoint(tmp_path, **overrides))
    with make_llm(tmp_path, num_kvcache_blocks=12, max_num_batched_tokens=20, max_num_seqs=6) as llm:
        outputs = check_greedy(llm, checkpoint, random_prompts(12, 1, 60, seed=3))
    assert sum(output["metrics"]["preemptions"] for output in outputs) > 0


@pytest.mark.parametrize("budget", [8, 17, 64])
def test_chunks(checkpoint, budget, monkeypatch):
    with make_llm(checkpoint.folder, max_num_batched_tokens=budget, max_num_seqs=8) as llm:
        batches = watch(llm, monkeypatch)
        check_greedy(llm, checkpoint, random_prompts(8, 30, 100, seed=4))
    assert max(sum(num for *_, num in batch) for batch in batches) == budget
    assert any(before % llm.model_runner.block_size and num > 1 for batch in batches for _, before, num in batch)


def test_prefix_hits(checkpoint):
    shared = random_prompts(1, 64, 64, seed=5)[0]
    prompts = [shared[:cut] + tail for cut, tail in zip((64, 64, 50, 33, 16), random_prompts(5, 1, 20, seed=6))]
    with make_llm(checkpoint.folder) as llm:
        check_greedy(llm, checkpoint, [shared])
        outputs = check_greedy(llm, checkpoint, prompts)
        assert [output["metrics"]["prefix_cached_tokens"] for output in outputs] == [64, 64, 48, 32, 16]
        # What was generated is cached as the prompt is: a conversation goes on where it stopped.
        history = shared + checkpoint.greedy([shared], 20)[0]
        (output,) = check_greedy(llm, checkpoint, [history])
        assert output["metrics"]["prefix_cached_tokens"] == 80
    with make_llm(checkpoint.folder, enable_prefix_caching=False) as llm:
        outputs = check_greedy(llm, checkpoint, [shared, *prompts])
        assert {output["metrics"]["prefix_cached_tokens"] for output in outputs} == {0}


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_sequence_outgrows_the_pool(checkpoint, enable_prefix_caching):
    with make_llm(
        checkpoint.folder, num_kvcache_blocks=9, enable_prefix_caching=enable_prefix_caching, max_model_len=120
    ) as llm:
        params = SamplingParams(temperature=0, max_tokens=40)
        outputs = check_greedy(llm, checkpoint, random_prompts(5, 30, 60, seed=7), params)
    assert sum(output["metrics"]["preemptions"] for output in outputs) >= 3


@pytest.mark.parametrize("length", [16, 32, 48])
def test_fully_cached_prompt(checkpoint, length):
    (prompt,) = random_prompts(1, length, length, seed=8)
    with make_llm(checkpoint.folder) as llm:
        check_greedy(llm, checkpoint, [prompt])
        (output,) = check_greedy(llm, checkpoint, [prompt])
        assert output["metrics"]["prefix_cached_tokens"] == length - 16
        (output,) = check_greedy(llm, checkpoint, [[*prompt, 3]])
        assert output["metrics"]["prefix_cached_tokens"] == length


def test_preempted_sequence_with_a_prefix_hit(checkpoint, monkeypatch):
    prompts = random_prompts(2, 30, 30, seed=9)  # each grows to five blocks of 16
    with make_llm(checkpoint.folder, num_kvcache_blocks=8) as llm:
        batches = watch(llm, monkeypatch)
        outputs = check_greedy(llm, checkpoint, prompts, SamplingParams(temperature=0, max_tokens=40))
    assert sum(output["metrics"]["preemptions"] for output in outputs) > 0
    computed: dict[int, int] = {}
    resumed = set()
    for batch in batches:
        for seq_id, before, num in batch:
            if 0 < before < computed.get(seq_id, 0):  # it was further, lost its blocks and found some of them again
                resumed.add(seq_id)
            computed[seq_id] = before + num
    assert resumed


def test_identical_prefixes_in_one_step(checkpoint):
    (shared,) = random_prompts(1, 40, 40, seed=10)
    with make_llm(checkpoint.folder) as llm:
        outputs = check_greedy(llm, checkpoint, [shared, shared, [*shared, 7], shared[:33]])
        assert {output["metrics"]["prefix_cached_tokens"] for output in outputs} == {0}


def test_max_num_seqs_20(checkpoint, monkeypatch):
    with make_llm(checkpoint.folder, max_num_seqs=20) as llm:
        batches = watch(llm, monkeypatch)
        check_greedy(llm, checkpoint, random_prompts(45, 1, 20, seed=11), SamplingParams(temperature=0, max_tokens=6))
    assert max(map(len, batches)) == 20


def test_block_hash_chain_stale_after_eviction(checkpoint):
    """Old prompts come back after others took some of their blocks."""
    prompts = random_prompts(5, 50, 66, seed=12)
    with make_llm(checkpoint.folder, num_kvcache_blocks=12) as llm:
        cached = []
        for index in (0, 1, 0, 2, 1, 0, 3, 0, 4, 3, 2, 1, 0):
            (output,) = check_greedy(llm, checkpoint, [prompts[index]])
            cached.append(output["metrics"]["prefix_cached_tokens"])
    assert cached[0] == 0 and any(cached) and min(cached[2:]) < max(cached)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33])
def test_decode_position_off_by_one(checkpoint, length):
    """Around the border of a block: positions, slots and context lengths, and the tokens."""
    (prompt,) = random_prompts(1, length, length, seed=length)
    params = SamplingParams(temperature=0, max_tokens=20)
    with make_llm(checkpoint.folder) as llm:
        check_greedy(llm, checkpoint, [prompt], params)
        request_id = llm.add_request(prompt, params)
        llm.step()
        while llm.has_unfinished:
            batch = llm.scheduler.schedule()
            (seq,) = (entry.seq for entry in batch.scheduled)
            inputs = prepare_inputs(batch, 16, torch.device("cpu"))
            position = seq.num_tokens - 1
            assert inputs.token_ids.tolist() == [seq.token_ids[position]]
            assert inputs.positions.tolist() == [position]
            assert inputs.metadata.context_lens.tolist() == [position + 1]
            slot = seq.block_table[position // 16] * 16 + position % 16
            assert inputs.metadata.slot_mapping.tolist() == [slot]
            llm.scheduler.update(batch, llm.model_runner.execute(batch))
        assert llm.take_output(request_id)["token_ids"] == checkpoint.greedy([prompt], 20)[0]


def test_head_of_line_blocking(checkpoint):
    """Short requests behind a prompt of many chunks have their first token within a few steps."""
    large, *shorts = random_prompts(1, 450, 450, seed=13) + random_prompts(3, 3, 5, seed=14)
    with make_llm(checkpoint.folder, max_num_batched_tokens=16, max_num_seqs=8) as llm:
        large_id = llm.add_request(large, SamplingParams(temperature=0, max_tokens=2))
        llm.step()
        ids = [llm.add_request(short, SamplingParams(temperature=0, max_tokens=3)) for short in shorts]
        for _ in range(5):
            llm.step()
        assert all(llm.get_request(request_id).is_finished for request_id in ids)
        assert not llm.get_request(large_id).is_finished
        assert tokens([llm.take_output(i) for i in ids]) == checkpoint.greedy(shorts, 3)
        while llm.has_unfinished:
            llm.step()
        assert llm.take_output(large_id)["token_ids"] == checkpoint.greedy([large], 2)[0]


@pytest.mark.parametrize("setting", [dict(max_model_len=50), dict(num_kvcache_blocks=3), dict()])
def test_max_model_len_reached(setting, tmp_path):
    """By the setting, by the KV cache, and by the model's positions."""
    checkpoint = Checkpoint(make_checkpoint(tmp_path, max_position_embeddings=64))
    prompts = random_prompts(3, 30, 40, seed=15)
    with make_llm(tmp_path, **setting) as llm:
        limit = setting.get("max_model_len", 48 if setting else 64)
        assert llm.max_model_len == limit
        longest = (prompts[0] * 3)[: limit - 1]
        outputs = llm.generate([*prompts, longest], SamplingParams(temperature=0, max_tokens=500), use_tqdm=False)
        for prompt, output in zip([*prompts, longest], outputs, strict=True):
            assert len(prompt) + len(output["token_ids"]) == limit and output["finish_reason"] == "length"
            assert output["token_ids"] == checkpoint.greedy([prompt], limit - len(prompt))[0]
        check_idle(llm)


@pytest.mark.parametrize("attention_backend", ["reference", "auto"])
def test_everything_at_once(checkpoint, attention_backend, monkeypatch):
    """Shared prefixes, chunks, preemptions, more requests than seats, repeated prompts: the tokens are the same."""
    shared = random_prompts(3, 20, 50, seed=16)
    prompts = random_prompts(12, 1, 90, seed=17)
    prompts += (
        [shared[i % 3] + tail for i, tail in enumerate(random_prompts(12, 1, 30, seed=18))] + shared + prompts[:3]
    )
    with make_llm(
        checkpoint.folder,
        attention_backend=attention_backend,
        num_kvcache_blocks=14,
        max_num_batched_tokens=24,
        max_num_seqs=5,
    ) as llm:
        batches = watch(llm, monkeypatch)
        outputs = check_greedy(llm, checkpoint, prompts)
    metrics = [output["metrics"] for output in outputs]
    assert sum(m["preemptions"] for m in metrics) > 0
    assert sum(m["prefix_cached_tokens"] > 0 for m in metrics) > 3
    assert any(before and num > 1 for batch in batches for _, before, num in batch)
    assert max(map(len, batches)) == 5


# Sampling


SAMPLED = [
    SamplingParams(temperature=1.0, seed=1, max_tokens=20),
    SamplingParams(temperature=0.7, top_k=20, seed=2, max_tokens=20),
    SamplingParams(temperature=1.2, top_p=0.8, min_p=0.01, seed=3, max_tokens=20),
    SamplingParams(temperature=0.9, repetition_penalty=1.3, frequency_penalty=0.4, seed=4, max_tokens=20),
    SamplingParams(temperature=0, presence_penalty=0.5, max_tokens=20),
    SamplingParams(temperature=1.0, seed=1, max_tokens=20, n=3),
]


def all_tokens(output: dict) -> list[list[int]]:
    return tokens(output.get("outputs", [output]))


@pytest.fixture(scope="module")
def sampled_alone(checkpoint) -> tuple[list[list[int]], list[list[list[int]]]]:
    prompts = random_prompts(len(SAMPLED), 20, 60, seed=19)
    with make_llm(checkpoint.folder) as llm:
        alone = [all_tokens(llm.generate(p, s, use_tqdm=False)[0]) for p, s in zip(prompts, SAMPLED, strict=True)]
    return prompts, alone


@pytest.mark.parametrize(
    ("setting", "preempts"),
    [
        (dict(), False),
        (dict(max_num_batched_tokens=8, max_num_seqs=8), False),
        (dict(num_kvcache_blocks=8), True),
        (dict(num_kvcache_blocks=8, max_num_batched_tokens=12, max_num_seqs=5, seed=99), True),
    ],
)
def test_sampled_tokens_do_not_depend_on_batch_mates_chunks_and_preemption(
    checkpoint, sampled_alone, setting, preempts
):
    prompts, alone = sampled_alone
    mates = random_prompts(4, 5, 30, seed=20)
    params = [*SAMPLED, *[SamplingParams(temperature=1.0, max_tokens=30)] * 4]
    with make_llm(checkpoint.folder, **setting) as llm:
        outputs = llm.generate(prompts + mates, params, use_tqdm=False)
        again = llm.generate(prompts[::-1], SAMPLED[::-1], use_tqdm=False)[::-1]
        check_idle(llm)
    assert [all_tokens(output) for output in outputs[: len(prompts)]] == alone
    assert [all_tokens(output) for output in again] == alone
    assert (sum(output["metrics"]["preemptions"] for output in outputs) > 0) == preempts


def test_sampled_outputs_differ_between_seeds_and_between_the_n(sampled_alone, checkpoint):
    _, alone = sampled_alone
    assert len(alone[-1]) == 3 and len({tuple(t) for t in alone[-1]}) == 3
    (prompt,) = random_prompts(1, 20, 20, seed=21)
    with make_llm(checkpoint.folder) as llm:
        drawn = tokens(llm.generate([prompt] * 6, SamplingParams(max_tokens=12), use_tqdm=False))
        assert len({tuple(t) for t in drawn}) == 6  # requests without a seed have different ones
    with make_llm(checkpoint.folder) as llm:
        assert tokens(llm.generate([prompt] * 6, SamplingParams(max_tokens=12), use_tqdm=False)) == drawn
    with make_llm(checkpoint.folder, seed=1) as llm:
        assert tokens(llm.generate([prompt] * 6, SamplingParams(max_tokens=12), use_tqdm=False)) != drawn


def test_logprobs_survive_preemption(checkpoint):
    prompts = random_prompts(5, 20, 50, seed=22)
    params = SamplingParams(temperature=0, max_tokens=30, logprobs=3)
    with make_llm(checkpoint.folder) as llm:
        alone = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    with make_llm(checkpoint.folder, num_kvcache_blocks=8) as llm:
        together = llm.generate(prompts, params, use_tqdm=False)
    assert sum(output["metrics"]["preemptions"] for output in together) > 0
    for one, other in zip(alone, together, strict=True):
        assert len(other["logprobs"]) == len(other["token_ids"]) == 30
        for mine, theirs in zip(one["logprobs"], other["logprobs"], strict=True):
            assert mine.keys() == theirs.keys()
            assert list(mine.values()) == pytest.approx(list(theirs.values()), abs=1e-4)


@pytest.mark.parametrize("setting", [dict(), dict(num_kvcache_blocks=6, max_num_batched_tokens=16, max_num_seqs=4)])
def test_penalties_look_at_prompt_and_output(checkpoint, setting):
    """Greedy tokens under penalties equal a loop over transformers' logits that applies their definitions."""
    prompts = random_prompts(4, 10, 40, seed=23)
    params = SamplingParams(
        temperature=0, max_tokens=20, repetition_penalty=1.3, presence_penalty=0.6, frequency_penalty=0.7
    )
    with make_llm(checkpoint.folder, **setting) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        check_idle(llm)
    assert (sum(output["metrics"]["preemptions"] for output in outputs) > 0) == bool(setting)
    model = Qwen3ForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    for prompt, output in zip(prompts, outputs, strict=True):
        token_ids = list(prompt)
        for _ in range(20):
            with torch.inference_mode():
                row = model(torch.tensor([token_ids])).logits[0, -1].tolist()
            generated = token_ids[len(prompt) :]
            for token in set(token_ids):
                row[token] = row[token] / 1.3 if row[token] > 0 else row[token] * 1.3
            for token in set(generated):
                row[token] -= 0.6 + 0.7 * generated.count(token)
            token_ids.append(row.index(max(row)))
        assert output["token_ids"] == token_ids[len(prompt) :]
