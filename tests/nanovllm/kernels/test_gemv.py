"""The matrix-vector product against float64."""

import pytest
import torch
from products import check, operands

from nanovllm.kernels.gemv import gemv


@pytest.mark.parametrize(("outputs", "size"), [(1, 1), (7, 5), (256, 640), (130, 1024), (9, 3072), (3, 9000)])
@pytest.mark.parametrize("rows", [1, 2])
def test_equals_float64(rows, outputs, size, device):
    check(gemv, *operands(rows, outputs, size, torch.float32, device))


@pytest.mark.parametrize(("outputs", "size"), [(2, 1), (14, 5), (256, 640), (18, 3072), (6, 9000)])
def test_gate_and_up(outputs, size, device):
    check(gemv, *operands(1, outputs, size, torch.float32, device), gated=True)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_half_precision_is_summed_in_float32(dtype, device):
    check(gemv, *operands(1, 64, 4096, dtype, device))


def test_rows_of_a_wider_tensor(device):
    x, weight = operands(2, 33, 100, torch.float32, device)
    check(gemv, torch.cat([x, x], dim=1)[:, 100:], weight)


def test_shapes_that_do_not_fit_are_refused_by_name(device):
    x, weight = operands(1, 8, 16, torch.float32, device)
    with pytest.raises(ValueError, match="weight must be contiguous with 16 columns"):
        gemv(x, weight[:, :8])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("outputs", "size"), [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (6144, 4096)])
def test_real_shapes(outputs, size):
    check(gemv, *operands(1, outputs, size, torch.bfloat16, "cuda"))
    check(gemv, *operands(1, outputs, size, torch.bfloat16, "cuda"), gated=True)
