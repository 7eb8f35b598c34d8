"""The attention of one layer: holds the layer's KV cache and calls the backend."""

from __future__ import annotations

import torch
from torch import nn

from nanovllm.attention.base import AttentionBackend, AttentionMetadata
from nanovllm.layers.norm import RMSNorm
from nanovllm.layers.rotary import RotaryStep


class Attention(nn.Module):
    """Causal attention over the paged KV cache with softmax scale 1/sqrt(head_dim).

    `kv_cache` is (num_blocks, 2, num_kv_heads, block_size, head_dim); the model runner sets it.
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, backend: AttentionBackend):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.backend = backend
        self.kv_cache: torch.Tensor | None = None

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: AttentionMetadata) -> torch.Tensor:
        """q (T, H, D), k and v (T, KV, D) -> (T, H, D)."""
        return self.backend(q, k, v, self.kv_cache, metadata, self.scale)

    def attend_fused(
        self,
        qkv: torch.Tensor,
        rotary: RotaryStep,
        metadata: AttentionMetadata,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> torch.Tensor:
        """qkv (T, H + 2 KV, D) -> (T, H, D): QK-norm, RoPE and the store of keys and values in one kernel, then attention."""
        q_weight, k_weight = (q_norm.weight, k_norm.weight) if q_norm else (None, None)
        eps = q_norm.eps if q_norm else 0.0
        return self.backend.attend_fused(qkv, rotary, q_weight, k_weight, eps, self.kv_cache, metadata, self.scale)
