"""Where the tokens of a paged sequence lie in the KV cache: the address arithmetic that both attention kernels share.

A layer's cache is (num_blocks, 2, KV, block_size, D). Position p of a sequence lies in block `table[p // block_size]`
at offset `p % block_size`, so one token's key is D contiguous elements and one block's keys of one head are
block_size * D contiguous elements. A tile of positions that fits inside one block needs a single table entry.
"""

import triton
import triton.language as tl


@triton.jit
def tile_blocks(table, first, length, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Blocks of the positions first .. first + TILE - 1: one number where a tile fits inside a block, else (TILE).

    `first` is a multiple of TILE. Past `length` the answer is meaningless, but the table is not read there.
    """
    if BLOCK_SIZE % TILE == 0:
        return tl.load(table + first // BLOCK_SIZE, mask=first < length, other=0)
    else:
        positions = first + tl.arange(0, TILE)
        return tl.load(table + positions // BLOCK_SIZE, mask=positions < length, other=0)


@triton.jit
def tile_offsets(blocks, first, stride_block, stride_token, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Cache offsets (TILE), in elements, of those positions; 64-bit, as a layer may hold more than 2**31 elements."""
    inside = (first + tl.arange(0, TILE)) % BLOCK_SIZE
    return blocks.to(tl.int64) * stride_block + inside * stride_token
