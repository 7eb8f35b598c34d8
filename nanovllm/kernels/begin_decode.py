"""From the positions of the running sequences to what the step's layers need, in one launch.

Idea: while a sequence decodes, everything about its next step follows from its position: the context is one longer, the
slot is where its block table puts the position. Computed on the device, none of it is uploaded, and a CUDA graph that
begins with this kernel moves every sequence on by one token each time it is replayed.

Shapes: positions (B) int32, -1 in padding rows; block_tables (B, max_blocks) int32
-> step_positions, context_lens, slots (B) int32; positions is moved on by one in place, where it is not -1.
Bytes: 24 * B. Compared with: the same arithmetic in Python (tests/nanovllm/kernels/test_begin_decode.py).
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch

ROWS = 128


@triton.jit(do_not_specialize=["num_rows"])
def _begin_decode_kernel(
    positions, block_tables, step_positions, context_lens, slots, num_rows, table_stride,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()  # and no early start for the next kernel: later ones read all this without waiting
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    position = tl.load(positions + row, mask=mask, other=-1)
    live = mask & (position >= 0)
    block = tl.load(block_tables + row.to(tl.int64) * table_stride + position // BLOCK_SIZE, mask=live, other=0)
    tl.store(step_positions + row, tl.maximum(position, 0), mask=mask)
    tl.store(context_lens + row, position + 1, mask=mask)
    tl.store(slots + row, tl.where(live, block * BLOCK_SIZE + position % BLOCK_SIZE, -1), mask=mask)
    tl.store(positions + row, position + 1, mask=live)


def begin_decode(
    positions: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
    step_positions: torch.Tensor,
    context_lens: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Fills step_positions, context_lens and slots (B) of a decode step, and moves positions (B) on.

    A padding row (position -1) gets position 0, context length 0 and slot -1: it reads nothing and writes nothing.
    """
    num_rows = len(positions)
    _begin_decode_kernel[(triton.cdiv(num_rows, ROWS),)](
        positions, block_tables, step_positions, context_lens, slots, num_rows, block_tables.stride(0),
        BLOCK_SIZE=block_size, ROWS=ROWS, num_warps=4, **early_launch(positions),
    )  # fmt: skip
