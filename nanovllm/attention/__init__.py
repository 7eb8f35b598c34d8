"""Attention backends: `reference` (the definition), `numba` (for CPUs), `triton` (ours) and `flash_attn` (the package)."""

from __future__ import annotations

from nanovllm.attention.base import AttentionBackend, AttentionMetadata

__all__ = ["AttentionBackend", "AttentionMetadata", "get_backend"]


def get_backend(name: str) -> AttentionBackend:
    """The backend of that name. Each is imported only when it is asked for: their packages are optional.

    Raises:
        ValueError: no such backend.
        ImportError: the backend's package is not installed.
    """
    if name == "reference":
        from nanovllm.attention.reference import ReferenceAttention

        return ReferenceAttention()
    if name == "numba":
        from nanovllm.attention.numba import NumbaAttention

        return NumbaAttention()
    if name == "triton":
        from nanovllm.attention.triton import TritonAttention

        return TritonAttention()
    if name == "flash_attn":
        from nanovllm.attention.flash_attn import FlashAttention

        return FlashAttention()
    raise ValueError(f"attention_backend must be 'reference', 'numba', 'triton' or 'flash_attn', got {name!r}.")
