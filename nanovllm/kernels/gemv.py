"""x W^T for one row of x, or two: the weight is read once, from the moment the kernel starts.

A single sequence decodes with a matrix-vector product for every weight: 2 operations a weight, so the time is the time to
read it. A general matrix product pays for starting up and for tiles that are mostly padding; here each program holds a few
rows of the weight in registers and multiplies them with x.

Idea: the weight does not depend on the kernel before this one. Launched early (see `launch`), the programs load their rows
first and only then wait for x, so most of the reading happens while the kernels before this one still run.

With `gated` a program holds rows of gate and the same rows of up, and writes silu(gate) * up.

Shapes: x (M, K), weight (N, K) -> (M, N); gated: weight (2N, K) -> (M, N). Bytes: itemsize * (N * K + M * K + M * N).
Compared with: float64.
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch
from nanovllm.kernels.silu_mul import silu_times

ELEMENTS = 8192
"""Numbers of the weight that a program holds."""


@triton.jit(do_not_specialize=["num_rows"])
def _gemv_kernel(
    x, weight, out, num_rows, x_stride,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    local = tl.arange(0, ROWS)
    if GATED:
        OUTPUTS: tl.constexpr = ROWS // 2
        output = tl.program_id(0) * OUTPUTS + local % OUTPUTS
        row = output + local // OUTPUTS * N
    else:
        OUTPUTS: tl.constexpr = ROWS
        output = tl.program_id(0) * OUTPUTS + local
        row = output
    column = tl.arange(0, COLUMNS)
    inside = column < K
    mask = (output < N)[:, None] & inside[None, :]
    weights = tl.load(weight + row.to(tl.int64)[:, None] * K + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    for m in range(num_rows):
        vector = tl.load(x + m * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        product = tl.sum(weights * vector[None, :], 1)
        if GATED:
            gate, up = product.reshape(2, OUTPUTS).permute(1, 0).split()
            product = silu_times(gate, up)
        tl.store(out + m * N + output, product.to(out.dtype.element_ty), mask=output < N)


def gemv(x: torch.Tensor, weight: torch.Tensor, gated: bool = False) -> torch.Tensor:
    """x (M, K), its last dimension contiguous, and weight (N, K), contiguous -> x weight^T (M, N), summed in float32.

    Args:
        gated: weight is (2N, K), gate above up, and the result silu(x gate^T) * (x up^T), (M, N).
    """
    num_rows, size = x.shape
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if weight.shape[1] != size or not weight.is_contiguous() or x.stride(-1) != 1:
        raise ValueError(
            f"weight must be contiguous with {size} columns and x's last dimension contiguous, got weight "
            f"{tuple(weight.shape)} with strides {weight.stride()} and x with strides {x.stride()}"
        )
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    columns = triton.next_power_of_2(size)
    rows = max(2 if gated else 1, ELEMENTS // columns)
    _gemv_kernel[(triton.cdiv(num_outputs, rows // 2 if gated else rows),)](
        x, weight, out, num_rows, x.stride(0),
        N=num_outputs, K=size, ROWS=rows, COLUMNS=columns, GATED=gated, num_warps=4 if columns <= 8192 else 8, **early_launch(x),
    )  # fmt: skip
    return out
