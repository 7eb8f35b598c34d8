"""The contract that every attention backend keeps.

A step's tokens of all scheduled sequences lie one after the other (no padding). Letters used in shapes here and in the
backends: T new tokens in the step, B sequences, H query heads, KV key/value heads, D head dimension.

The KV cache of one layer is a tensor (num_blocks, 2, KV, block_size, D): `[:, 0]` holds keys, `[:, 1]` values.
Token slot s lives in block s // block_size at offset s % block_size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nanovllm.layers.rotary import RotaryStep


@dataclass(slots=True)
class AttentionMetadata:
    """What a backend needs to know about one step. Index tensors are int32 and on the model's device.

    Attributes:
        query_start: (B+1), sequence b owns rows query_start[b]:query_start[b+1] of the step's tokens.
        context_lens: (B), tokens of each sequence that exist once this step's tokens are stored.
            The last query token of sequence b therefore sits at position context_lens[b] - 1.
        block_tables: (B, max_blocks), the sequence's blocks in order; entries past its last block are ignored.
        slot_mapping: (T), where each new token's key and value go; -1 writes nowhere (padding rows).
        num_decodes: the first `num_decodes` sequences have exactly one query token; the others are prefill chunks.
        max_query_len: longest query of the step.
        max_context_len: largest of context_lens; an upper bound is allowed.
        decode_plan: what a backend works out for the step's first layer and uses in all of them. The model sets it to
            None before a step; so must who changes the lengths in place and calls a backend again.
    """

    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    num_decodes: int
    max_query_len: int
    max_context_len: int
    decode_plan: Any = None


class AttentionBackend(ABC):
    """Stores the step's keys and values in the paged cache, then attends causally over each sequence's whole context."""

    name: str
    supports_cuda_graphs = False
    """Whether a decode step launches the same kernels for the same batch size and reads no tensor on the host."""
    fused = False
    """Whether the model and the sampler around this backend run our fused Triton kernels too."""

    def check(self, *, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:  # noqa: B027
        """Raises ValueError that names the argument and the allowed values where the backend cannot serve it."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
    ) -> torch.Tensor:
        """q (T, H, D), k and v (T, KV, D), kv_cache as above -> (T, H, D). Query head h reads KV head h // (H // KV)."""
        self.store(k, v, kv_cache, metadata.slot_mapping)
        return self.attend(q, kv_cache, metadata, scale)

    def fuses(self, qkv: torch.Tensor) -> bool:
        """Whether `attend_fused` serves this projection; else the model calls norm, RoPE and the backend one by one."""
        return self.fused

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
        """qkv (T, H + 2 KV, D), a layer's projections -> (T, H, D); norms the heads where there are weights (D)."""
        from nanovllm.kernels.rope_qknorm_store import rope_qknorm_store

        q = rope_qknorm_store(
            qkv, rotary.positions, rotary.table, q_weight, k_weight, eps, kv_cache, metadata.slot_mapping
        )
        return self.attend(q, kv_cache, metadata, scale)

    @abstractmethod
    def store(self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        """Writes k and v (T, KV, D) into the cache at their slots (T); slot -1 is skipped."""

    @abstractmethod
    def attend(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        """q (T, H, D) over a cache that holds the step's keys and values already -> (T, H, D)."""
