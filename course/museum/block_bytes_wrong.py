"""The bytes of a KV block, from the notes that this course grew from: two mistakes that can cancel."""

from __future__ import annotations

from collections.abc import Callable

import torch

from course.museum import Exhibit
from nanovllm.utils.memory import kv_block_bytes


def buggy(layers: int, block_size: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes of one block in all layers."""
    return block_size * itemsize * layers * heads * head_dim


def fixed(layers: int, block_size: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes of one block in all layers: keys and values, of the KV heads."""
    return kv_block_bytes(layers, block_size, kv_heads, head_dim, itemsize)


def detect(block_bytes: Callable[[int, int, int, int, int, int], int]) -> None:
    """Allocate a block of caches for three models and count; 8 query heads share 1, 4 or 8 KV heads."""
    layers, block_size, heads, head_dim = 3, 16, 8, 32
    for kv_heads in (4, 8, 1):
        caches = [torch.empty(1, 2, kv_heads, block_size, head_dim, dtype=torch.bfloat16) for _ in range(layers)]
        taken = sum(cache.nbytes for cache in caches)
        said = block_bytes(layers, block_size, heads, kv_heads, head_dim, 2)
        assert said == taken, f"{heads} query heads, {kv_heads} KV heads: says {said:,} bytes, takes {taken:,}"


EXHIBIT = Exhibit(
    name="block_bytes_wrong",
    chapter="04_kv_cache_sizing",
    title="Block bytes without K and V, and with query heads",
    symptom="None on Qwen3-0.6B, where the two mistakes cancel. On Qwen3-32B three quarters of the cache's memory stay empty; on a "
    "model without grouped-query attention the cache takes twice what was counted, and the GPU runs out of memory.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="The notes that this course grew from: token_bytes_per_block * number_of_layers * number_of_heads * "
    "head_dimension.",
)
