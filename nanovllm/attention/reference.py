"""Paged attention in plain PyTorch: the definition that the other backends are compared with, and what a CPU runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nanovllm.attention.base import AttentionBackend, AttentionMetadata


class ReferenceAttention(AttentionBackend):
    """Gathers each sequence's keys and values from its blocks, then calls PyTorch's attention.

    Serves any device, dtype, head dimension and block size.
    """

    name = "reference"

    def attend(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        num_decodes = metadata.num_decodes
        if num_decodes == len(metadata.context_lens):
            return self.decode(q, kv_cache, metadata, scale)
        out = torch.empty_like(q)
        if num_decodes:
            out[:num_decodes] = self.decode(q[:num_decodes], kv_cache, metadata, scale)
        self.prefill(q, kv_cache, metadata, scale, out)
        return out

    def store(self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        block_size = kv_cache.shape[3]
        kept = slot_mapping >= 0
        k, v, slots = k[kept], v[kept], slot_mapping[kept]
        blocks, offsets = slots // block_size, slots % block_size
        kv_cache[blocks, 0, :, offsets] = k
        kv_cache[blocks, 1, :, offsets] = v

    def decode(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        """One query token a sequence: all sequences in one call, padded to the longest context."""
        num_decodes, num_heads, head_dim = q.shape
        num_kv_heads = kv_cache.shape[2]
        context_lens, tables = metadata.context_lens[:num_decodes, None], metadata.block_tables[:num_decodes]
        first_slots = torch.arange(tables.shape[1], device=q.device) * kv_cache.shape[3]
        keys, values = gather_kv(kv_cache, tables.masked_fill(first_slots >= context_lens, 0))
        inside = torch.arange(keys.shape[2], device=q.device) < context_lens
        # A slot past the context may hold anything, and 0 * NaN is NaN.
        outside = ~inside[:, None, :, None]
        keys, values = keys.masked_fill(outside, 0), values.masked_fill(outside, 0)
        # The query heads of one KV head become the rows of one small attention: nothing is repeated.
        rows = q.view(num_decodes, num_kv_heads, num_heads // num_kv_heads, head_dim)
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=inside[:, None, None, :], scale=scale)
        return out.reshape(num_decodes, num_heads, head_dim)

    def prefill(
        self,
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Chunks of several query tokens: one call a sequence, so that nothing is padded."""
        query_start, context_lens = metadata.query_start.tolist(), metadata.context_lens.tolist()
        block_size = kv_cache.shape[3]
        for b in range(metadata.num_decodes, len(context_lens)):
            start, end, context_len = query_start[b], query_start[b + 1], context_lens[b]
            num_blocks = -(-context_len // block_size)
            keys, values = gather_kv(kv_cache, metadata.block_tables[b : b + 1, :num_blocks])
            keys, values = keys[0, :, :context_len], values[0, :, :context_len]
            repeats = q.shape[1] // keys.shape[0]
            whole = end - start == context_len  # a prompt in one chunk: the plain causal triangle
            attended = F.scaled_dot_product_attention(
                q[start:end].transpose(0, 1)[None],
                keys.repeat_interleave(repeats, dim=0)[None],
                values.repeat_interleave(repeats, dim=0)[None],
                attn_mask=None if whole else _causal_mask(end - start, context_len, q.device),
                is_causal=whole,
                scale=scale,
            )
            out[start:end] = attended[0].transpose(0, 1)


def _causal_mask(query_len: int, context_len: int, device: torch.device) -> torch.Tensor:
    """(query_len, context_len) bool: query i is the context's token context_len - query_len + i and sees up to itself."""
    ones = torch.ones(query_len, context_len, dtype=torch.bool, device=device)
    return ones.tril(context_len - query_len)


def gather_kv(kv_cache: torch.Tensor, block_tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks (B, N) of B sequences as keys and values (B, KV, N * block_size, D).

    One block of one KV head is a contiguous row of block_size * D numbers, so a single gather of rows puts them into
    the layout that attention wants.
    """
    num_blocks, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    rows = kv_cache.view(num_blocks * 2 * num_kv_heads, block_size * head_dim)
    heads = torch.arange(2 * num_kv_heads, device=kv_cache.device).view(2, 1, num_kv_heads, 1)
    index = block_tables[None, :, None, :].long() * (2 * num_kv_heads) + heads  # (2, B, KV, N)
    gathered = F.embedding(index, rows)
    return gathered.view(*index.shape[:3], -1, head_dim).unbind(0)
