"""The flash_attn backend: its errors everywhere, its results where the package and a GPU are present.

The package's own arithmetic is not ours to test. What we pass to it is, so without a GPU a stand-in with the package's
two signatures (plain PyTorch, from their documentation) takes its place.
"""

import sys
import types

import pytest
import torch
from oracle import random_case, relative_error

from nanovllm.attention.flash_attn import FlashAttention

ALLOWED = {"block_size": 256, "head_dim": 128, "dtype": torch.bfloat16, "device": torch.device("cuda")}


def paged(cache, table, length):
    """(num_blocks, page, KV, D), one sequence's table -> (length, KV, D)."""
    page = cache.shape[1]
    return cache[table[: -(-length // page)].long()].flatten(0, 1)[:length].double()


def causal_attention(q, k, v, scale):
    """q (n, H, D), k and v (m, KV, D): the mask is aligned to the bottom right, as flash-attn 2.1 and later do."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) * scale
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(k.shape[0] - q.shape[0])
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, block_table
):
    assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[0] == cu_seqlens_k[0] == 0
    assert max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k >= cu_seqlens_k.diff().max()
    assert k.stride(-1) == v.stride(-1) == 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for b in range(len(block_table)):
        rows = slice(int(cu_seqlens_q[b]), int(cu_seqlens_q[b + 1]))
        length = int(cu_seqlens_k[b + 1] - cu_seqlens_k[b])
        keys, values = paged(k, block_table[b], length), paged(v, block_table[b], length)
        out[rows] = causal_attention(q[rows], keys, values, softmax_scale).to(q.dtype)
    return out


def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, causal):
    assert cache_seqlens.dtype == torch.int32 and q.dim() == 4
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for b, length in enumerate(cache_seqlens.tolist()):
        if length:
            keys, values = paged(k_cache, block_table[b], length), paged(v_cache, block_table[b], length)
            out[b] = causal_attention(q[b], keys, values, softmax_scale).to(q.dtype)
    return out


@pytest.fixture
def stand_in(monkeypatch):
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    package.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([(1, 300), (1, 7)], id="decodes only"),
        pytest.param([(12, 12), (30, 290)], id="prefill only"),
        pytest.param([(1, 50), (12, 12), (1, 257), (3, 20)], id="mixed"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the real package is tested below")
def test_what_the_package_is_given(lengths, stand_in):
    case = random_case(lengths, block_size=256, dtype=torch.float16, padding=2)
    expected, cache = case.expected()
    out = FlashAttention()(case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    assert out.shape == case.q.shape and out.dtype == case.q.dtype
    assert torch.equal(case.kv_cache.nan_to_num(7.0), cache.nan_to_num(7.0))
    assert relative_error(out, expected) < 1e-3


def test_a_missing_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ImportError, match=r"needs the flash-attn package.*choose \"triton\""):
        FlashAttention()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("block_size", 16),
        ("block_size", 0),
        ("block_size", 384),
        ("head_dim", 100),
        ("head_dim", 264),
        ("dtype", torch.float32),
        ("device", torch.device("cpu")),
    ],
)
def test_check_names_what_it_refuses(argument, value, stand_in):
    with pytest.raises(ValueError, match=rf"^{argument} must be .*, got {value}"):
        FlashAttention().check(**ALLOWED | {argument: value})
    FlashAttention().check(**ALLOWED)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_real_shapes(dtype):
    pytest.importorskip("flash_attn")
    lengths = [(1, 300), (1, 1000), (500, 500), (64, 900), (2, 2)]
    case = random_case(lengths, kv_heads=8, head_dim=128, block_size=256, dtype=dtype, device="cuda")
    case.kv_cache.nan_to_num_(0.0)  # the package multiplies masked weights by what lies in a page's unused slots
    expected, _ = case.expected()
    out = FlashAttention()(case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    assert relative_error(out, expected) < 1e-2
