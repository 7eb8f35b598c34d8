"""How many bytes the KV cache takes and how many blocks fit: the one place where this is computed.

The allocator, the notebooks and the guides all call these functions.
"""

from __future__ import annotations


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes that one token occupies in the KV caches of all layers (the 2 is one key and one value)."""
    return 2 * num_layers * num_kv_heads * head_dim * itemsize


def kv_block_bytes(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes of one block: `block_size` token slots in every layer. `num_kv_heads` counts this rank's heads."""
    return block_size * kv_bytes_per_token(num_layers, num_kv_heads, head_dim, itemsize)


def num_kv_blocks(
    total: int, utilization: float, used: int, peak: int, current: int, block_bytes: int, reserved: int = 0
) -> int:
    """Blocks that fit on a GPU once the model is loaded and a warm-up step has shown its peak.

    Args:
        total: bytes of the device's memory.
        utilization: share of `total` that the engine may take (`gpu_memory_utilization`).
        used: bytes in use on the device now, other processes included.
        peak: most bytes that this process's tensors took at once, the warm-up included.
        current: bytes that this process's tensors take now (the weights).
        block_bytes: bytes of one block.
        reserved: bytes kept free for CUDA graphs.

    `peak - current` is what a step needs on top of the weights; it is free now but will be needed again.
    """
    return int(total * utilization - used - (peak - current) - reserved) // block_bytes
