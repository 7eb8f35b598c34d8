"""The sum over the ranks fused with the residual addition and the RMSNorm that follow it, for few rows.

A row-parallel layer leaves each rank with a part of the sum. NCCL's all-reduce of a few rows takes microseconds however few
they are: it is a kernel of its own, which tells its peers that data is there, waits for theirs, and hands on through memory.

Idea 1, push: every rank has an inbox that its peers can write. A program sends its row of this rank's part to each peer, waits
until the peers' parts of the same row lie in its own inbox, adds them up, adds the residual, and norms: the sum never goes to
memory, and no program waits for another row.

Idea 2, the data is the signal: an empty place of the inbox holds EMPTY, the bits of -0.0, and a sender sends 0.0 for -0.0. So
a number that is not EMPTY has arrived, in whatever order numbers arrive. No flag follows the data, and no fence orders
the two. The reader puts EMPTY back.

Idea 3, two places are enough: calls take turns between them (parity 0 and 1). A rank that sends its call i + 2 has finished
call i + 1, so each peer has sent call i + 1, and a peer sends nothing before its call i is complete, places emptied. That
holds for any number of rows from call to call, and in a CUDA graph, where a call's parity is fixed: a graph has pairs.

Programs that wait hold their places on the multiprocessors. They cannot block each other: programs start in order of their
rows, and each sends before it waits, so the first row that is not done on some rank can always be done.

A lost peer would be waited for without end: `Inboxes.abort` sets a word that ends all waits, with sums that mean nothing.

Shapes: x, this rank's part (R, N), residual (R, N), weight (N) -> (R, N).
Bytes for R rows, n ranks: R * N * itemsize * (n - 1) to the peers and as many from them; here 4 * R * N * itemsize as
`add_rms_norm`, and 3 * (n - 1) * R * N * itemsize within the L2 cache: parts arrive, are read, are emptied.
Compared with: the sum of the parts, added to the residual and normed, in float64. Parts are added in float32 in the order of
the ranks, so all ranks have the same bits; sums are rounded where all-reduce and `add_rms_norm` round them.
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch
from nanovllm.utils.inboxes import EMPTY, Inboxes

NUMBERS_A_WARP = 512


@triton.jit
def _sum_add_rms_norm_kernel(
    x, residual, weight, out, inbox, addresses, aborted, stride, eps,
    RANK: tl.constexpr, SIZE: tl.constexpr, PARITY: tl.constexpr, MAX_ROWS: tl.constexpr, EMPTY: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < N
    BITS: tl.constexpr = inbox.dtype.element_ty
    scale = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    own = tl.load(x + row * stride + column, mask=mask, other=0.0)
    bits = own.to(BITS, bitcast=True)
    bits = tl.where(bits == EMPTY, 0, bits).to(BITS)
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            theirs = tl.multiple_of(tl.load(addresses + peer).to(tl.pointer_type(BITS)), 16)
            tl.store(theirs + ((PARITY * SIZE + RANK) * MAX_ROWS + row) * N + column, bits, mask=mask)

    before = tl.load(residual + row * N + column, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for peer in tl.static_range(SIZE):
        if peer == RANK:
            part = bits
        else:
            # Volatile: another GPU writes, so every load goes past this multiprocessor's own cache.
            place = inbox + ((PARITY * SIZE + peer) * MAX_ROWS + row) * N + column
            part = tl.load(place, mask=mask, other=0, volatile=True)
            missing = tl.max((part == EMPTY).to(tl.int32), 0)
            while missing != 0:
                part = tl.load(place, mask=mask, other=0, volatile=True)
                # The word goes through the maximum, so that all threads agree on whether to go on.
                waits = (part == EMPTY) & (tl.load(aborted, volatile=True) == 0)
                missing = tl.max(waits.to(tl.int32), 0)
            tl.store(place, tl.full([BLOCK], EMPTY, BITS), mask=mask)
        total += part.to(x.dtype.element_ty, bitcast=True).to(tl.float32)

    total = total.to(x.dtype.element_ty).to(tl.float32) + before
    rounded = total.to(residual.dtype.element_ty)
    tl.store(residual + row * N + column, rounded, mask=mask)
    value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / N + eps)
    tl.store(out + row * N + column, (value * inverse * scale).to(out.dtype.element_ty), mask=mask)


def sum_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, inboxes: Inboxes, parity: int
) -> torch.Tensor:
    """Adds the ranks' x (R, N) to residual (R, N) in place and returns the normed sum. All ranks call it together.

    Args:
        parity: 0 and 1 in turn from call to call.

    Raises:
        ValueError: `inboxes` do not serve x, or residual or weight do not fit it.
    """
    rows, size = x.shape
    if not inboxes.serves(x) or x.stride(1) != 1:
        raise ValueError(
            f"x must have up to {inboxes.max_rows} rows of {inboxes.width} contiguous {inboxes.dtype}, "
            f"got {tuple(x.shape)} {x.dtype} with strides {x.stride()}"
        )
    if residual.shape != x.shape or not residual.is_contiguous() or weight.shape != (size,):
        raise ValueError(
            f"residual must be contiguous and have x's shape {tuple(x.shape)}, and weight its last dimension, "
            f"got {tuple(residual.shape)} with strides {residual.stride()} and {tuple(weight.shape)}"
        )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    _sum_add_rms_norm_kernel[(rows,)](
        x, residual, weight, out, inboxes.mine, inboxes.addresses, inboxes.aborted, x.stride(0), eps,
        RANK=inboxes.rank, SIZE=inboxes.size, PARITY=parity, MAX_ROWS=inboxes.max_rows, EMPTY=EMPTY[inboxes.mine.dtype],
        N=size, BLOCK=block, num_warps=min(max(block // NUMBERS_A_WARP, 1), 16), **early_launch(x),
    )  # fmt: skip
    return out
