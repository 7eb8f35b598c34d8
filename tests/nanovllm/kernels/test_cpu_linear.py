"""The product for few rows next to float64: every height of a tile, inputs of any stride, and nothing but the result written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanovllm.kernels.cpu_linear import LANES, PANEL, TILE_ROWS, linear, make_panels, multiply
from nanovllm.kernels.cpu_prefetch import LINE


def case(rows: int, num_inputs: int, num_outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, K) and W (N, K)."""
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, num_inputs, generator=generator), torch.randn(num_outputs, num_inputs, generator=generator)


def check(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert out.shape == expected.shape and out.dtype == torch.float32 and out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", range(3 * TILE_ROWS + 2))
@pytest.mark.parametrize(("num_inputs", "panels"), [(1, 1), (33, 3), (256, 2)])
def test_equals_float64(rows, num_inputs, panels):
    x, weight = case(rows, num_inputs, panels * PANEL)
    check(linear(x, make_panels(weight.numpy()), None), x, weight)


@pytest.mark.parametrize("rows", [1, 16, 300])
def test_bias_and_any_stride(rows):
    x, weight = case(rows, 40, 2 * PANEL)
    bias = torch.linspace(-3, 3, 2 * PANEL)
    check(linear(x, make_panels(weight.numpy()), bias), x, weight, bias)
    for strided in (x[:, 3:], x.T.contiguous().T, x[::2, ::2]):
        narrow = weight[:, : strided.shape[1]]  # not contiguous either
        check(linear(strided, make_panels(narrow.numpy()), None), strided, narrow)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    x, weight = case(2 * TILE_ROWS + 1, 64, PANEL)
    panels = make_panels(weight.numpy())
    together = linear(x, panels, None)
    for rows in range(1, len(x)):
        assert torch.equal(linear(x[-rows:], panels, None), together[-rows:])
    x[1] = torch.nan
    assert linear(x, panels, None).isnan().any(dim=1).tolist() == [row == 1 for row in range(len(x))]


def test_infinity_and_large_values_keep_their_meaning():
    x, weight = torch.ones(2, 3), torch.ones(PANEL, 3)
    x[0, 1], weight[0] = torch.inf, 2e38
    out = linear(x, make_panels(weight.numpy()), None)
    assert out[0].isinf().all() and out[1, 0].isinf() and (out[1, 1:] == 3).all()


def test_nothing_beside_the_result_is_written():
    x, weight = case(TILE_ROWS + 3, 16, PANEL)
    room = np.full((len(x) + 2, PANEL), 7, np.float32)
    multiply(x.numpy(), make_panels(weight.numpy()), room[1:-1])
    check(torch.from_numpy(room[1:-1].copy()), x, weight)
    assert (room[[0, -1]] == 7).all()


@pytest.mark.parametrize("panels", [1, 3, 40])
def test_panels_hold_every_weight_once_from_a_cache_line_on(panels):
    weight = np.arange(panels * PANEL * 5, dtype=np.float32).reshape(panels * PANEL, 5)
    laid_out = make_panels(weight)
    assert laid_out.shape == (panels, 5, PANEL) and laid_out.ctypes.data % LINE == 0 and laid_out.flags.c_contiguous
    assert LANES * 2 == PANEL and (laid_out.transpose(0, 2, 1).reshape(weight.shape) == weight).all()
