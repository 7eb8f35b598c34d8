"""The attention contract in float64, one sequence, one query and one head at a time, and random batches to try it on."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from nanovllm.attention.base import AttentionMetadata


def attend(q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float) -> torch.Tensor:
    """Expected output (T, H, D) in float64, from a cache that already holds the step's keys and values.

    Rows of sequences without context (padding) are zero.
    """
    block_size = kv_cache.shape[3]
    group = q.shape[1] // kv_cache.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    starts = metadata.query_start.tolist()
    for b, context in enumerate(metadata.context_lens.tolist()):
        if context == 0:
            continue
        blocks = metadata.block_tables[b, : -(-context // block_size)].long()
        # (blocks, KV, block_size, D) -> (KV, tokens, D)
        keys = kv_cache[blocks, 0].transpose(0, 1).flatten(1, 2)[:, :context].double()
        values = kv_cache[blocks, 1].transpose(0, 1).flatten(1, 2)[:, :context].double()
        query_len = starts[b + 1] - starts[b]
        position = context - query_len + torch.arange(query_len, device=q.device)
        visible = torch.arange(context, device=q.device)[None, :] <= position[:, None]
        for h in range(q.shape[1]):
            query = q[starts[b] : starts[b + 1], h].double()
            scores = query @ keys[h // group].T * scale
            weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            out[starts[b] : starts[b + 1], h] = weights @ values[h // group]
    return out


def stored(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> torch.Tensor:
    """A copy of the cache with k and v at their slots, written token by token."""
    expected = kv_cache.clone()
    block_size = kv_cache.shape[3]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            expected[slot // block_size, 0, :, slot % block_size] = k[token].to(kv_cache.dtype)
            expected[slot // block_size, 1, :, slot % block_size] = v[token].to(kv_cache.dtype)
    return expected


@dataclass
class Case:
    """One step to try a backend on. The cache holds earlier tokens only and NaN in every slot that none owns."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    kv_cache: torch.Tensor
    metadata: AttentionMetadata
    scale: float

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Output (T, H, D) in float64, and the cache after the step."""
        cache = stored(self.k, self.v, self.kv_cache, self.metadata.slot_mapping)
        return attend(self.q, cache, self.metadata, self.scale), cache


def random_case(
    lengths: list[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    padding: int = 0,
    seed: int = 0,
) -> Case:
    """A step of `lengths` = (query length, context length) pairs, decodes (query length 1) moved to the front.

    Blocks lie in random order with spare ones between; q, k and v are slices of one wider tensor, as a fused
    projection gives them; `padding` rows (context 0, slot -1) follow the decodes.
    """
    rng = random.Random(seed)
    generator = torch.Generator(device).manual_seed(seed)
    decodes = [pair for pair in lengths if pair[0] == 1] + [(1, 0)] * padding
    prefills = [pair for pair in lengths if pair[0] > 1]
    lengths = decodes + prefills

    needed = [-(-context // block_size) for _, context in lengths]
    num_blocks = sum(needed) + 3
    free = list(range(num_blocks))
    rng.shuffle(free)
    width = max(max(needed), 1) + 1
    tables = torch.full((len(lengths), width), num_blocks + 7, dtype=torch.int32)  # out of range: must not be read
    slots, owned = [], []
    for b, (query_len, context) in enumerate(lengths):
        blocks = [free.pop() for _ in range(needed[b])]
        tables[b, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        all_slots = [blocks[p // block_size] * block_size + p % block_size for p in range(context)]
        slots += all_slots[context - query_len :] if context else [-1] * query_len
        owned += all_slots[: context - query_len] if context else []

    cache = torch.full((num_blocks, 2, kv_heads, block_size, head_dim), float("nan"), dtype=dtype, device=device)
    held = torch.tensor(owned, dtype=torch.long, device=device)
    values = torch.randn((len(owned), 2, kv_heads, head_dim), generator=generator, device=device).to(dtype)
    cache[held // block_size, :, :, held % block_size] = values

    tokens = sum(query_len for query_len, _ in lengths)
    heads = kv_heads * group
    fused = torch.randn((tokens, heads + 2 * kv_heads, head_dim), generator=generator, device=device).to(dtype)
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    starts = torch.tensor([0] + [query_len for query_len, _ in lengths]).cumsum(0).to(torch.int32)
    metadata = AttentionMetadata(
        query_start=starts.to(device),
        context_lens=torch.tensor([context for _, context in lengths], dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        slot_mapping=torch.tensor(slots, dtype=torch.int32, device=device),
        num_decodes=len(decodes),
        max_query_len=max(query_len for query_len, _ in lengths),
        max_context_len=max(context for _, context in lengths),
    )
    return Case(q, k, v, cache, metadata, head_dim**-0.5)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; NaN anywhere gives NaN."""
    return ((out.double() - expected).norm() / expected.norm()).item()
