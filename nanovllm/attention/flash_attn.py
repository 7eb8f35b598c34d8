"""The `flash_attn` backend: the flash-attn package reads our paged cache in place.

The package wants keys as (num_blocks, block_size, KV, D). Ours are (num_blocks, KV, block_size, D) inside the layer's
cache, so it gets a transposed view; it accepts any strides whose last is 1. Its pages are multiples of 256 tokens.
"""

from __future__ import annotations

import torch

from nanovllm.attention.base import AttentionBackend, AttentionMetadata
from nanovllm.kernels.store_kv import store_kv

PAGE = 256
DTYPES = (torch.float16, torch.bfloat16)


class FlashAttention(AttentionBackend):
    """Serves block sizes that are multiples of 256, head dimensions up to 256 that are multiples of 8, fp16 and bf16.

    Raises:
        ImportError: where the flash-attn package is not installed, or was built for another torch.
    """

    name = "flash_attn"
    supports_cuda_graphs = True
    fused = True

    def __init__(self) -> None:
        try:
            from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
        except ImportError as error:
            raise ImportError(
                f'attention_backend="flash_attn" needs the flash-attn package, which does not import here: {error}. '
                'Install it (pip install flash-attn --no-build-isolation), or choose "triton".'
            ) from error
        self._varlen = flash_attn_varlen_func
        self._decode = flash_attn_with_kvcache

    def check(self, *, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        if block_size <= 0 or block_size % PAGE:
            raise ValueError(f"block_size must be a multiple of {PAGE} for the flash_attn backend, got {block_size}")
        if not 0 < head_dim <= 256 or head_dim % 8:
            raise ValueError(
                f"head_dim must be a multiple of 8, at most 256, for the flash_attn backend, got {head_dim}"
            )
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES} for the flash_attn backend, got {dtype}")
        if torch.device(device).type != "cuda":
            raise ValueError(f"device must be a CUDA device for the flash_attn backend, got {device}")

    def store(self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        store_kv(k, v, kv_cache, slot_mapping)

    def attend(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        keys, values = kv_cache[:, 0].transpose(1, 2), kv_cache[:, 1].transpose(1, 2)
        decodes = metadata.num_decodes
        parts = []
        if decodes:
            out = self._decode(
                q[:decodes].unsqueeze(1),
                keys,
                values,
                cache_seqlens=metadata.context_lens[:decodes],
                block_table=metadata.block_tables[:decodes],
                softmax_scale=scale,
                causal=True,
            )
            parts.append(out.squeeze(1))
        if decodes < metadata.context_lens.shape[0]:
            context_start = torch.nn.functional.pad(
                metadata.context_lens[decodes:].cumsum(0, dtype=torch.int32), (1, 0)
            )
            parts.append(
                self._varlen(
                    q[decodes:],
                    keys,
                    values,
                    cu_seqlens_q=metadata.query_start[decodes:] - decodes,
                    cu_seqlens_k=context_start,
                    max_seqlen_q=metadata.max_query_len,
                    max_seqlen_k=metadata.max_context_len,
                    softmax_scale=scale,
                    causal=True,
                    block_table=metadata.block_tables[decodes:],
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)
