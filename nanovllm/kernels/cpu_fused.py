"""What a CPU runs between a layer's matrix products: one compiled loop each instead of chains of small operations.

Idea: PyTorch computes F.rms_norm on a CPU as seven operations and RoPE takes seven more; with the few rows of a decode
step each costs its launch, with many rows each reads and writes all the data. Here every number is read once and written
once: residual and RMSNorm, QK-norm, RoPE, store and (where all sequences decode) attention, SiLU and product are a call
each. One thread, float32; compiled by numba.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from nanovllm.kernels.cpu_paged_decode import FASTMATH, exp, paged_decode

PARALLEL_FROM = 32768
"""PyTorch splits elementwise operations among its threads from this many elements on (its grain size)."""

NO_WEIGHT = np.empty(0, np.float32)


def serves(x: torch.Tensor) -> bool:
    """Whether the loops here may replace PyTorch's operations on x: float32, on the CPU, no gradient wanted.

    Large tensors are left to PyTorch where it has several threads.
    """
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and not x.requires_grad
        and (x.numel() < PARALLEL_FROM or torch.get_num_threads() == 1)
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., N), weight (N) -> x / sqrt(mean(x^2) + eps) * weight, contiguous."""
    x = x.contiguous()  # numba vectorizes only what it knows to be contiguous
    out = torch.empty_like(x)
    weight = weight.numpy()
    # NumPy's views cost less than PyTorch's, and around the few rows of a decode step views are most of the time.
    rows = (x.numel() // weight.size, weight.size)
    _rms_norm(x.numpy().reshape(rows), weight, np.float32(eps), out.numpy().reshape(rows))
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Adds x (T, N) to `residual` (T, N) in place; returns the sum's RMSNorm. Both are contiguous."""
    out = np.empty(x.shape, np.float32)
    _add_rms_norm(x.numpy(), residual.numpy(), weight.numpy(), eps, out)
    return torch.from_numpy(out)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up (T, 2I), contiguous -> silu(gate) * up (T, I)."""
    num_rows, size = gate_up.shape
    out = np.empty((num_rows, size // 2), np.float32)
    _silu_mul(gate_up.numpy(), out)
    return torch.from_numpy(out)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, heads, D) with cos and sin (T, 1, D/2) -> (T, heads, D), contiguous."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rotary(x.numpy(), cos.numpy(), sin.numpy(), out.numpy())
    return out


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def qknorm_rope_store(qkv, q_weight, k_weight, eps, positions, table, kv_cache, slots, q):
    """QK-norm and RoPE of qkv (T, H + 2 KV, D): queries to q (T, H, D), keys and values to their slots in the cache.

    Args:
        q_weight, k_weight: the norms' (D); of size 0 where the model has none.
        positions, table: (T), and (max_positions, D) as `RotaryEmbedding.fill_table` makes it.
        kv_cache, slots: as in `store_kv`.
    """
    num_heads, num_kv_heads, block_size = q.shape[1], kv_cache.shape[2], kv_cache.shape[3]
    for t in range(len(slots)):
        angles = table[positions[t]]
        for h in range(num_heads):
            _turn_head(qkv[t, h], q_weight, eps, angles, q[t, h])
        if slots[t] >= 0:
            block, offset = kv_cache[slots[t] // block_size], slots[t] % block_size
            for h in range(num_kv_heads):
                _turn_head(qkv[t, num_heads + h], k_weight, eps, angles, block[0, h, offset])
                value, target = qkv[t, num_heads + num_kv_heads + h], block[1, h, offset]
                for i in range(len(value)):
                    target[i] = value[i]


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def attend_decodes(qkv, q_weight, k_weight, eps, positions, table, kv_cache, slots, tables, lens, scale, out):
    """`qknorm_rope_store`, then `paged_decode` of the B sequences with one token each -> out (B, H, D)."""
    q = np.empty(out.shape, np.float32)
    qknorm_rope_store(qkv, q_weight, k_weight, eps, positions, table, kv_cache, slots, q)
    paged_decode(q, kv_cache, tables, lens, scale, out)


@numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy")
def _turn_head(x, weight, eps, angles, out):
    """RMSNorm where there is a weight, then RoPE, of one head (D)."""
    half = len(x) // 2
    if len(weight):
        squares = np.float32(0)
        for i in range(len(x)):
            squares += x[i] * x[i]
        inverse = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + np.float32(eps))
        for i in range(half):
            first, second = x[i] * inverse * weight[i], x[half + i] * inverse * weight[half + i]
            out[i] = first * angles[i] - second * angles[half + i]
            out[half + i] = second * angles[i] + first * angles[half + i]
    else:
        for i in range(half):
            out[i] = x[i] * angles[i] - x[half + i] * angles[half + i]
            out[half + i] = x[half + i] * angles[i] + x[i] * angles[half + i]


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def _add_rms_norm(x, residual, weight, eps, out):
    num_rows, size = x.shape
    for t in range(num_rows):
        squares = np.float32(0)
        for i in range(size):
            total = residual[t, i] + x[t, i]
            residual[t, i] = total
            squares += total * total
        inverse = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))
        for i in range(size):
            out[t, i] = residual[t, i] * inverse * weight[i]


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def _silu_mul(gate_up, out):
    """silu(g) = g / (1 + e^-g); from -|g|, which `exp` wants and which cannot overflow."""
    num_rows, size = out.shape
    for t in range(num_rows):
        for i in range(size):
            gate = gate_up[t, i]
            small = exp(-abs(gate))
            numerator = gate if gate >= 0 else gate * small
            out[t, i] = numerator / (np.float32(1) + small) * gate_up[t, size + i]


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def _rms_norm(x, weight, eps, out):
    num_rows, size = x.shape
    for t in range(num_rows):
        squares = np.float32(0)
        for i in range(size):
            squares += x[t, i] * x[t, i]
        inverse = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
        for i in range(size):
            out[t, i] = x[t, i] * inverse * weight[i]


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def _rotary(x, cos, sin, out):
    num_tokens, num_heads, head_dim = x.shape
    half = head_dim // 2
    for t in range(num_tokens):
        for h in range(num_heads):
            for i in range(half):
                first, second = x[t, h, i], x[t, h, half + i]
                out[t, h, i] = first * cos[t, 0, i] - second * sin[t, 0, i]
                out[t, h, half + i] = second * cos[t, 0, i] + first * sin[t, 0, i]
