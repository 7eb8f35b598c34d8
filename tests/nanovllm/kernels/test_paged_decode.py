"""Decode attention against float64, with the cache's unowned slots and the output poisoned with NaN."""

import pytest
import torch
from oracle import random_case, relative_error

from nanovllm.kernels import paged_decode as module
from nanovllm.kernels.paged_decode import DecodeConfig, decode_bytes, paged_decode
from nanovllm.kernels.store_kv import store_kv

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def run(case, config=None, slack=0):
    """Output and expected output; `slack` loosens the bound on contexts, as a captured graph does."""
    expected, _ = case.expected()
    store_kv(case.k, case.v, case.kv_cache, case.metadata.slot_mapping)
    out = torch.full(case.q.shape, float("nan"), dtype=case.q.dtype, device=case.q.device)
    bound = case.metadata.max_context_len + slack
    args = (case.q, case.kv_cache, case.metadata.block_tables, case.metadata.context_lens, case.scale, bound)
    paged_decode(*args, out=out, config=config)
    return out, expected


@pytest.mark.parametrize("group", range(1, 9))
def test_every_group_size(group, device):
    case = random_case([(1, 70), (1, 3), (1, 129)], group=group, kv_heads=2, seed=group, device=device)
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_block_size(block_size, dtype, device):
    lengths = [(1, n) for n in (block_size, block_size + 1, 1, 97)]
    case = random_case(lengths, block_size=block_size, dtype=dtype, seed=block_size, device=device)
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
def test_every_head_dim(head_dim, device):
    case = random_case([(1, 50), (1, 21)], head_dim=head_dim, kv_heads=1, device=device)
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("programs", [1, 2, 3, 5, 8, 13, 64])
def test_shares_that_cut_sequences_anywhere_merge_to_the_same(programs, device, monkeypatch):
    """The number of programs only moves the cuts: from one program for all to more programs than tiles."""
    monkeypatch.setattr(module, "INTERPRETER_SMS", programs)
    monkeypatch.setattr(module, "WHOLE", 1)
    case = random_case([(1, 100), (1, 1), (1, 64), (1, 31), (1, 17)], kv_heads=2, seed=programs, device=device)
    out, expected = run(case, DecodeConfig(tile=16, programs_per_sm=1, warps=4, stages=2), slack=1000)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


def test_one_long_sequence_is_cut_into_many_partials(device, monkeypatch):
    monkeypatch.setattr(module, "INTERPRETER_SMS", 40)
    monkeypatch.setattr(module, "WHOLE", 1)
    case = random_case([(1, 700)], kv_heads=1, group=3, seed=4, device=device)
    out, expected = run(case, DecodeConfig(tile=16, programs_per_sm=1, warps=4, stages=2))
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("lengths", "sms", "programs"),
    [
        ([16 * 8] * 3, 2, 6),  # 8 tiles a pair of (sequence, KV head) stay whole
        ([16 * 9] * 3, 2, 6),  # would be cut, but the grid has no more programs
        ([16 * 9] * 3, 4, 12),
        ([16 * 8], 24, 12),  # one sequence alone: cut for half of the multiprocessors
        ([16 * 3], 24, 6),  # and no further than into tiles
        ([0, 0, 5], 2, 6),
    ],
)
def test_little_work_is_shared_by_few(lengths, sms, programs, device, monkeypatch):
    if device != "cpu":
        pytest.skip("the number of multiprocessors is the GPU's")
    monkeypatch.setattr(module, "INTERPRETER_SMS", sms)
    monkeypatch.setattr(module, "WHOLE", 8 * 16)
    config = DecodeConfig(tile=16, programs_per_sm=3, warps=4, stages=2)
    cache = torch.zeros(1, 2, 2, 16, 16)
    plan = module.plan_decode(torch.tensor(lengths, dtype=torch.int32), cache, 1024, config).tolist()
    total = 2 * sum(max(-(-n // 16), 1) for n in lengths)
    assert plan[0][4:6] == [total, programs]
    assert [row[:2] for row in plan[:programs]] == [
        [p * total // programs, (p + 1) * total // programs] for p in range(programs)
    ]
    assert all(row[:2] == [0, 0] for row in plan[programs:])


def test_more_sequences_than_one_pass_of_the_search_reads(device):
    lengths = [(1, 1 + 7 * i % 40) for i in range(150)]
    case = random_case(lengths, kv_heads=1, group=1, head_dim=16, seed=5, device=device)
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


def test_padding_rows_give_zeros_and_disturb_nobody(device):
    case = random_case([(1, 40), (1, 90)], padding=5, device=device)
    out, expected = run(case)
    assert (out[2:] == 0).all()
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


def test_large_scores_neither_overflow_nor_lose_the_maximum(device):
    """Scores of several hundred, rising along the context: each tile must rescale what came before."""
    case = random_case([(1, 150), (1, 80)], seed=6, device=device)
    case.scale = 30.0
    out, expected = run(case)
    assert relative_error(out, expected) < 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_random_ragged_batches(seed, device):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 7, (1,), generator=generator))
    lengths = [(1, n) for n in torch.randint(1, 160, (count,), generator=generator).tolist()]
    group = int(torch.randint(1, 9, (1,), generator=generator))
    block_size = [16, 32, 64, 256][seed % 4]
    dtype = [torch.float32, torch.float16][seed % 2]
    case = random_case(
        lengths, group=group, block_size=block_size, dtype=dtype, padding=seed % 3, seed=seed, device=device
    )
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[dtype]


def test_bytes_of_a_small_case_counted_by_hand():
    # Two sequences of 3 and 5 tokens, 1 KV head, 2 query heads, D 4, 2 bytes: 8 keys and 8 values, 4 rows in and out.
    assert decode_bytes([3, 5], q_heads=2, kv_heads=1, head_dim=4, itemsize=2) == (8 + 8 + 4 + 4) * 4 * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block_size", [16, 256])
def test_real_shapes(dtype, block_size):
    lengths = [(1, 100 + 61 * i % 925) for i in range(128)]
    case = random_case(
        lengths, kv_heads=8, group=2, head_dim=128, block_size=block_size, dtype=dtype, padding=3, device="cuda"
    )
    out, expected = run(case)
    assert relative_error(out, expected) < TOLERANCE[dtype]
