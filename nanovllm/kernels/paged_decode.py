"""Decode attention over the paged cache: one query token a sequence, and every byte of its context read once.

Idea 1, pack the group: all G query heads that share a KV head form one tile, padded to the 16 rows that a tensor-core
product needs, so keys and values are read once for the whole group.

Idea 2, even shares: decode attention does 2 * G operations a loaded byte or fewer, so its time is the time to read the
cache, and the work of a (sequence, KV head) is its length. Contexts of 100 to 1,024 tokens make that work ragged. So
contexts are cut into tiles of TILE tokens, all tiles are numbered (sequence by sequence, head by head), and program p
of P takes tiles p * total // P up to (p + 1) * total // P: shares differ by one tile at most, whatever the lengths.
A share may begin in the middle of one sequence and end in the middle of another.

Idea 3, merge what was cut: a program finishes every (sequence, head) that lies whole in its share. Of one that does
not it stores a partial: the normalized output and the log-sum-exp of its scores. A program has two partials at most,
one for the first sequence of its share (slot 0) and one for the last (slot 1). How many programs share a (sequence, head)
follows from the lengths, so each counts itself in when its partial is stored, and the last one merges them all.
Storing, counting and merging take as long as reading several tiles, so where there is little work fewer programs share
it: as if each (sequence, head) had the mean length and were cut into pieces of WHOLE tokens, or into more where half of
the multiprocessors would have none.

Idea 4, do not wait for what is known: who has which share follows from the lengths alone, which are the same in every
layer. So a small kernel plans it once a step, and the layers read the plan, and the block tables of their first tiles,
before they wait for the kernel that computes the queries. The next sequence's are read before the last one's are done.

The grid depends on the number of rows and on the largest context allowed, never on the lengths, which are read on the
device: a CUDA graph captured once serves every step. A sequence with no tokens (padding) owns one tile, with every
load masked, so its output row is written, with zeros.

Shapes: q (B, H, D), kv_cache (num_blocks, 2, KV, block_size, D), block_tables (B, max_blocks), context_lens (B)
-> (B, H, D). Query head h reads KV head h // (H // KV).
Bytes: see `decode_bytes`.
Compared with: float64 attention, sequence by sequence (tests/nanovllm/attention/oracle.py).
Online softmax: Milakov and Gimelshein, arXiv 1805.02867; even shares are Stream-K's, arXiv 2301.03598.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch
from nanovllm.kernels.paging import tile_blocks, tile_offsets

LOG2_E = 1.4426950408889634
INTERPRETER_SMS = 2
"""Multiprocessors that the interpreter plays."""
PLAN_WIDTH = 8
"""int32 numbers for each program; six are used."""
WHOLE = 512
"""Tokens that one program reads in less time than two programs and a merge."""
MERGED = 32
"""Partials times query heads that are merged at once. With more, the merge takes the registers of another program."""


class DecodeConfig(NamedTuple):
    """Tuning knobs. tile: tokens a tile; programs_per_sm: shares a multiprocessor; warps, stages: Triton's."""

    tile: int
    programs_per_sm: int
    warps: int
    stages: int


# By bytes of one key row (head_dim * itemsize). A program of one warp waits for no other warp, and eight of them keep a
# multiprocessor busy. Up to FEW (sequence, head) pairs it has a program or two: four warps are sooner done with a tile.
CONFIGS = {
    256: DecodeConfig(tile=16, programs_per_sm=8, warps=1, stages=2),
    512: DecodeConfig(tile=32, programs_per_sm=3, warps=4, stages=3),
    1024: DecodeConfig(tile=16, programs_per_sm=3, warps=4, stages=3),
}
FEW = 256
CONFIGS_OF_FEW = CONFIGS | {256: DecodeConfig(tile=32, programs_per_sm=4, warps=4, stages=3)}


def default_config(head_dim: int, itemsize: int, num_pairs: int) -> DecodeConfig:
    """The measured configuration for rows of head_dim * itemsize bytes and so many (sequence, KV head) pairs."""
    return (CONFIGS_OF_FEW if num_pairs <= FEW else CONFIGS)[max(256, head_dim * itemsize)]


def decode_bytes(context_lens: list[int], q_heads: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes that decode attention must move: keys and values once, queries in, outputs out. Partials are not counted."""
    return itemsize * head_dim * (2 * kv_heads * sum(context_lens) + 2 * q_heads * len(context_lens))


@triton.jit
def _num_tiles(context_lens, seqs, num_seqs, TILE: tl.constexpr):
    """Tiles of each of `seqs`; 0 past the last sequence."""
    lengths = tl.load(context_lens + seqs, mask=seqs < num_seqs, other=0)
    return tl.where(seqs < num_seqs, tl.maximum(tl.cdiv(lengths, TILE), 1), 0)


@triton.jit
def _tiles_before(context_lens, stop, num_seqs, TILE: tl.constexpr):
    """Tiles, of one head, of the sequences before `stop`."""
    tiles = 0
    for first in range(0, stop, 128):
        seqs = first + tl.arange(0, 128)
        tiles += tl.sum(tl.where(seqs < stop, _num_tiles(context_lens, seqs, num_seqs, TILE), 0))
    return tiles


@triton.jit
def _find_sequence(context_lens, tile, num_seqs, KV: tl.constexpr, TILE: tl.constexpr):
    """The sequence that owns tile number `tile`, and that sequence's first tile."""
    seq = 0
    start = 0
    counted = 0
    for first in range(0, num_seqs, 128):
        seqs = first + tl.arange(0, 128)
        tiles = KV * _num_tiles(context_lens, seqs, num_seqs, TILE)
        ends = counted + tl.cumsum(tiles, 0)
        before = (ends <= tile) & (seqs < num_seqs)
        seq += tl.sum(before.to(tl.int32))
        start += tl.sum(tl.where(before, tiles, 0))
        counted += tl.sum(tiles)
    return seq, start


@triton.jit
def _share_start(program, total, programs):
    return (program.to(tl.int64) * total // programs).to(tl.int32)


@triton.jit(do_not_specialize=["num_seqs"])
def _plan_kernel(
    context_lens, plan, num_seqs,
    KV: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, SMS: tl.constexpr, PLAN_WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()  # and no early start for the next kernel: it reads the plan without waiting
    total = KV * _tiles_before(context_lens, num_seqs, num_seqs, TILE)
    pairs = KV * num_seqs
    pieces = tl.maximum(tl.cdiv(total, pairs * WHOLE), SMS // 2 // pairs)  # of a pair of mean length
    programs = tl.minimum(tl.minimum(tl.num_programs(0), pairs * pieces), total)
    program = tl.program_id(0)
    share = plan + program * PLAN_WIDTH
    if program < programs:
        tile = _share_start(program, total, programs)
        seq, seq_start = _find_sequence(context_lens, tile, num_seqs, KV, TILE)
        tl.store(share, tile)
        tl.store(share + 1, _share_start(program + 1, total, programs))
        tl.store(share + 2, seq)
        tl.store(share + 3, seq_start)
        tl.store(share + 4, total)
        tl.store(share + 5, programs)
    else:  # more programs than tiles: an empty share
        tl.store(share, 0)
        tl.store(share + 1, 0)


@triton.jit
def _merge(
    part_out, part_lse, first_program, last_program, first_slot,
    G: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The attention (GROUP, D) of a (sequence, head) that these programs computed parts of, PARTS partials at a time."""
    heads = tl.arange(0, GROUP)
    top = tl.full([GROUP], -1.0e30, tl.float32)
    norm = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, D], tl.float32)
    for first in range(first_program, last_program + 1, PARTS):
        program = first + tl.arange(0, PARTS)
        slot = program * 2 + tl.where(program == first_program, first_slot, 0)
        row = slot[:, None] * G + heads[None, :]
        mask = (program <= last_program)[:, None] & (heads < G)[None, :]
        # Other programs wrote them: .cg reads past this multiprocessor's own cache.
        lse = tl.load(part_lse + row, mask=mask, other=-1.0e30, cache_modifier=".cg")
        place = part_out + row[:, :, None] * D + tl.arange(0, D)[None, None, :]
        partial = tl.load(place, mask=mask[:, :, None], other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(lse, 0))
        rescale = tl.exp2(top - new_top)
        weight = tl.exp2(lse - new_top[None, :])
        norm = norm * rescale + tl.sum(weight, 0)
        acc = acc * rescale[:, None] + tl.sum(weight[:, :, None] * partial, 0)
        top = new_top
    return acc / tl.maximum(norm, 1.0e-30)[:, None]


@triton.jit
def _decode_kernel(
    q, cache, block_tables, context_lens, plan, out, part_out, part_lse, counters,
    scale_log2,
    q_stride_seq, q_stride_head, stride_block, stride_value, stride_head, stride_token, table_stride,
    KV: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, PLAN_WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    share = plan + program * PLAN_WIDTH
    tile = tl.load(share)
    end = tl.load(share + 1)
    seq = tl.load(share + 2)
    seq_start = tl.load(share + 3)
    total = tl.load(share + 4)
    programs = tl.load(share + 5)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    row_mask = (rows < G)[:, None]
    share_first = tile
    length = tl.load(context_lens + seq, mask=tile < end, other=0)
    tiles = tl.maximum(tl.cdiv(length, TILE), 1)
    table = block_tables + seq.to(tl.int64) * table_stride
    blocks = tile_blocks(table, (tile - seq_start) % tiles * TILE, length, BLOCK_SIZE, TILE)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    while tile < end:
        head = (tile - seq_start) // tiles
        head_start = seq_start + head * tiles
        first = tile - head_start
        last = tl.minimum(end - head_start, tiles)

        q_rows = q + seq.to(tl.int64) * q_stride_seq + (head * G + rows)[:, None] * q_stride_head + dims[None, :]
        query = tl.load(q_rows, mask=row_mask, other=0.0)
        head_cache = cache + head * stride_head
        top = tl.full([ROWS], -1.0e30, tl.float32)  # running maximum; finite, so that a fully masked tile gives no NaN
        norm = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D], tl.float32)
        # Blocks are read one tile ahead: the loads below then depend on no other load of their iteration and pipeline deeper.
        for i in range(first, last):
            valid = i * TILE + tl.arange(0, TILE) < length
            offsets = tile_offsets(blocks, i * TILE, stride_block, stride_token, BLOCK_SIZE, TILE)
            blocks = tile_blocks(table, (i + 1) * TILE, length, BLOCK_SIZE, TILE)
            place = head_cache + offsets[:, None] + dims[None, :]
            key = tl.load(place, mask=valid[:, None], other=0.0)
            value = tl.load(place + stride_value, mask=valid[:, None], other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
            scores = tl.where(valid[None, :], scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            rescale = tl.exp2(top - new_top)
            weights = tl.exp2(scores - new_top[:, None])
            norm = norm * rescale + tl.sum(weights, 1)
            acc = acc * rescale[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            top = new_top

        # Where the next tiles lie is asked before this result is written.
        this_seq = seq
        tile = head_start + last
        whole = last - first == tiles
        if tile == seq_start + KV * tiles:
            seq_start = tile
            seq += 1
        next_length = tl.load(context_lens + seq, mask=tile < end, other=0)
        next_tiles = tl.maximum(tl.cdiv(next_length, TILE), 1)
        table = block_tables + seq.to(tl.int64) * table_stride
        blocks = tile_blocks(table, (tile - seq_start) % next_tiles * TILE, next_length, BLOCK_SIZE, TILE)

        result = acc / tl.maximum(norm, 1.0e-30)[:, None]
        out_head = out + (this_seq.to(tl.int64) * KV + head) * G * D
        if whole:
            tl.store(out_head + rows[:, None] * D + dims[None, :], result.to(out.dtype.element_ty), mask=row_mask)
        else:
            slot = program * 2 + (head_start > share_first).to(tl.int32)
            tl.store(part_out + (slot * G + rows)[:, None] * D + dims[None, :], result, mask=row_mask)
            tl.store(part_lse + slot * G + rows, top + tl.log2(norm), mask=rows < G)
            # Tile t belongs to the last program whose share starts at or before it: p * total < (t + 1) * programs.
            first_program = (((head_start + 1).to(tl.int64) * programs - 1) // total).to(tl.int32)
            last_program = (((head_start + tiles).to(tl.int64) * programs - 1) // total).to(tl.int32)
            counter = counters + this_seq * KV + head
            tl.debug_barrier()  # all of this program's stores come before it counts itself in
            arrived = tl.atomic_add(counter, 1, sem="acq_rel")
            if arrived == last_program - first_program:
                tl.store(counter, 0)  # for the next launch
                first_slot = (_share_start(first_program, total, programs) < head_start).to(tl.int32)
                merged = _merge(part_out, part_lse, first_program, last_program, first_slot, G, GROUP, D, PARTS)
                heads = tl.arange(0, GROUP)[:, None]
                tl.store(out_head + heads * D + dims[None, :], merged.to(out.dtype.element_ty), mask=heads < G)
        length = next_length
        tiles = next_tiles


def plan_decode(
    context_lens: torch.Tensor, kv_cache: torch.Tensor, max_context_len: int, config: DecodeConfig | None = None
) -> torch.Tensor:
    """Each program's share of the tiles, (programs, PLAN_WIDTH) int32: the same in all layers of a step.

    A row holds the share's first tile and its end, the sequence of the first tile, that sequence's first tile, the number
    of all tiles, and the number of programs that have a share. Programs without one have an empty share.
    """
    kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    num_seqs = len(context_lens)
    config = config or default_config(head_dim, kv_cache.element_size(), num_seqs * kv_heads)
    programs = num_seqs * kv_heads * max(triton.cdiv(max_context_len, config.tile), 1)
    sms = INTERPRETER_SMS
    if kv_cache.is_cuda:
        sms = torch.cuda.get_device_properties(kv_cache.device).multi_processor_count
    programs = min(sms * config.programs_per_sm, programs)
    plan = torch.empty((programs, PLAN_WIDTH), dtype=torch.int32, device=kv_cache.device)
    _plan_kernel[(programs,)](
        context_lens, plan, num_seqs,
        KV=kv_heads, TILE=config.tile, WHOLE=max(WHOLE // config.tile, 1), SMS=sms, PLAN_WIDTH=PLAN_WIDTH,
        num_warps=4, **early_launch(kv_cache),
    )  # fmt: skip
    return plan


def paged_decode(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    max_context_len: int,
    out: torch.Tensor | None = None,
    config: DecodeConfig | None = None,
    plan: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one query token a sequence over its paged context, q (B, H, D) -> (B, H, D).

    Args:
        q: (B, H, D), the last dimension contiguous.
        kv_cache: (num_blocks, 2, KV, block_size, D); the new tokens' keys and values are already in it.
        block_tables: (B, max_blocks) int32. context_lens: (B) int32.
        scale: multiplies the scores, usually D ** -0.5.
        max_context_len: at least the largest context; it only bounds the grid.
        out: (B, H, D) contiguous, written in place where given.
        plan: what `plan_decode` returned for the same lengths, for who calls often.
        counters: B * KV zeros or more, int32. They are zeros again afterwards, so that who calls often can keep them;
            calls that share them must not run at the same time.
    """
    num_seqs, q_heads, head_dim = q.shape
    kv_heads, block_size = kv_cache.shape[2:4]
    group = q_heads // kv_heads
    if counters is None:
        counters = torch.zeros(num_seqs * kv_heads, dtype=torch.int32, device=q.device)
    config = config or default_config(head_dim, kv_cache.element_size(), num_seqs * kv_heads)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out

    plan = plan_decode(context_lens, kv_cache, max_context_len, config) if plan is None else plan
    programs = len(plan)
    part_out = torch.empty((programs, 2, group, head_dim), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((programs, 2, group), dtype=torch.float32, device=q.device)

    stride_block, stride_value, stride_head, stride_token, _ = kv_cache.stride()
    _decode_kernel[(programs,)](
        q, kv_cache, block_tables, context_lens, plan, out, part_out, part_lse, counters,
        scale * LOG2_E,
        q.stride(0), q.stride(1), stride_block, stride_value, stride_head, stride_token, block_tables.stride(0),
        KV=kv_heads, G=group, GROUP=triton.next_power_of_2(group), D=head_dim, BLOCK_SIZE=block_size, TILE=config.tile,
        ROWS=max(16, triton.next_power_of_2(group)), PARTS=max(MERGED // triton.next_power_of_2(group), 1),
        PLAN_WIDTH=PLAN_WIDTH,
        num_warps=config.warps, num_stages=config.stages, **early_launch(q),
    )  # fmt: skip
    return out
