"""Scatter the step's new keys and values into the paged cache.

Idea: one program a token reads its slot, then copies the token's key row and value row (KV * D elements each) to
block slot // block_size, offset slot % block_size. Slot -1 is a padding row and writes nowhere, so that a CUDA graph
captured for 32 rows can serve 20.

Shapes: k and v (T, KV, D), any token and head stride; kv_cache (num_blocks, 2, KV, block_size, D); slot_mapping (T).
Bytes: 4 * T * KV * D * itemsize (key and value, each read once and written once) + 4 * T for the slots.
Compared with: a PyTorch index_put over the same slots (tests/nanovllm/kernels/test_store_kv.py); copies are exact.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _store_kv_kernel(
    k, v, cache, slot_mapping,
    k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    stride_block, stride_value, stride_head, stride_token,
    BLOCK_SIZE: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot >= 0:
        element = tl.arange(0, ROW)
        head = element // D
        dim = element % D
        mask = element < KV * D
        key = tl.load(k + token * k_stride_token + head * k_stride_head + dim, mask=mask)
        value = tl.load(v + token * v_stride_token + head * v_stride_head + dim, mask=mask)
        place = cache + (slot // BLOCK_SIZE) * stride_block + (slot % BLOCK_SIZE) * stride_token
        place += head * stride_head + dim
        tl.store(place, key, mask=mask)
        tl.store(place + stride_value, value, mask=mask)


def store_kv(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """Writes k and v (T, KV, D) into kv_cache (num_blocks, 2, KV, block_size, D) at slot_mapping (T), in place.

    Raises:
        ValueError: where the last dimension of k, v or kv_cache is not contiguous.
    """
    for name, tensor in (("k", k), ("v", v), ("kv_cache", kv_cache)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must have a contiguous last dimension, got strides {tensor.stride()}")
    num_tokens, kv_heads, head_dim = k.shape
    if num_tokens == 0:
        return
    stride_block, stride_value, stride_head, stride_token, _ = kv_cache.stride()
    _store_kv_kernel[(num_tokens,)](
        k, v, kv_cache, slot_mapping,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        stride_block, stride_value, stride_head, stride_token,
        BLOCK_SIZE=kv_cache.shape[3], KV=kv_heads, D=head_dim, ROW=triton.next_power_of_2(kv_heads * head_dim),
        num_warps=4,
    )  # fmt: skip
