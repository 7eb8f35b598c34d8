"""The MLP's gate against float64."""

import pytest
import torch

from nanovllm.kernels.silu_mul import silu_mul

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def expected(gate_up):
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("shape", [(1, 2), (3, 200), (2, 2048), (2, 6146)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_float64(shape, dtype, device):
    gate_up = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4).to(dtype).to(device)
    out = silu_mul(gate_up)
    assert out.shape == (shape[0], shape[1] // 2) and out.dtype == dtype
    torch.testing.assert_close(out.double(), expected(gate_up), rtol=TOLERANCE[dtype], atol=1e-6)


def test_rows_of_a_wider_tensor(device):
    gate_up = torch.randn((4, 300), generator=torch.Generator().manual_seed(1)).to(device)[:, 50:250]
    torch.testing.assert_close(silu_mul(gate_up).double(), expected(gate_up), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's numpy; exp(200) is inf on purpose
def test_gates_far_from_zero_neither_overflow_nor_give_nan(device):
    gate_up = torch.tensor([[-200.0, 200.0, -90.0, 0.0, 3.0, 3.0, 3.0, 3.0]], device=device)
    assert torch.allclose(silu_mul(gate_up), torch.tensor([[0.0, 600.0, 0.0, 0.0]], device=device), atol=1e-6)


def test_an_odd_width_is_refused_by_name(device):
    with pytest.raises(ValueError, match="gate_up must have an even"):
        silu_mul(torch.zeros((2, 5), device=device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_real_shapes():
    gate_up = torch.randn((8192, 6144), device="cuda").bfloat16()
    torch.testing.assert_close(silu_mul(gate_up).double(), expected(gate_up), rtol=8e-3, atol=1e-6)
