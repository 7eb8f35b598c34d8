"""The engine's Qwen3 against transformers': logits and greedy tokens on random configurations.

Every model is tiny, but each draws its own shapes: GQA group sizes, odd vocabulary and hidden sizes, head_dim that is
not hidden_size / heads, RoPE bases, epsilons, biases, tied and untied heads, single and sharded files.
"""

from __future__ import annotations

import math
import random
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from against_transformers import BLOCK, LogitsRecorder, check, compare, prompts_for, true_logits
from tiny import make_checkpoint

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL

NUM_CONFIGS = 24


def draw_config(seed: int) -> dict:
    """Shapes of one random model. Group size, tying, biases and sharding go round with the seed; the rest is drawn."""
    rng = random.Random(seed)
    group = seed % 8 + 1
    kv_heads = rng.choice([1, 2, 3])
    return {
        "vocab_size": rng.choice([131, 199, 97, 256, 513]),
        "hidden_size": rng.choice([40, 48, 56, 36]),
        "intermediate_size": rng.choice([77, 80, 96, 51]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": rng.choice([8, 10, 16, 24]),
        "rope_theta": float(round(10 ** rng.uniform(4, 6))),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": seed % 2 == 0,
        "attention_bias": seed % 3 == 0,
        "max_shard_size": "30KB" if seed % 4 >= 2 else "5GB",
    }


CONFIGS = [draw_config(seed) for seed in range(NUM_CONFIGS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """seed -> (folder, transformers' float32 model), made once."""

    @cache
    def make(seed: int) -> tuple[Path, transformers.PreTrainedModel]:
        folder = make_checkpoint(tmp_path_factory.mktemp("model"), seed=seed, **CONFIGS[seed])
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return folder, model

    return make


@pytest.mark.parametrize("seed", range(NUM_CONFIGS))
def test_logits_and_greedy_tokens_equal_transformers(seed, checkpoint):
    folder, model = checkpoint(seed)
    prompts = prompts_for(seed, CONFIGS[seed]["vocab_size"])
    nums = [9, 4, 6, 3, 7, 5]
    with LLM(folder, device="cpu", kvcache_block_size=BLOCK) as llm:
        recorder = LogitsRecorder(llm)
        batched = check(model, llm, recorder, prompts, nums, alone=False)
        alone = check(model, llm, recorder, prompts, nums, alone=True)
        llm.scheduler.check_integrity()
    assert [out["token_ids"] for out in alone] == [out["token_ids"] for out in batched]
    # The second run finds all full blocks of the first; at least the last prompt token is computed again.
    cached = [out["metrics"]["prefix_cached_tokens"] for out in alone]
    assert cached == [(len(prompt) - 1) // BLOCK * BLOCK for prompt in prompts]

    # Five blocks and chunks of at most six tokens: sequences are split, and lose their blocks and start again.
    with LLM(
        folder,
        device="cpu",
        kvcache_block_size=BLOCK,
        num_kvcache_blocks=5,
        max_num_seqs=4,
        max_num_batched_tokens=6,
    ) as llm:
        recorder = LogitsRecorder(llm)
        tight = check(
            model, llm, recorder, [prompts[2], prompts[2][:15], prompts[1], prompts[3]], [20, 19, 18, 17], False
        )
        assert sum(out["metrics"]["preemptions"] for out in tight) > 0
        check(model, llm, recorder, prompts[3:], [3, 4, 5], alone=False)
        llm.scheduler.check_integrity()


def test_the_embedded_model_equals_transformers():
    model = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()
    with LLM(device="cpu") as llm:
        texts = ["Once upon a time", "The", "Once upon a time there was a little dog. " * 4]
        prompts = [llm.tokenizer.encode(text) for text in texts]
        recorder = LogitsRecorder(llm)
        nums = [6, 8, 7]
        params = [SamplingParams(temperature=0, max_tokens=num, ignore_eos=True) for num in nums]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        compare(model, recorder, prompts, nums, outputs)


def test_the_drawn_configurations_cover_what_they_should():
    def values(key):
        return {config[key] for config in CONFIGS}

    assert len({tuple(sorted(config.items())) for config in CONFIGS}) == NUM_CONFIGS >= 24
    assert {c["num_attention_heads"] // c["num_key_value_heads"] for c in CONFIGS} == set(range(1, 9))
    assert values("tie_word_embeddings") == values("attention_bias") == {True, False}
    assert {131, 513} <= values("vocab_size") and 40 in values("hidden_size") and 77 in values("intermediate_size")
    assert sum(c["head_dim"] * c["num_attention_heads"] != c["hidden_size"] for c in CONFIGS) >= 20
    thetas = [math.log10(theta) for theta in values("rope_theta")]
    assert min(thetas) < 4.3 and max(thetas) > 5.7
    assert values("max_shard_size") == {"30KB", "5GB"} and 1e-2 in values("rms_norm_eps")


def test_sharded_configurations_really_have_several_files(checkpoint):
    sharded = [checkpoint(seed)[0] for seed in range(NUM_CONFIGS) if CONFIGS[seed]["max_shard_size"] == "30KB"]
    counts = [len(list(folder.glob("model-*.safetensors"))) for folder in sharded]
    assert len(counts) >= 8 and min(counts) >= 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("seed", [1, 6, 11])
def test_half_precision_is_as_close_to_the_truth_as_transformers(dtype, seed, checkpoint):
    """Both round; so both are compared with the float32 model that has the same (rounded) weights."""
    folder, _ = checkpoint(seed)
    torch_dtype = getattr(torch, dtype)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype).eval()
    truth = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype).float().eval()
    prompts = prompts_for(seed, CONFIGS[seed]["vocab_size"])
    with LLM(folder, device="cpu", dtype=dtype) as llm:
        recorder = LogitsRecorder(llm)
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)
        assert llm.model_runner.model.lm_head.weight.dtype == torch_dtype
    whole = [prompt + output["token_ids"] for prompt, output in zip(prompts, outputs, strict=True)]
    ours, theirs, scale = [], [], 0.0
    for context, logits in recorder.rows:
        ids = next(ids for ids in whole if ids[: len(context)] == context)
        want = true_logits(truth, ids)[len(context) - 1]
        scale = max(scale, want.abs().max().item())
        ours.append((logits.float() - want).abs().max().item())
        theirs.append((true_logits(peer, ids)[len(context) - 1].float() - want).abs().max().item())
    tolerance = {"bfloat16": 4e-2, "float16": 5e-3}[dtype]
    assert max(ours) < tolerance * scale
    assert sum(ours) / len(ours) < 1.3 * sum(theirs) / len(theirs)


def test_auto_dtype_on_a_cpu_is_float32_whatever_the_checkpoint_says(checkpoint, tmp_path):
    folder, _ = checkpoint(0)
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    with LLM(tmp_path, device="cpu") as llm:
        weight = llm.model_runner.model.model.embed_tokens.weight
        assert llm.model_config.dtype == "bfloat16" and weight.dtype == torch.float32
        assert torch.equal(weight, half.model.embed_tokens.weight.float())
