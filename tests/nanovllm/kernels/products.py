"""Matrix products against float64, for the kernels that compute them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def operands(rows: int, outputs: int, size: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """x (rows, size) and weight (outputs, size), whose products are about as large as x."""
    generator = torch.Generator().manual_seed(rows + outputs + size)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((rows, size), (outputs, size)))
    return [x.to(dtype).to(device), (weight / size**0.5).to(dtype).to(device)]


def check(kernel: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, gated: bool = False) -> None:
    """The kernel's product equals float64's within the rounding of its dtype."""
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[x.dtype]
    out = kernel(x, weight, gated)
    expected = x.double() @ weight.double().T
    if gated:
        gate, up = expected.chunk(2, dim=1)
        expected = F.silu(gate) * up
    assert out.shape == expected.shape and out.dtype == x.dtype
    assert (out.double() - expected).norm() <= tolerance * expected.norm()
