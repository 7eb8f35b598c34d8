"""The `triton` backend: our kernels, the default on a GPU.

Two launches a layer at most: decode attention for the first `num_decodes` sequences, prefill attention for the rest. Nothing is read back to the host, so the decode part can be captured in a CUDA graph.
Without a GPU the same kernels run under Triton's interpreter (TRITON_INTERPRET=1), slowly: for tests.
"""

from __future__ import annotations

import os

import torch

from nanovllm.attention.base import AttentionBackend, AttentionMetadata
from nanovllm.kernels.paged_decode import paged_decode, plan_decode
from nanovllm.kernels.ragged_prefill import ragged_prefill
from nanovllm.kernels.store_kv import store_kv

SIZES = (16, 32, 64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class TritonAttention(AttentionBackend):
    """Serves block sizes and head dimensions that are powers of two from 16 to 256, in fp16, bf16 and fp32."""

    name = "triton"
    supports_cuda_graphs = True
    fused = True

    def __init__(self) -> None:
        self._zeros: list[torch.Tensor] = []

    def check(self, *, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        for argument, value in (("block_size", block_size), ("head_dim", head_dim)):
            if value not in SIZES:
                raise ValueError(f"{argument} must be one of {SIZES} for the triton backend, got {value}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES} for the triton backend, got {dtype}")
        if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"device must be a CUDA device for the triton backend, got {device} "
                "(tests run it elsewhere with TRITON_INTERPRET=1 set before Python starts)"
            )

    def store(self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        store_kv(k, v, kv_cache, slot_mapping)

    def attend(
        self, q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
    ) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        decodes = metadata.num_decodes
        if decodes:
            if metadata.decode_plan is None:
                lens = metadata.context_lens[:decodes]
                metadata.decode_plan = plan_decode(lens, kv_cache, metadata.max_context_len)
            paged_decode(
                q[:decodes],
                kv_cache,
                metadata.block_tables[:decodes],
                metadata.context_lens[:decodes],
                scale,
                metadata.max_context_len,
                out=out[:decodes],
                plan=metadata.decode_plan,
                counters=self._counters(decodes * kv_cache.shape[2], q.device),
            )
        if decodes < metadata.context_lens.shape[0]:
            ragged_prefill(
                q,
                kv_cache,
                metadata.block_tables,
                metadata.query_start,
                metadata.context_lens,
                scale,
                first_seq=decodes,
                out=out,
            )
        return out

    def _counters(self, number: int, device: torch.device) -> torch.Tensor:
        """That many zeros, int32. Smaller ones of before are kept: a recorded graph may point to them."""
        if not self._zeros or len(self._zeros[-1]) < number:
            self._zeros.append(torch.zeros(number, dtype=torch.int32, device=device))
        return self._zeros[-1]
