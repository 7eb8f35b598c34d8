"""Paged decode attention as plain loops, compiled by numba: what a CPU runs instead of gathering the cache.

Idea: each key and value is read once, from its place in the cache; nothing is copied, padded or masked. Bytes read:
2 * sum(context_lens) * KV * D * itemsize. One thread, float32.
"""

from __future__ import annotations

import math

import numba
import numpy as np

# The order of additions may change, NaN and infinity keep their meaning.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


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
    """One query token a sequence: q (B, H, D) float32 -> out (B, H, D).

    The softmax takes three passes over the scores of one head: largest, exponentials and their sum, weighted values.
    """
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[2], kv_cache.shape[3]
    group = num_heads // num_kv_heads
    scores = np.empty(context_lens[:num_seqs].max(), np.float32)
    for b in range(num_seqs):
        context_len = context_lens[b]
        num_blocks = (context_len + block_size - 1) // block_size
        for h in range(num_heads):
            query, result = q[b, h], out[b, h]
            largest = np.float32(-np.inf)
            for n in range(num_blocks):
                keys = kv_cache[block_tables[b, n], 0, h // group]
                for i in range(min(block_size, context_len - n * block_size)):
                    dot = np.float32(0)
                    for d in range(head_dim):
                        dot += query[d] * keys[i, d]
                    dot *= scale
                    scores[n * block_size + i] = dot
                    largest = max(largest, dot)
            total = np.float32(0)
            for i in range(context_len):
                scores[i] = math.exp(scores[i] - largest)
                total += scores[i]
            result[:] = 0
            for n in range(num_blocks):
                values = kv_cache[block_tables[b, n], 1, h // group]
                for i in range(min(block_size, context_len - n * block_size)):
                    weight = scores[n * block_size + i] / total
                    for d in range(head_dim):
                        result[d] += weight * values[i, d]
