"""The compiled loops between the matrix products next to float64 PyTorch, on inputs with the strides that the model gives them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from nanovllm.attention import AttentionMetadata, get_backend
from nanovllm.attention.reference import ReferenceAttention
from nanovllm.kernels import cpu_fused
from nanovllm.layers.activation import silu_and_mul
from nanovllm.layers.attention import Attention
from nanovllm.layers.norm import RMSNorm
from nanovllm.layers.rotary import RotaryEmbedding, apply_rotary


def heads(tokens: int, num_heads: int, head_dim: int) -> torch.Tensor:
    """(T, heads, D) as a slice of a fused projection: not contiguous."""
    generator = torch.Generator().manual_seed(tokens)
    fused = torch.randn(tokens, (num_heads + 2) * head_dim, generator=generator)
    return fused.view(tokens, num_heads + 2, head_dim).split([1, num_heads, 1], dim=1)[1]


def norm(size: int, eps: float = 1e-6) -> RMSNorm:
    module = RMSNorm(size, eps)
    module.weight.data.copy_(torch.linspace(-1, 2, size))
    return module


@pytest.fixture
def counted(monkeypatch):
    """The names of the compiled functions that were called."""
    calls = []

    def count(name):
        original = getattr(cpu_fused, name)
        monkeypatch.setattr(cpu_fused, name, lambda *args: calls.append(name) or original(*args))

    count("rms_norm")
    count("apply_rotary")
    return calls


@pytest.mark.parametrize("tokens", [0, 1, 16, 301])
@pytest.mark.parametrize("size", [1, 6, 32, 33, 256])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm_equals_float64(tokens, size, scale, eps, counted):
    module = norm(size, eps)
    for x in (torch.randn(tokens, size) * scale, heads(tokens, 3, size).mul_(scale)):
        expected = F.rms_norm(x.double(), (size,), module.weight.double(), eps)
        torch.testing.assert_close(cpu_fused.rms_norm(x, module.weight, eps).double(), expected, rtol=2e-6, atol=1e-9)
        torch.testing.assert_close(module(x).double(), expected, rtol=2e-6, atol=1e-9)
    assert counted


@pytest.mark.parametrize("tokens", [0, 1, 16, 301])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 2), (3, 20), (8, 32), (4, 128)])
def test_rotary_equals_float64(tokens, num_heads, head_dim):
    rotary = RotaryEmbedding(head_dim, theta=10000.0, max_positions=512)
    cos, sin = rotary.lookup(torch.randint(0, 512, (tokens,)), torch.float32)
    x = heads(tokens, num_heads, head_dim)
    # Equation 34 of the RoFormer paper as complex numbers, in the half-split layout.
    pairs = torch.complex(x[..., : head_dim // 2].double(), x[..., head_dim // 2 :].double())
    turned = pairs * torch.complex(cos.double(), sin.double())
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    for view in (x, x.contiguous()):
        torch.testing.assert_close(cpu_fused.apply_rotary(view, cos, sin).double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(apply_rotary(view, cos, sin).double(), expected, rtol=1e-6, atol=1e-6)


def turned(x: torch.Tensor, weight: torch.Tensor | None, eps: float, positions: torch.Tensor) -> torch.Tensor:
    """QK-norm and RoPE of x (T, heads, D) in float64, theta 10,000."""
    size = x.shape[-1]
    x = x.double() if weight is None else F.rms_norm(x.double(), (size,), weight.double(), eps)
    frequencies = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = positions.double()[:, None, None] * frequencies
    pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("contexts", [[1], [5, 17, 64], [33, 2, 40, 16]])
@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize(("num_heads", "kv_heads", "head_dim"), [(8, 4, 32), (3, 1, 20), (2, 2, 128)])
def test_a_layers_attention_equals_float64(normed, contexts, decodes, num_heads, kv_heads, head_dim):
    """Decodes find earlier tokens in the cache; prefills bring all their tokens."""
    torch.manual_seed(sum(contexts))
    counts = [1] * len(contexts) if decodes else contexts
    lens, num_tokens, eps = torch.tensor(contexts, dtype=torch.int32), sum(counts), 1e-2
    positions = torch.cat([torch.arange(n - count, n) for n, count in zip(contexts, counts, strict=True)])
    tables = torch.randperm(4 * len(contexts)).int().view(len(contexts), 4)
    owner = torch.arange(len(contexts)).repeat_interleave(torch.tensor(counts))
    slots = (tables[owner, positions // 16] * 16 + positions % 16).int()
    start = torch.tensor([0, *counts]).cumsum(0).int()
    cache = torch.randn(4 * len(contexts), 2, kv_heads, 16, head_dim)
    before = cache.double()
    qkv = torch.randn(num_tokens, num_heads + 2 * kv_heads, head_dim)
    q_norm, k_norm = (norm(head_dim, eps), norm(head_dim, eps)) if normed else (None, None)
    if normed:
        k_norm.weight.data.neg_()
    layer = Attention(num_heads, kv_heads, head_dim, get_backend("numba"))
    layer.kv_cache = cache
    metadata = AttentionMetadata(start, lens, tables, slots, decodes * len(contexts), max(counts), max(contexts))
    rotary = RotaryEmbedding(head_dim, 10000.0, 128).step(positions, torch.float32, True)
    assert layer.backend.fuses(qkv)
    out = layer.attend_fused(qkv, rotary, metadata, q_norm, k_norm)

    q, k, v = qkv.split([num_heads, kv_heads, kv_heads], dim=1)
    q = turned(q, q_norm and q_norm.weight, eps, positions)
    before[slots // 16, 0, :, slots % 16] = turned(k, k_norm and k_norm.weight, eps, positions)
    before[slots // 16, 1, :, slots % 16] = v.double()
    torch.testing.assert_close(cache.double(), before, rtol=2e-5, atol=2e-5)
    expected = torch.empty_like(q)
    ReferenceAttention().prefill(q, before, dataclasses.replace(metadata, num_decodes=0), head_dim**-0.5, expected)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=5e-5)


def test_slot_minus_one_stores_nothing():
    cache = torch.randn(2, 2, 1, 16, 4)
    before, qkv = cache.clone(), torch.randn(2, 3, 4).numpy()
    rotary, q = RotaryEmbedding(4, 10000.0, 8), torch.empty(2, 1, 4)
    slots, weight = torch.tensor([-1, 3], dtype=torch.int32), cpu_fused.NO_WEIGHT
    arrays = torch.arange(2).numpy(), rotary.table.numpy(), cache.numpy(), slots.numpy(), q.numpy()
    cpu_fused.qknorm_rope_store(qkv, weight, weight, 0.0, *arrays)
    changed = (cache != before).any(dim=-1).nonzero().tolist()
    assert changed == [[0, 0, 0, 3], [0, 1, 0, 3]]


@pytest.mark.parametrize("tokens", [0, 1, 16, 301])
@pytest.mark.parametrize("size", [1, 6, 33, 256])
def test_add_and_norm_equal_float64(tokens, size):
    module = norm(size, 1e-2)
    x, residual = torch.randn(tokens, size), torch.randn(tokens, size)
    total = x.double() + residual.double()
    normed, added = module.after_add(x, residual)
    torch.testing.assert_close(added.double(), total, rtol=1e-6, atol=1e-6)
    expected = F.rms_norm(total, (size,), module.weight.double(), 1e-2)
    torch.testing.assert_close(normed.double(), expected, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("tokens", [0, 1, 16, 301])
@pytest.mark.parametrize("size", [1, 6, 33, 640])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 1e3])
def test_silu_times_up_equals_float64(tokens, size, scale):
    gate_up = torch.randn(tokens, 2 * size) * scale
    gate, up = gate_up.double().chunk(2, dim=-1)
    # Below -87 the exponential stays at e^-87, where silu is nothing.
    torch.testing.assert_close(silu_and_mul(gate_up).double(), F.silu(gate) * up, rtol=5e-6, atol=1e-30)
    gate_up[:, 0] = float("nan")
    assert silu_and_mul(gate_up)[:, 0].isnan().all()


def test_nan_stays_visible():
    x = torch.randn(3, 32)
    x[1, 5] = float("nan")
    assert torch.equal(norm(32)(x).isnan().all(dim=-1), torch.tensor([False, True, False]))


def test_the_layers_take_the_loops_only_where_they_serve(counted):
    module = norm(32)
    module(torch.randn(4, 32))
    assert counted == ["rms_norm"]
    module(torch.randn(4, 32, requires_grad=True)).sum().backward()
    module.to(torch.bfloat16)(torch.randn(4, 32).bfloat16())
    module.to("meta")(torch.randn(4, 32, device="meta").bfloat16())
    norm(32).double()(torch.randn(4, 32))
    assert counted == ["rms_norm"]


def test_large_tensors_are_left_to_several_threads(monkeypatch):
    large, small = torch.empty(cpu_fused.PARALLEL_FROM), torch.empty(cpu_fused.PARALLEL_FROM - 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert cpu_fused.serves(small) and not cpu_fused.serves(large)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert cpu_fused.serves(small) and cpu_fused.serves(large)
