"""Which kernel a linear layer takes, and that each computes the same product."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from nanovllm.layers import linear
from nanovllm.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from nanovllm.utils.context import TensorParallel

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
SIZE, HALF = 256, 32


def filled(layer: linear.LinearBase, fused: bool) -> linear.LinearBase:
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) / SIZE**0.5).half()
    layer.fused = fused
    return layer


def gate_up(fused: bool, bias: bool = False) -> MergedColumnParallelLinear:
    layer = MergedColumnParallelLinear(SIZE, {"gate": HALF, "up": HALF}, bias=bias, tp=TensorParallel())
    return filled(layer, fused)


def inputs(rows: int) -> torch.Tensor:
    return torch.randn((rows, SIZE), generator=torch.Generator().manual_seed(rows)).half()


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """The names of our kernels that ran, in order."""
    from nanovllm.kernels import gemv, skinny_linear

    names = []
    for module, name in ((gemv, "gemv"), (skinny_linear, "skinny_linear")):
        kernel = getattr(module, name)

        def spy(*args, name=name, kernel=kernel, **kwargs):
            names.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    return names


@needs_triton
@pytest.mark.parametrize(("rows", "kernel"), [(1, ["gemv"]), (2, ["skinny_linear"]), (64, ["skinny_linear"]), (65, [])])
def test_few_rows_take_our_kernels(rows, kernel, taken):
    x, layer = inputs(rows), gate_up(fused=True)
    expected = F.linear(x.double(), layer.weight.double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=2e-3, atol=2e-3)
    assert taken == kernel
    if kernel:  # on a CPU the kernel of many rows is Triton's too, and is tested with its own
        gate, up = expected.chunk(2, dim=1)
        torch.testing.assert_close(layer.gated(x).double(), F.silu(gate) * up, rtol=2e-3, atol=2e-3)
        assert taken == kernel * 2


@needs_triton
def test_other_layers_take_pytorchs_product(taken):
    x = inputs(4)
    with_bias = gate_up(fused=True, bias=True)
    torch.testing.assert_close(with_bias(x), F.linear(x, with_bias.weight, with_bias.bias))
    narrow = filled(RowParallelLinear(SIZE, 40, bias=False, tp=TensorParallel()), fused=True)
    torch.testing.assert_close(narrow(x), F.linear(x, narrow.weight))
    plain = gate_up(fused=False)
    gate, up = F.linear(x, plain.weight).chunk(2, dim=1)
    torch.testing.assert_close(plain.gated(x), F.silu(gate) * up, rtol=2e-3, atol=2e-3)
    assert taken == []
