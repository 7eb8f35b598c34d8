"""Paged decode attention as plain loops, compiled by numba: what a CPU runs instead of gathering the cache.

Idea: each block's keys and values are read once, in the order in which they lie in memory; nothing is copied, padded or
masked. A running softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022, algorithm 1) makes one pass do.
While a block is worked on, the next one is prefetched, wherever it lies.
Bytes read: 2 * sum(context_lens) * KV * D * itemsize. One thread, float32.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nanovllm.kernels.cpu_prefetch import LINE, prefetch

# The order of additions may change, NaN and infinity keep their meaning.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

LOG2_E = np.float32(1 / math.log(2))
# 2^f = sum of (f ln 2)^k / k!; for |f| <= 1/2 the terms left out are below 1.3e-7 of it, one float32 rounding.
EXP2_TERMS = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(7))


@numba.njit(fastmath=FASTMATH, inline="always")
def exp(x):
    """e^x of a float32 x <= 0, without a call, so that LLVM vectorizes a loop of it; below e^-87 it stays there.

    x log2(e) = n + f with an integer n and |f| <= 1/2: the series gives 2^f, the bits of a float's exponent 2^n.
    Relative error below 4e-6, and below 3e-7 for x > -1, where a softmax weight counts.
    """
    power = x * LOG2_E
    power = np.float32(-126) if power < np.float32(-126) else power
    n = np.floor(power + np.float32(0.5))
    f = power - n
    c = EXP2_TERMS
    series = c[0] + f * (c[1] + f * (c[2] + f * (c[3] + f * (c[4] + f * (c[5] + f * c[6])))))
    return series * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def store_kv(k, v, kv_cache, slot_mapping):
    """k and v (T, KV, D) into kv_cache (num_blocks, 2, KV, block_size, D) at their slots (T); slot -1 is skipped."""
    block_size = kv_cache.shape[3]
    for t in range(len(slot_mapping)):
        slot = slot_mapping[t]
        if slot >= 0:
            block, offset = slot // block_size, slot % block_size
            for h in range(k.shape[1]):
                for d in range(k.shape[2]):
                    kv_cache[block, 0, h, offset, d] = k[t, h, d]
                    kv_cache[block, 1, h, offset, d] = v[t, h, d]


@numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")
def paged_decode(q, kv_cache, block_tables, context_lens, scale, out):
    """One query token a sequence: q (B, H, D) float32 -> out (B, H, D); zeros where the context is empty.

    `largest` and `total` are what each head has seen so far: its largest score, and its sum of exp(score - largest).
    When a block brings a larger score, the sum and the weighted values so far shrink by exp(old - new).

    Where a KV head serves an even number of query heads, two of them (a and b) take turns at each key and value, which is
    loaded once for both. Both versions are written out: as functions they lose what the second one gains.
    """
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[2], kv_cache.shape[3]
    group = num_heads // num_kv_heads
    together = 1 if group % 2 else 2
    weights_a, weights_b = np.empty(block_size, np.float32), np.empty(block_size, np.float32)
    largest, total = np.empty(num_heads, np.float32), np.empty(num_heads, np.float32)
    for b in range(num_seqs):
        context_len = context_lens[b]
        out[b] = 0
        largest[:] = -np.inf
        total[:] = 0
        for n in range((context_len + block_size - 1) // block_size):
            block = kv_cache[block_tables[b, n]]
            if (n + 1) * block_size < context_len:
                ahead = kv_cache[block_tables[b, n + 1]]
            else:  # the next sequence's first; where that is empty, any
                ahead = kv_cache[block_tables[min(b + 1, num_seqs - 1), 0]]
            count = min(block_size, context_len - n * block_size)
            fours = count - count % 4
            for h in range(0, num_heads, together):
                keys, values = block[0, h // group], block[1, h // group]
                next_keys, next_values = ahead[0, h // group], ahead[1, h // group]
                if together == 1:
                    for i in range(count):
                        for d in range(0, head_dim, LINE // 4):
                            prefetch(next_keys, i * head_dim + d)
                            prefetch(next_values, i * head_dim + d)
                        dot = np.float32(0)
                        for d in range(head_dim):
                            dot += q[b, h, d] * keys[i, d]
                        weights_a[i] = dot * scale
                    new_largest = largest[h]
                    for i in range(count):
                        new_largest = max(new_largest, weights_a[i])
                    shrink = exp(largest[h] - new_largest)
                    largest[h] = new_largest
                    block_total = np.float32(0)
                    for i in range(count):
                        weight = exp(weights_a[i] - new_largest)
                        weights_a[i] = weight
                        block_total += weight
                    total[h] = total[h] * shrink + block_total
                    for d in range(head_dim):
                        out[b, h, d] *= shrink
                    # Four tokens at a time: `out` is then loaded and stored a fourth as often.
                    for i in range(0, fours, 4):
                        w0, w1, w2, w3 = weights_a[i], weights_a[i + 1], weights_a[i + 2], weights_a[i + 3]
                        for d in range(head_dim):
                            out[b, h, d] += (
                                w0 * values[i, d]
                                + w1 * values[i + 1, d]
                                + w2 * values[i + 2, d]
                                + w3 * values[i + 3, d]
                            )
                    for i in range(fours, count):
                        for d in range(head_dim):
                            out[b, h, d] += weights_a[i] * values[i, d]
                else:
                    q_a, q_b = q[b, h], q[b, h + 1]
                    out_a, out_b = out[b, h], out[b, h + 1]
                    for i in range(count):
                        for d in range(0, head_dim, LINE // 4):
                            prefetch(next_keys, i * head_dim + d)
                            prefetch(next_values, i * head_dim + d)
                        dot_a, dot_b = np.float32(0), np.float32(0)
                        for d in range(head_dim):
                            key = keys[i, d]
                            dot_a += q_a[d] * key
                            dot_b += q_b[d] * key
                        weights_a[i] = dot_a * scale
                        weights_b[i] = dot_b * scale
                    new_a, new_b = largest[h], largest[h + 1]
                    for i in range(count):
                        new_a, new_b = max(new_a, weights_a[i]), max(new_b, weights_b[i])
                    shrink_a, shrink_b = exp(largest[h] - new_a), exp(largest[h + 1] - new_b)
                    largest[h], largest[h + 1] = new_a, new_b
                    total_a, total_b = np.float32(0), np.float32(0)
                    for i in range(count):
                        weight_a, weight_b = exp(weights_a[i] - new_a), exp(weights_b[i] - new_b)
                        weights_a[i], weights_b[i] = weight_a, weight_b
                        total_a += weight_a
                        total_b += weight_b
                    total[h] = total[h] * shrink_a + total_a
                    total[h + 1] = total[h + 1] * shrink_b + total_b
                    for d in range(head_dim):
                        out_a[d] *= shrink_a
                        out_b[d] *= shrink_b
                    for i in range(0, fours, 4):
                        a0, a1, a2, a3 = weights_a[i], weights_a[i + 1], weights_a[i + 2], weights_a[i + 3]
                        b0, b1, b2, b3 = weights_b[i], weights_b[i + 1], weights_b[i + 2], weights_b[i + 3]
                        for d in range(head_dim):
                            v0, v1, v2, v3 = values[i, d], values[i + 1, d], values[i + 2, d], values[i + 3, d]
                            out_a[d] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                            out_b[d] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
                    for i in range(fours, count):
                        for d in range(head_dim):
                            out_a[d] += weights_a[i] * values[i, d]
                            out_b[d] += weights_b[i] * values[i, d]
        if context_len > 0:
            for h in range(num_heads):
                for d in range(head_dim):
                    out[b, h, d] /= total[h]
