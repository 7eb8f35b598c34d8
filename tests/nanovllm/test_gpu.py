"""The engine on a GPU, compared with transformers on the same GPU. Skipped where there is none."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny import make_checkpoint, random_prompts, reference_greedy

from nanovllm import LLM, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GREEDY = SamplingParams(temperature=0, max_tokens=48)
BACKENDS = ["reference", "triton"] + ["flash_attn"] * bool(importlib.util.find_spec("flash_attn"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    # float16 and bfloat16 kernels want head_dim >= 32; the rest stays tiny.
    return make_checkpoint(
        tmp_path_factory.mktemp("gpu"), head_dim=64, hidden_size=128, num_attention_heads=8, num_key_value_heads=2
    )


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 24, "max_num_seqs": 8},
        {"num_kvcache_blocks": 14},
        {"kvcache_block_size": 64, "enable_prefix_caching": False},
    ],
    ids=["default", "chunks", "preemption", "block64"],
)
def test_greedy_tokens_equal_transformers_in_float32(checkpoint, backend, settings):
    prompts = random_prompts(10, 1, 70, seed=1)
    prompts += [prompts[3] + prompts[4], prompts[3] + prompts[5]]  # shared prefixes
    expected = reference_greedy(checkpoint, prompts, 48)
    with LLM(checkpoint, device="cuda", dtype="float32", attention_backend=backend, **settings) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        llm.scheduler.check_integrity()
    assert [output["token_ids"] for output in outputs] == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_logprobs_are_close_to_float32(checkpoint, backend):
    """In bfloat16 near-ties may fall differently, so the log probabilities of given tokens are compared instead."""
    prompts = random_prompts(12, 5, 90, seed=2)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
    with LLM(checkpoint, device="cpu", dtype="float32") as llm:
        expected = llm.generate(prompts, params, use_tqdm=False)
    settings = {"device": "cuda", "dtype": "bfloat16", "attention_backend": backend, "num_kvcache_blocks": 64}
    with LLM(checkpoint, **settings) as llm:
        got = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1, logprobs=20), use_tqdm=False)
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        common = a["logprobs"][0].keys() & b["logprobs"][0].keys()
        assert len(common) >= 4
        worst = max(worst, *(abs(a["logprobs"][0][t] - b["logprobs"][0][t]) for t in common))
    assert worst < 0.15


def test_the_kv_cache_takes_what_the_setting_leaves(checkpoint):
    total = torch.cuda.get_device_properties(0).total_memory
    with LLM(checkpoint, device="cuda", dtype="bfloat16", gpu_memory_utilization=0.5) as llm:
        runner = llm.model_runner
        free, _ = torch.cuda.mem_get_info()
        cache = sum(layer.kv_cache.nbytes for layer in runner.model.attention_layers())
        assert cache == runner.num_kvcache_blocks * runner.block_bytes
        assert total - free <= 0.5 * total + 2**30
        assert cache > 0.3 * total
    torch.cuda.empty_cache()
    free_after, _ = torch.cuda.mem_get_info()
    assert free_after > free + 0.9 * cache


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("max_num_seqs", [1, 5, 20])
def test_graphs_give_the_tokens_of_eager(checkpoint, backend, max_num_seqs):
    """Batches of every size up to the largest, shrinking and refilled, also under preemption."""
    prompts = random_prompts(14, 2, 60, seed=5)
    params = [SamplingParams(temperature=0, max_tokens=4 + 5 * i) for i in range(14)]
    dtype = "bfloat16" if backend == "flash_attn" else "float32"
    settings = {"dtype": dtype, "attention_backend": backend, "max_num_seqs": max_num_seqs}
    settings["num_kvcache_blocks"] = 8 if backend == "flash_attn" else 24
    tokens = {}
    for eager in (True, False):
        with LLM(checkpoint, device="cuda", enforce_eager=eager, **settings) as llm:
            assert (llm.model_runner.graphs is None) is eager
            outputs = llm.generate(prompts, params, use_tqdm=False)
            tokens[eager] = [output["token_ids"] for output in outputs]
    if dtype == "float32":
        assert tokens[False] == tokens[True]
    else:
        # Padding changes the shape of the products, and so the rounding: a near-tie may fall differently in bfloat16.
        same = sum(a == b for a, b in zip(tokens[False], tokens[True], strict=True))
        assert same >= 10


def test_sampled_tokens_do_not_depend_on_batch_mates(checkpoint):
    prompts = random_prompts(6, 5, 40, seed=3)
    params = [SamplingParams(temperature=0.8, top_p=0.95, seed=i, max_tokens=24) for i in range(6)]
    with LLM(checkpoint, device="cuda", dtype="float32", num_kvcache_blocks=256) as llm:
        together = [o["token_ids"] for o in llm.generate(prompts, params, use_tqdm=False)]
        alone = [llm.generate([p], s, use_tqdm=False)[0]["token_ids"] for p, s in zip(prompts, params, strict=True)]
    assert together == alone
