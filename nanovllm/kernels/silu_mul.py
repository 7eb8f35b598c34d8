"""The gate of the MLP: silu(gate) * up in one pass.

Idea: an elementwise kernel is as fast as the bytes it moves. PyTorch's two operations write silu(gate) and read it
back; here both halves of a row are read once and the product is written once.

Shapes: gate_up (T, 2I), gate and up side by side -> (T, I). Bytes: 3 * T * I * itemsize (5 unfused).
Compared with: silu in float64.
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch

BLOCK = 1024


@triton.jit
def silu_times(gate, up):
    """silu(gate) * up, of float32 blocks of one shape; for products that end with the gate, too."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _silu_mul_kernel(gate_up, out, stride, I: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < I
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(gate_up + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + I + column, mask=mask, other=0.0).to(tl.float32)
    product = silu_times(gate, up)
    tl.store(out + row * I + column, product.to(out.dtype.element_ty), mask=mask)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up (T, 2I), the last dimension contiguous -> silu(gate) * up (T, I), computed in float32."""
    tokens, width = gate_up.shape
    if width % 2 or gate_up.stride(-1) != 1:
        raise ValueError(
            f"gate_up must have an even, contiguous last dimension, got {tuple(gate_up.shape)}, {gate_up.stride()}"
        )
    size = width // 2
    out = torch.empty((tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        _silu_mul_kernel[(tokens, triton.cdiv(size, BLOCK))](
            gate_up, out, gate_up.stride(0), I=size, BLOCK=BLOCK, **early_launch(out)
        )
    return out
