"""RMSNorm, alone and with the residual addition, against float64."""

import pytest
import torch

from nanovllm.kernels.rms_norm import add_rms_norm, rms_norm

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def expected_norm(x, weight, eps):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def inputs(shape, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator), torch.randn(shape, generator=generator) * 3]
    weight = torch.rand(shape[-1], generator=generator) + 0.5
    return [tensor.to(dtype).to(device) for tensor in (*draw, weight)]


@pytest.mark.parametrize("shape", [(1, 16), (5, 96), (3, 1024), (2, 7, 128), (2, 2560)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_plain(shape, dtype, device):
    x, _, weight = inputs(shape, dtype, device)
    out = rms_norm(x, weight, 1e-6)
    assert out.shape == x.shape and out.dtype == dtype
    torch.testing.assert_close(out.double(), expected_norm(x, weight, 1e-6), rtol=TOLERANCE[dtype], atol=1e-6)


def test_rows_of_a_wider_tensor(device):
    wide, _, weight = inputs((6, 80), torch.float32, device)
    x = wide[:, 16:48]
    torch.testing.assert_close(rms_norm(x, weight[:32], 1e-6).double(), expected_norm(x, weight[:32], 1e-6), rtol=1e-6, atol=1e-6)  # fmt: skip


def test_epsilon_rules_a_row_of_tiny_numbers(device):
    x, _, weight = inputs((2, 64), torch.float32, device)
    x *= 1e-4
    torch.testing.assert_close(rms_norm(x, weight, 1e-3).double(), expected_norm(x, weight, 1e-3), rtol=1e-6, atol=0)
    assert rms_norm(torch.zeros_like(x), weight, 1e-6).abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 16), (5, 96), (3, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_addition_updates_the_residual_and_norms_the_sum(shape, dtype, device):
    x, residual, weight = inputs(shape, dtype, device)
    total = x + residual
    before = x.clone()
    out = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total) and torch.equal(x, before)
    torch.testing.assert_close(out.double(), expected_norm(total, weight, 1e-6), rtol=TOLERANCE[dtype], atol=1e-6)


def test_errors_name_the_argument(device):
    x, residual, weight = inputs((4, 32), torch.float32, device)
    with pytest.raises(ValueError, match="weight must have shape"):
        rms_norm(x, weight[:16], 1e-6)
    with pytest.raises(ValueError, match="residual must be contiguous"):
        add_rms_norm(x, residual[:2], weight, 1e-6)
    with pytest.raises(ValueError, match="x must have a contiguous last dimension"):
        rms_norm(torch.empty_strided((4, 32), (1, 4), device=device), weight, 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_real_shapes(dtype):
    x, residual, weight = inputs((8192, 1024), dtype, "cuda")
    total = x + residual
    out = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    torch.testing.assert_close(out.double(), expected_norm(total, weight, 1e-6), rtol=TOLERANCE[dtype], atol=1e-5)
