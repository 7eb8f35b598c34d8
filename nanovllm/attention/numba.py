"""The reference backend with its two hot loops compiled: what a CPU runs in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from nanovllm.attention.base import AttentionMetadata
from nanovllm.attention.reference import ReferenceAttention
from nanovllm.kernels import cpu_fused
from nanovllm.kernels.cpu_paged_decode import paged_decode, store_kv

if TYPE_CHECKING:
    from nanovllm.layers.rotary import RotaryStep


class NumbaAttention(ReferenceAttention):
    """Decodes from the blocks where they lie; prefill chunks are PyTorch's, as in the reference."""

    name = "numba"

    def check(self, *, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        if device.type != "cpu" or dtype != torch.float32:
            raise ValueError(
                f"attention_backend='numba' runs on device 'cpu' in dtype 'float32', got {device.type!r}, {dtype}."
            )

    def store(self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        store_kv(k.numpy(), v.numpy(), kv_cache.numpy(), slot_mapping.numpy())

    def fuses(self, qkv: torch.Tensor) -> bool:
        return cpu_fused.serves(qkv)

    def attend_fused(
        self,
        qkv: torch.Tensor,
        rotary: RotaryStep,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        eps: float,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
    ) -> torch.Tensor:
        plan = metadata.decode_plan
        if plan is None:  # a NumPy view costs more than passing it on: one for all layers
            tensors = (
                rotary.positions,
                rotary.table,
                metadata.slot_mapping,
                metadata.block_tables,
                metadata.context_lens,
            )
            plan = metadata.decode_plan = [tensor.numpy() for tensor in tensors]
        positions, table, slots, tables, lens = plan
        cache = kv_cache.numpy()
        q_weight = cpu_fused.NO_WEIGHT if q_weight is None else q_weight.numpy()
        k_weight = cpu_fused.NO_WEIGHT if k_weight is None else k_weight.numpy()
        num_tokens, num_heads, head_dim = qkv.shape
        out = np.empty((num_tokens, num_heads - 2 * kv_cache.shape[2], head_dim), np.float32)
        stored = qkv.numpy(), q_weight, k_weight, eps, positions, table, cache, slots
        if metadata.num_decodes == len(lens):
            cpu_fused.attend_decodes(*stored, tables, lens, np.float32(scale), out)
            return torch.from_numpy(out)
        cpu_fused.qknorm_rope_store(*stored, out)
        return self.attend(torch.from_numpy(out), kv_cache, metadata, scale)

    def decode(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        out = q.new_empty(q.shape)
        tables, lens = metadata.block_tables.numpy(), metadata.context_lens.numpy()
        paged_decode(q.numpy(), kv_cache.numpy(), tables, lens, np.float32(scale), out.numpy())
        return out
