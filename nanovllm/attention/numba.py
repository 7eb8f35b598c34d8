"""The reference backend with its two hot loops compiled: what a CPU runs in float32."""

from __future__ import annotations

import numpy as np
import torch

from nanovllm.attention.base import AttentionMetadata
from nanovllm.attention.reference import ReferenceAttention
from nanovllm.kernels.cpu_paged_decode import paged_decode, store_kv


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

    def decode(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        out = q.new_empty(q.shape)
        tables, lens = metadata.block_tables.numpy(), metadata.context_lens.numpy()
        paged_decode(q.numpy(), kv_cache.numpy(), tables, lens, np.float32(scale), out.numpy())
        return out
