"""The compiled RMSNorm and RoPE next to float64 PyTorch, on inputs with the strides that the model gives them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nanovllm.kernels import cpu_fused
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
