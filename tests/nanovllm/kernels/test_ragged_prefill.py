"""Prefill attention against float64, with the cache's unowned slots and the output poisoned with NaN."""

import pytest
import torch
from oracle import random_case, relative_error

from nanovllm.kernels.ragged_prefill import PrefillConfig, prefill_flops, ragged_prefill
from nanovllm.kernels.store_kv import store_kv

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SMALL = PrefillConfig(rows=16, tile=16, warps=4, stages=2)


def run(case, config=None):
    expected, _ = case.expected()
    store_kv(case.k, case.v, case.kv_cache, case.metadata.slot_mapping)
    out = torch.full(case.q.shape, float("nan"), dtype=case.q.dtype, device=case.q.device)
    meta = case.metadata
    args = (case.q, case.kv_cache, meta.block_tables, meta.query_start, meta.context_lens, case.scale)
    ragged_prefill(*args, first_seq=meta.num_decodes, out=out, config=config)
    assert out[: meta.num_decodes].isnan().all(), "rows of decodes belong to another kernel"
    return out[meta.num_decodes :], expected[meta.num_decodes :]


@pytest.mark.parametrize("group", range(1, 9))
def test_every_group_size(group, device):
    case = random_case([(19, 19), (5, 40), (2, 2)], group=group, kv_heads=2, seed=group, device=device)
    out, expected = run(case, SMALL)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_block_size(block_size, dtype, device):
    case = random_case([(33, 33), (3, 67)], block_size=block_size, dtype=dtype, seed=block_size, device=device)
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
def test_every_head_dim(head_dim, device):
    case = random_case([(20, 31)], head_dim=head_dim, kv_heads=1, device=device)
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("cached", [0, 1, 15, 16, 17, 48])
def test_a_chunk_sees_its_prefix_and_no_future_token(cached, device):
    """Chunked prefill and prefix hits: the mask follows positions, not rows."""
    case = random_case([(21, 21 + cached), (16, 16 + cached)], seed=cached, device=device)
    out, expected = run(case, SMALL)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


def test_first_row_of_a_fresh_prompt_is_its_own_value(device):
    """Position 0 sees itself only, so its output is its value, exactly: an oracle that shares no code."""
    case = random_case([(9, 9), (4, 4)], group=2, kv_heads=2, device=device)
    out, _ = run(case, SMALL)
    for start in (0, 9):
        assert torch.allclose(out[start], case.v[start].repeat_interleave(2, dim=0), rtol=1e-6, atol=1e-6)


def test_decodes_in_front_are_left_alone(device):
    case = random_case([(1, 30), (1, 4), (1, 64), (18, 50), (2, 9)], padding=2, device=device)
    assert case.metadata.num_decodes == 5
    out, expected = run(case, SMALL)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


def test_more_sequences_than_one_pass_of_the_search_reads(device):
    lengths = [(2 + i % 3, 2 + i % 5 + i % 3) for i in range(140)]
    case = random_case(lengths, kv_heads=1, group=1, head_dim=16, seed=5, device=device)
    out, expected = run(case, SMALL)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


def test_large_scores_neither_overflow_nor_lose_the_maximum(device):
    case = random_case([(50, 90)], seed=6, device=device)
    case.scale = 30.0
    out, expected = run(case, SMALL)
    assert relative_error(out, expected) < 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_random_ragged_batches(seed, device):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    lengths = []
    for _ in range(draw(1, 6)):
        query_len = draw(1, 50)
        lengths.append((query_len, query_len + draw(0, 2) * draw(1, 60)))
    lengths.append((7, 20))
    block_size = [16, 32, 64, 256][seed % 4]
    dtype = [torch.float32, torch.float16][seed % 2]
    case = random_case(lengths, group=draw(1, 9), block_size=block_size, dtype=dtype, seed=seed, device=device)
    out, expected = run(case, SMALL if seed % 3 else None)
    assert relative_error(out, expected) < TOLERANCE[dtype]


def test_operations_of_a_small_case_counted_by_hand():
    # 2 new tokens on a context of 5: the first sees 4 keys, the second 5; two products of 2 * D operations each.
    assert prefill_flops([2], [5], q_heads=3, head_dim=8) == 9 * 3 * 2 * (2 * 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block_size", [16, 256])
def test_real_shapes(dtype, block_size):
    lengths = [(1, 300), (1000, 1000), (257, 900), (33, 2000), (2, 2), (128, 128)]
    case = random_case(
        lengths, kv_heads=8, group=2, head_dim=128, block_size=block_size, dtype=dtype, padding=3, device="cuda"
    )
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[dtype]
