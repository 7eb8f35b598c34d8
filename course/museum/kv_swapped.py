"""Keys and values packed in the wrong order: they have the same shape, so nothing complains."""

from __future__ import annotations

from collections.abc import Callable

import torch

from course.museum import Exhibit
from nanovllm.layers.linear import QKVParallelLinear
from nanovllm.utils.context import TensorParallel


def buggy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The checkpoint's three matrices as one, (q + k + v rows, hidden_size)."""
    return torch.cat([q, v, k])


def fixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same, in the order in which the attention layer splits the product."""
    return torch.cat([q, k, v])


def detect(pack: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Three matrices, each filled with a number of its own, in the engine's layer; then look at the product's parts."""
    heads, kv_heads, head_dim, hidden = 4, 2, 8, 16
    layer = QKVParallelLinear(hidden, heads, kv_heads, head_dim, bias=False, tp=TensorParallel())
    q, k, v = (
        torch.full((n * head_dim, hidden), value) for n, value in ((heads, 1.0), (kv_heads, 2.0), (kv_heads, 3.0))
    )
    layer.weight.data.copy_(pack(q, k, v))
    parts = layer(torch.ones(1, hidden)).split(layer.sizes, dim=-1)
    got = [part.mean().item() / hidden for part in parts]
    assert got == [1.0, 2.0, 3.0], f"the parts of the product come from matrices {got}, not from 1 (q), 2 (k), 3 (v)"


EXHIBIT = Exhibit(
    name="kv_swapped",
    chapter="03_weight_loading",
    title="q, k and v packed in the wrong order",
    symptom="Every shape is right, loading says nothing, and the model writes nonsense. With grouped-query attention q is "
    "larger than k, so most wrong orders fail; k and v have the same shape, and theirs does not.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make wherever matrices are packed by position; weight_loader in nanovllm/layers/linear.py goes by name.",
)
