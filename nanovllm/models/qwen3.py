"""Qwen3 (dense): token embedding, decoder layers, final norm, LM head.

A step's tokens of all sequences lie one after the other, without a batch dimension: (T, ...). Only attention knows which
token belongs to which sequence; everything else treats each token alone.
"""

from __future__ import annotations

import torch
from torch import nn

from nanovllm.attention.base import AttentionBackend, AttentionMetadata
from nanovllm.config import ModelConfig
from nanovllm.layers.attention import Attention
from nanovllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from nanovllm.layers.linear import LinearBase, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from nanovllm.layers.norm import RMSNorm
from nanovllm.layers.rotary import RotaryEmbedding, RotaryStep, apply_rotary
from nanovllm.utils.context import TensorParallel


class Qwen3Attention(nn.Module):
    """Projections, QK-norm, RoPE, paged attention, output projection: (T, hidden_size) -> (T, hidden_size)."""

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
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.attn = Attention(num_heads, num_kv_heads, config.head_dim, backend)
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=config.o_proj_bias, tp=tp
        )

    def forward(self, x: torch.Tensor, rotary: RotaryStep, metadata: AttentionMetadata) -> torch.Tensor:
        attn = self.attn
        qkv = self.qkv_proj(x).view(len(x), -1, attn.head_dim)
        if attn.backend.fuses(qkv):
            return self.o_proj(attn.attend_fused(qkv, rotary, metadata, self.q_norm, self.k_norm).flatten(1))
        q, k, v = qkv.split([attn.num_heads, attn.num_kv_heads, attn.num_kv_heads], dim=1)
        q = apply_rotary(self.q_norm(q), rotary.cos, rotary.sin)
        k = apply_rotary(self.k_norm(k), rotary.cos, rotary.sin)
        return self.o_proj(attn(q, k, v, metadata).flatten(1))


class Qwen3MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x)), (T, hidden_size) -> (T, hidden_size)."""

    def __init__(self, config: ModelConfig, tp: TensorParallel):
        super().__init__()
        sizes = {"gate": config.intermediate_size, "up": config.intermediate_size}
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, sizes, bias=config.mlp_bias, tp=tp)
        self.down_proj = RowParallelLinear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias, tp=tp)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_up_proj.gated(x))


class Qwen3DecoderLayer(nn.Module):
    """Pre-norm transformer layer: each half reads a normalized copy and adds its result to the hidden state.

    The addition is left to the next norm, which can do both in one kernel. So a layer takes and returns two tensors
    (T, hidden_size): the last half's result, and the hidden state that it has not been added to yet.
    """

    def __init__(self, config: ModelConfig, self_attn: nn.Module, tp: TensorParallel, fused: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, fused)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, fused)
        self.mlp = Qwen3MLP(config, tp)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, rotary: RotaryStep, metadata: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = self.input_layernorm.after_add(x, residual)
        x = self.self_attn(x, rotary, metadata)
        x, residual = self.post_attention_layernorm.after_add(x, residual)
        return self.mlp(x), residual


class Qwen3Model(nn.Module):
    """Everything but the LM head: token ids (T) -> hidden states (T, hidden_size)."""

    attention_class: type[nn.Module] = Qwen3Attention

    def __init__(self, config: ModelConfig, backend: AttentionBackend, tp: TensorParallel, max_positions: int):
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, tp)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta, max_positions, config.rope_scaling)
        self.layers = nn.ModuleList(
            Qwen3DecoderLayer(config, self.attention_class(config, backend, tp), tp, backend.fused)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, backend.fused)
        self.fused = backend.fused

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, metadata: AttentionMetadata) -> torch.Tensor:
        x = self.embed_tokens(token_ids)
        rotary = self.rotary.step(positions, x.dtype, self.fused)
        metadata.decode_plan = None  # the lengths may have changed in place
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, rotary, metadata)
        return self.norm.after_add(x, residual)[0]


class Qwen3ForCausalLM(nn.Module):
    """The model with its LM head. Parameter names are the published ones, but for `packed_modules_mapping`.

    Args:
        config: the checkpoint's shape.
        backend: attention backend of every layer.
        tp: this rank's place in the tensor-parallel group.
        max_positions: positions to tabulate for RoPE; by default all that the checkpoint allows.
    """

    model_class: type[Qwen3Model] = Qwen3Model
    packed_modules_mapping = {
        "q_proj": ("qkv_proj", "q"),
        "k_proj": ("qkv_proj", "k"),
        "v_proj": ("qkv_proj", "v"),
        "gate_proj": ("gate_up_proj", "gate"),
        "up_proj": ("gate_up_proj", "up"),
    }
    """Published name -> (the packed module that holds it here, its shard there)."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        tp: TensorParallel | None = None,
        max_positions: int | None = None,
    ):
        super().__init__()
        tp = tp or TensorParallel()
        self.config = config
        self.model = self.model_class(config, backend, tp, max_positions or config.max_position_embeddings)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, tp)
        for module in self.modules():
            if isinstance(module, LinearBase):
                module.fused = backend.fused
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, metadata: AttentionMetadata) -> torch.Tensor:
        """Token ids and positions (T) -> hidden states (T, hidden_size)."""
        return self.model(token_ids, positions, metadata)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, hidden_size) of the tokens that sample -> logits (B, vocab_size)."""
        return self.lm_head(hidden)

    def attention_layers(self) -> list[Attention]:
        """The layers' attention modules in order: each gets its own KV cache."""
        return [layer.self_attn.attn for layer in self.model.layers]
