"""RMSNorm and RoPE as one compiled loop each: what a CPU runs instead of chains of small operations.

Idea: PyTorch computes F.rms_norm on a CPU as seven operations and RoPE takes seven more; with the few rows of a decode
step each costs its launch, with many rows each reads and writes all the data. Here every number is read once and written
once. One thread, float32; compiled by numba.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from nanovllm.kernels.cpu_paged_decode import FASTMATH

PARALLEL_FROM = 32768
"""PyTorch splits elementwise operations among its threads from this many elements on (its grain size)."""


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


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, heads, D) with cos and sin (T, 1, D/2) -> (T, heads, D), contiguous."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rotary(x.numpy(), cos.numpy(), sin.numpy(), out.numpy())
    return out


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
