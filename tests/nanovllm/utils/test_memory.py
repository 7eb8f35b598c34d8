"""KV-cache arithmetic against the bytes of real tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_checkpoint

from nanovllm import LLM
from nanovllm.engine.model_runner import largest_step
from nanovllm.utils.memory import kv_block_bytes, kv_bytes_per_token, num_kv_blocks


@given(
    layers=st.integers(1, 4),
    block_size=st.sampled_from([16, 64, 256]),
    kv_heads=st.integers(1, 4),
    head_dim=st.sampled_from([8, 10, 64]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    num_blocks=st.integers(1, 3),
)
def test_block_bytes_are_those_of_the_tensors(layers, block_size, kv_heads, head_dim, dtype, num_blocks):
    caches = [torch.empty(num_blocks, 2, kv_heads, block_size, head_dim, dtype=dtype) for _ in range(layers)]
    assert num_blocks * kv_block_bytes(layers, block_size, kv_heads, head_dim, dtype.itemsize) == sum(
        cache.nbytes for cache in caches
    )
    assert kv_block_bytes(layers, 1, kv_heads, head_dim, dtype.itemsize) == kv_bytes_per_token(
        layers, kv_heads, head_dim, dtype.itemsize
    )


def test_qwen3_0_6b_takes_112_kib_a_token():
    assert kv_bytes_per_token(num_layers=28, num_kv_heads=8, head_dim=128, itemsize=2) == 112 * 1024


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_allocates_what_it_says(tmp_path, dtype):
    folder = make_checkpoint(tmp_path, num_hidden_layers=3, num_key_value_heads=4, head_dim=10)
    with LLM(folder, device="cpu", dtype=dtype, cpu_kvcache_gib=2**-10, kvcache_block_size=32) as llm:
        runner = llm.model_runner
        caches = [layer.kv_cache for layer in runner.model.attention_layers()]
        assert [tuple(cache.shape) for cache in caches] == [(runner.num_kvcache_blocks, 2, 4, 32, 10)] * 3
        taken = sum(cache.nbytes for cache in caches)
        assert taken == runner.num_kvcache_blocks * runner.block_bytes
        assert 2**20 - runner.block_bytes < taken <= 2**20  # one MiB, to the last block that fits


def test_blocks_that_fit_on_a_gpu():
    gib = 2**30
    # 80 GiB, 90 % of it ours, 3 in use (2 of them weights); a step once took 5, so 3 more than now; 1 for graphs.
    blocks = num_kv_blocks(80 * gib, 0.9, used=3 * gib, peak=5 * gib, current=2 * gib, block_bytes=gib, reserved=gib)
    assert blocks == 72 - 3 - 3 - 1
    assert num_kv_blocks(80 * gib, 0.9, 3 * gib, 5 * gib, 2 * gib, block_bytes=4 * gib) == 66 // 4


@given(
    total=st.integers(1, 2**40),
    utilization=st.floats(0.01, 1.0),
    used=st.integers(0, 2**38),
    current=st.integers(0, 2**36),
    step=st.integers(0, 2**36),
    block_bytes=st.integers(1, 2**30),
    reserved=st.integers(0, 2**34),
)
def test_the_blocks_leave_room_for_a_step_and_no_block_more_would(
    total, utilization, used, current, step, block_bytes, reserved
):
    blocks = num_kv_blocks(total, utilization, used, current + step, current, block_bytes, reserved)
    rest = int(total * utilization) - used - step - reserved
    slack = 2**12  # total * utilization is rounded as a float
    if blocks > 0:
        assert blocks * block_bytes <= rest + slack
    assert (blocks + 1) * block_bytes > rest - slack


@given(num_tokens=st.integers(1, 20000), longest=st.integers(1, 5000), max_num_seqs=st.integers(1, 300))
def test_the_largest_step_fills_the_budget(num_tokens, longest, max_num_seqs):
    counts = largest_step(num_tokens, min(longest, num_tokens), max_num_seqs)
    assert 1 <= len(counts) <= max_num_seqs and 0 < min(counts) <= max(counts) <= longest
    assert sum(counts) == min(num_tokens, max_num_seqs * longest)
