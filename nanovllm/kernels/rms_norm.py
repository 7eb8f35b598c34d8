"""RMSNorm, alone and fused with the residual addition before it.

Idea: a row fits in one program's registers, so it is read once, squared and summed, scaled, and written. Between two
layers the model adds the layer's output to the residual stream and norms the sum; unfused, the sum goes to memory and
comes back. Fused, it is written once (the next addition needs it) and normed while it is still in registers.

Shapes: x and residual (..., N), weight (N) -> (..., N).
Bytes for R rows: rms_norm 2 * R * N * itemsize; add_rms_norm 4 * R * N * itemsize (x and residual in, sum and output
out; 5 unfused); the weight comes from the L2 cache.
Compared with: y = x / sqrt(mean(x^2) + eps) * weight in float64. The sum is rounded to its dtype before it is normed,
as the unfused pair does, so both see the same residual stream.
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch


@triton.jit
def _rms_norm_kernel(
    x, residual, weight, out, stride, eps, N: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < N
    scale = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        place = residual + row * N + column
        total = value + tl.load(place, mask=mask, other=0.0).to(tl.float32)
        rounded = total.to(residual.dtype.element_ty)
        tl.store(place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / N + eps)
    scaled = value * inverse * scale
    tl.store(out + row * N + column, scaled.to(out.dtype.element_ty), mask=mask)


def _launch(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    size = x.shape[-1]
    if weight.shape != (size,):
        raise ValueError(f"weight must have shape ({size},), got {tuple(weight.shape)}")
    rows = x.reshape(-1, size)
    if rows.stride(-1) != 1:
        raise ValueError(f"x must have a contiguous last dimension, got strides {x.stride()}")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.shape[0]:
        block = triton.next_power_of_2(size)
        _rms_norm_kernel[(rows.shape[0],)](
            rows, rows if residual is None else residual, weight, out, rows.stride(0), eps,
            N=size, BLOCK=block, ADD=residual is not None, num_warps=min(max(block // 512, 1), 8), **early_launch(x),
        )  # fmt: skip
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., N), weight (N) -> x / sqrt(mean(x^2) + eps) * weight, computed in float32."""
    return _launch(x, None, weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Adds x (..., N) to residual (..., N) in place and returns the normed sum.

    Raises:
        ValueError: residual is not contiguous or has another shape than x.
    """
    if residual.shape != x.shape or not residual.is_contiguous():
        raise ValueError(
            f"residual must be contiguous and have x's shape {tuple(x.shape)}, "
            f"got {tuple(residual.shape)} with strides {residual.stride()}"
        )
    return _launch(x, residual, weight, eps)
