"""Llama and Qwen2: Qwen3's decoder without QK-norm.

The rest of what tells them apart stands in their config: Qwen2 has biases on q, k and v, Llama may have them on every
projection, and Llama 3.1 stretches RoPE.
"""

from __future__ import annotations

import torch
from torch import nn

from nanovllm.attention.base import AttentionBackend, AttentionMetadata
from nanovllm.config import ModelConfig
from nanovllm.layers.attention import Attention
from nanovllm.layers.linear import QKVParallelLinear, RowParallelLinear
from nanovllm.layers.rotary import RotaryStep, apply_rotary
from nanovllm.models.qwen3 import Qwen3ForCausalLM, Qwen3Model
from nanovllm.utils.context import TensorParallel


class LlamaAttention(nn.Module):
    """Projections, RoPE, paged attention, output projection: (T, hidden_size) -> (T, hidden_size)."""

    def __init__(self, config: ModelConfig, backend: AttentionBackend, tp: TensorParallel):
        super().__init__()
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            tp=tp,
        )
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.attn = Attention(num_heads, num_kv_heads, config.head_dim, backend)
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=config.o_proj_bias, tp=tp
        )

    def forward(self, x: torch.Tensor, rotary: RotaryStep, metadata: AttentionMetadata) -> torch.Tensor:
        attn = self.attn
        qkv = self.qkv_proj(x).view(len(x), -1, attn.head_dim)
        if attn.backend.fuses(qkv):
            return self.o_proj(attn.attend_fused(qkv, rotary, metadata).flatten(1))
        q, k, v = qkv.split([attn.num_heads, attn.num_kv_heads, attn.num_kv_heads], dim=1)
        q, k = apply_rotary(q, rotary.cos, rotary.sin), apply_rotary(k, rotary.cos, rotary.sin)
        return self.o_proj(attn(q, k, v, metadata).flatten(1))


class LlamaModel(Qwen3Model):
    """Everything but the LM head."""

    attention_class = LlamaAttention


class LlamaForCausalLM(Qwen3ForCausalLM):
    """A Llama or a Qwen2 with its LM head."""

    model_class = LlamaModel
