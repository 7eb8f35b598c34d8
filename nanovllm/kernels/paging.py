"""Where the tokens of a paged sequence lie in the KV cache: the address arithmetic that both attention kernels share.

A layer's cache is (num_blocks, 2, KV, block_size, D). Position p of a sequence lies in block `table[p // block_size]`
at offset `p % block_size`, so one token's key is D contiguous elements and one block's keys of one head are
block_size * D contiguous elements. A tile of positions that fits inside one block needs a single table entry.
"""

import triton
import triton.language as tl


@triton.jit
def token_offsets(table, first, length, stride_block, stride_token, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Cache offsets (TILE), in elements, of the positions first .. first + TILE - 1; `first` is a multiple of TILE.

    Offsets of positions at or past `length` are meaningless; the caller masks their loads. They are 64-bit, since a
    layer's cache may hold more than 2**31 elements.
    """
    inside = tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        block = tl.load(table + first // BLOCK_SIZE).to(tl.int64)
        return block * stride_block + (first % BLOCK_SIZE + inside) * stride_token
    else:
        positions = first + inside
        block = tl.load(table + positions // BLOCK_SIZE, mask=positions < length, other=0).to(tl.int64)
        return block * stride_block + (positions % BLOCK_SIZE) * stride_token
