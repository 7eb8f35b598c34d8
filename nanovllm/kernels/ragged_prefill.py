"""Prefill attention: chunks of many new tokens a sequence over its paged context, causal.

Idea: a tile of query rows stays on chip while tiles of keys and values stream past it, with the online softmax
(FlashAttention, arXiv 2205.14135). Three things differ from the textbook kernel:
- Ragged: sequences bring different numbers of new tokens, one after the other and unpadded. Sequence b's query tiles
  are numbered from query_start[b] // TOKENS + b, which leaves room for its last, partial tile, grows with b and needs
  no prefix sum. A program finds its sequence by counting the sequences that start at or before its number; a number
  that falls into the spare room exits.
- Chunked: query row i of sequence b sits at position context_lens[b] - query_len[b] + i. It sees the positions up to
  its own, those of earlier chunks and of cached prefixes included.
- Grouped: the rows of a tile are (token, query head of the group) pairs, so a KV head is read once for its group.

Shapes: q (T, H, D), kv_cache (num_blocks, 2, KV, block_size, D), query_start (B+1), block_tables (B, max_blocks),
context_lens (B) -> (T, H, D).
Operations: 4 * D * H for each (query, visible key) pair, see `prefill_flops`.
Compared with: float64 attention, sequence by sequence (tests/nanovllm/attention/oracle.py).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from nanovllm.kernels.paged_decode import LOG2_E
from nanovllm.kernels.paging import tile_blocks, tile_offsets


class PrefillConfig(NamedTuple):
    """Tuning knobs. rows: (token, head) pairs a query tile; tile: keys a tile; warps, stages: Triton's."""

    rows: int
    tile: int
    warps: int
    stages: int


# By bytes of one key row (head_dim * itemsize). Rows of 512 bytes and more are mostly fp32, which has no tensor cores
# at full precision: small tiles keep the unrolled products, and so compile time, short.
CONFIGS = {
    256: PrefillConfig(rows=64, tile=64, warps=4, stages=3),
    512: PrefillConfig(rows=32, tile=16, warps=4, stages=2),
    1024: PrefillConfig(rows=16, tile=16, warps=4, stages=1),
}


def default_config(head_dim: int, itemsize: int) -> PrefillConfig:
    """The measured configuration for rows of head_dim * itemsize bytes."""
    return CONFIGS[max(256, head_dim * itemsize)]


def prefill_flops(query_lens: list[int], context_lens: list[int], q_heads: int, head_dim: int) -> int:
    """Floating-point operations of the two products, over the visible (query, key) pairs only."""
    pairs = sum(n * c - n * (n - 1) // 2 for n, c in zip(query_lens, context_lens))
    return 4 * head_dim * q_heads * pairs


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def _prefill_kernel(
    q, cache, block_tables, query_start, context_lens, out,
    first_seq, num_seqs, scale_log2,
    q_stride_token, q_stride_head, stride_block, stride_value, stride_head, stride_token, table_stride,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    head = tl.program_id(1)
    first_row = tl.load(query_start + first_seq)
    seq = first_seq - 1
    for chunk in range(first_seq, num_seqs, 128):
        seqs = chunk + tl.arange(0, 128)
        starts = tl.load(query_start + seqs, mask=seqs < num_seqs, other=0)
        numbers = (starts - first_row) // TOKENS + seqs - first_seq
        seq += tl.sum(((numbers <= number) & (seqs < num_seqs)).to(tl.int32))
    row_start = tl.load(query_start + seq)
    query_len = tl.load(query_start + seq + 1) - row_start
    length = tl.load(context_lens + seq)
    first_token = (number - (row_start - first_row) // TOKENS - (seq - first_seq)) * TOKENS
    if first_token >= query_len:
        return

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    token = first_token + rows // G
    q_head = head * G + rows % G
    row_mask = ((rows < TOKENS * G) & (token < query_len))[:, None]
    position = length - query_len + token
    q_row = (row_start + token).to(tl.int64)
    query = tl.load(
        q + (q_row * q_stride_token + q_head * q_stride_head)[:, None] + dims[None, :], mask=row_mask, other=0.0
    )
    head_cache = cache + head * stride_head
    table = block_tables + seq.to(tl.int64) * table_stride
    visible = tl.minimum(length, length - query_len + first_token + TOKENS)

    top = tl.full([ROWS], -1.0e30, tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    blocks = tile_blocks(table, 0, visible, BLOCK_SIZE, TILE)
    for first in range(0, visible, TILE):
        key_position = first + tl.arange(0, TILE)
        valid = key_position < visible
        offsets = tile_offsets(blocks, first, stride_block, stride_token, BLOCK_SIZE, TILE)
        blocks = tile_blocks(table, first + TILE, visible, BLOCK_SIZE, TILE)
        place = head_cache + offsets[:, None] + dims[None, :]
        key = tl.load(place, mask=valid[:, None], other=0.0)
        value = tl.load(place + stride_value, mask=valid[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        seen = (key_position[None, :] <= position[:, None]) & valid[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        rescale = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        norm = norm * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        top = new_top

    out_row = q_row * (KV * G) + q_head
    tl.store(
        out + out_row[:, None] * D + dims[None, :],
        (acc / tl.maximum(norm, 1.0e-30)[:, None]).to(out.dtype.element_ty),
        mask=row_mask,
    )


def ragged_prefill(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    first_seq: int = 0,
    out: torch.Tensor | None = None,
    config: PrefillConfig | None = None,
) -> torch.Tensor:
    """Causal attention of ragged query chunks over their paged contexts, q (T, H, D) -> (T, H, D).

    Args:
        q: (T, H, D), the last dimension contiguous.
        kv_cache: (num_blocks, 2, KV, block_size, D); the new tokens' keys and values are already in it.
        block_tables: (B, max_blocks) int32. query_start: (B+1) int32. context_lens: (B) int32.
        scale: multiplies the scores, usually D ** -0.5.
        first_seq: sequences before it are left out, and so are their rows of `out`. Each of them has one token.
        out: (T, H, D) contiguous, written in place where given.
    """
    num_tokens, q_heads, head_dim = q.shape
    kv_heads, block_size = kv_cache.shape[2:4]
    group = q_heads // kv_heads
    num_seqs = context_lens.shape[0]
    config = config or default_config(head_dim, kv_cache.element_size())
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    rows = max(config.rows, triton.next_power_of_2(group))
    tokens = rows // group
    # Rows before first_seq are its decodes, one a sequence, so they never exceed num_tokens.
    tiles = (num_tokens - first_seq) // tokens + num_seqs - first_seq
    if tiles <= 0:
        return out
    stride_block, stride_value, stride_head, stride_token, _ = kv_cache.stride()
    _prefill_kernel[(tiles, kv_heads)](
        q, kv_cache, block_tables, query_start, context_lens, out,
        first_seq, num_seqs, scale * LOG2_E,
        q.stride(0), q.stride(1), stride_block, stride_value, stride_head, stride_token, block_tables.stride(0),
        KV=kv_heads, G=group, D=head_dim, BLOCK_SIZE=block_size, TILE=config.tile, ROWS=rows, TOKENS=tokens,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out
