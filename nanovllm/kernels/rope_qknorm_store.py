"""Everything between the QKV projection and attention in one kernel: QK-norm, RoPE, and the store into the KV cache.

Idea: unfused, these are six operations that each read and write the heads; here one program a token reads the
projection's row once, norms and turns the query and key heads in registers, writes queries to a dense tensor and keys
and values straight into their cache slot. Nobody reads the keys again except attention, from the cache.

RoPE turns the pair (x[i], x[i + D/2]), so each head is held as two halves.

Shapes: qkv (T, H + 2KV, D), positions (T), table (max_positions, D) in float32 (D/2 cosines, then D/2 sines),
q_weight and k_weight (D), kv_cache (num_blocks, 2, KV, block_size, D), slot_mapping (T) -> q (T, H, D).
Bytes: 2 * T * (H + 2KV) * D * itemsize, the row in and its three parts out, plus T * (4 * D + 12) for the table's
rows, positions and slots.
Compared with: the same three steps in float64, one after the other.
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch


@triton.jit
def _rope_qknorm_store_kernel(
    qkv, positions, table, q_weight, k_weight, q_out, cache, slot_mapping, eps,
    qkv_stride_token, qkv_stride_head, stride_block, stride_value, stride_head, stride_token,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    HALF: tl.constexpr = D // 2
    head = tl.arange(0, ROWS)[:, None]
    dim = tl.arange(0, COLUMNS)[None, :]
    inside = dim < HALF
    place = qkv + token * qkv_stride_token + head * qkv_stride_head + dim
    mask = (head < H + 2 * KV) & inside
    # What does not come from the kernel before this one is read before the wait for it.
    angles = table + tl.load(positions + token).to(tl.int64) * D + dim
    cos = tl.load(angles, mask=inside, other=0.0)
    sin = tl.load(angles + HALF, mask=inside, other=0.0)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if NORM:
        is_query = head < H
        q_first = tl.load(q_weight + dim, mask=inside, other=0.0)
        k_first = tl.load(k_weight + dim, mask=inside, other=0.0)
        q_second = tl.load(q_weight + HALF + dim, mask=inside, other=0.0)
        k_second = tl.load(k_weight + HALF + dim, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    raw_first = tl.load(place, mask=mask, other=0.0)
    raw_second = tl.load(place + HALF, mask=mask, other=0.0)
    first = raw_first.to(tl.float32)
    second = raw_second.to(tl.float32)

    if NORM:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        inverse = tl.rsqrt(square / D + eps)[:, None]
        first = first * inverse * tl.where(is_query, q_first, k_first).to(tl.float32)
        second = second * inverse * tl.where(is_query, q_second, k_second).to(tl.float32)
    turned_first = (first * cos - second * sin).to(q_out.dtype.element_ty)
    turned_second = (second * cos + first * sin).to(q_out.dtype.element_ty)

    queries = q_out + token * (H * D) + head * D + dim
    tl.store(queries, turned_first, mask=mask & (head < H))
    tl.store(queries + HALF, turned_second, mask=mask & (head < H))

    if slot >= 0:
        home = cache + (slot // BLOCK_SIZE) * stride_block + (slot % BLOCK_SIZE) * stride_token
        is_key = (head >= H) & (head < H + KV)
        keys = home + (head - H) * stride_head + dim
        tl.store(keys, turned_first.to(cache.dtype.element_ty), mask=mask & is_key)
        tl.store(keys + HALF, turned_second.to(cache.dtype.element_ty), mask=mask & is_key)
        values = home + stride_value + (head - H - KV) * stride_head + dim
        tl.store(values, raw_first.to(cache.dtype.element_ty), mask=mask & (head >= H + KV))
        tl.store(values + HALF, raw_second.to(cache.dtype.element_ty), mask=mask & (head >= H + KV))


def rope_qknorm_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Norms and turns the query and key heads of qkv (T, H + 2KV, D), stores keys and values, returns q (T, H, D).

    Args:
        positions: (T) int32 or int64, each below max_positions.
        table: (max_positions, D) float32, contiguous: D/2 cosines, then D/2 sines, as RotaryEmbedding keeps them.
        q_weight, k_weight: (D), or both None for models without QK-norm.
        kv_cache: (num_blocks, 2, KV, block_size, D). slot_mapping: (T), -1 stores nothing.

    Raises:
        ValueError: only one weight is given, a shape does not fit, or D is odd.
    """
    tokens, heads, head_dim = qkv.shape
    kv_heads, block_size = kv_cache.shape[2:4]
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight must both be given, or both be None")
    if head_dim % 2 or kv_cache.shape[-1] != head_dim:
        raise ValueError(f"head_dim must be even and the cache's ({kv_cache.shape[-1]}), got {head_dim}")
    if table.shape[-1] != head_dim or table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(f"table must be contiguous float32 (max_positions, {head_dim}), got {tuple(table.shape)}")
    if qkv.stride(-1) != 1:
        raise ValueError(f"qkv must have a contiguous last dimension, got strides {qkv.stride()}")
    q_heads = heads - 2 * kv_heads
    q_out = torch.empty((tokens, q_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if tokens == 0:
        return q_out
    stride_block, stride_value, stride_head, stride_token, _ = kv_cache.stride()
    rows = triton.next_power_of_2(heads)
    _rope_qknorm_store_kernel[(tokens,)](
        qkv, positions, table, q_weight, k_weight, q_out, kv_cache, slot_mapping, eps,
        qkv.stride(0), qkv.stride(1), stride_block, stride_value, stride_head, stride_token,
        H=q_heads, KV=kv_heads, D=head_dim, ROWS=rows, COLUMNS=triton.next_power_of_2(head_dim // 2), BLOCK_SIZE=block_size, NORM=q_weight is not None,
        num_warps=min(max(rows * head_dim // 1024, 1), 8), **early_launch(qkv),
    )  # fmt: skip
    return q_out
