"""Linear layers that may hold one rank's share of the weight (Megatron-LM, Shoeybi et al. 2019, section 3).

A column-parallel layer splits its outputs, a row-parallel layer its inputs; one after the other they need a single
all-reduce. Each parameter carries a `weight_loader` that knows which part of a checkpoint's tensor belongs here, and a
`shards` tuple: the checkpoint's tensors that make it up, `(None,)` where it is stored as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanovllm.layers.activation import silu_and_mul
from nanovllm.layers.packed import PackedWeight
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.loader import check_rows, copy_exactly

GEMV_ROWS = 1
SKINNY_ROWS = 64
"""Up to so many rows our matrix-vector kernel, and our kernel for few rows, are faster than cuBLAS."""


class LinearBase(nn.Module):
    """y = x W^T + b with x (..., in_features), W (out_features, in_features) as this rank holds them."""

    shards: tuple[str | None, ...] = (None,)
    fused = False
    """Whether to run our Triton kernels where there are few rows."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = self._parameter(out_features, in_features)
        self.bias = self._parameter(out_features) if bias else None
        self.packed: PackedWeight | None = None

    def _parameter(self, *shape: int) -> nn.Parameter:
        parameter = nn.Parameter(torch.empty(*shape), requires_grad=False)
        parameter.weight_loader = self.load_shard
        parameter.shards = self.shards
        return parameter

    def load_shard(self, parameter: nn.Parameter, loaded: torch.Tensor, shard: str | None) -> None:
        """Copies this rank's part of a checkpoint's whole tensor into the parameter."""
        raise NotImplementedError

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x W^T + bias, through the packed copy of W where there is one."""
        if self.packed is not None:
            return self.packed.linear(x, self.weight, bias)
        kernel = self._kernel(x)
        return kernel(x, self.weight) if kernel else F.linear(x, self.weight, bias)

    def _kernel(self, x: torch.Tensor) -> Callable[..., torch.Tensor] | None:
        """Our kernel for as few rows as x has; None where PyTorch's product is to be taken."""
        if not self.fused or self.bias is not None:
            return None
        from nanovllm.kernels.gemv import gemv
        from nanovllm.kernels.skinny_linear import serves, skinny_linear

        if len(x) <= GEMV_ROWS:
            return gemv
        return skinny_linear if len(x) <= SKINNY_ROWS and serves(x, self.weight) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.bias)


class MergedColumnParallelLinear(LinearBase):
    """Several linear layers over the same input as one, each split by outputs.

    Args:
        in_features: size of the input.
        sizes: for each shard name the number of outputs over all ranks.
        tp: the group.
    """

    def __init__(self, in_features: int, sizes: dict[str | None, int], bias: bool, tp: TensorParallel):
        self.shards = tuple(sizes)
        self.tp = tp
        self.total_sizes = sizes
        self.local_sizes = {
            name: tp.share(f"the outputs of {name or 'a linear layer'}", n) for name, n in sizes.items()
        }
        super().__init__(in_features, sum(self.local_sizes.values()), bias)

    def load_shard(self, parameter, loaded, shard):
        check_rows(loaded, self.total_sizes[shard])
        start = sum(list(self.local_sizes.values())[: self.shards.index(shard)])
        size = self.local_sizes[shard]
        copy_exactly(parameter.data[start : start + size], loaded[self.tp.rank * size : (self.tp.rank + 1) * size])

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of a layer that holds gate and up, (T, I); for few rows in the kernel of the product itself."""
        kernel = self._kernel(x)
        return kernel(x, self.weight, gated=True) if kernel else silu_and_mul(self(x), self.fused)


class QKVParallelLinear(LinearBase):
    """Query, key and value projections as one layer, split by heads.

    Where there are fewer KV heads than ranks, each KV head is held by size / num_kv_heads ranks.

    Args:
        hidden_size: size of the input.
        num_heads, num_kv_heads, head_dim: over all ranks.
    """

    shards = ("q", "k", "v")

    def __init__(
        self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, tp: TensorParallel
    ):
        self.tp = tp
        self.head_dim = head_dim
        self.total_heads = {"q": num_heads, "k": num_kv_heads, "v": num_kv_heads}
        self.num_heads = tp.share("num_attention_heads", num_heads)
        self.num_kv_heads = local_kv_heads(num_kv_heads, tp)
        self.sizes = [self.num_heads * head_dim, self.num_kv_heads * head_dim, self.num_kv_heads * head_dim]
        super().__init__(hidden_size, sum(self.sizes), bias)

    def load_shard(self, parameter, loaded, shard):
        total = self.total_heads[shard]
        check_rows(loaded, total * self.head_dim)
        index = self.shards.index(shard)
        start, size = sum(self.sizes[:index]), self.sizes[index]
        # Rank r's query heads read KV head r * total / size of the group, also where several ranks share one.
        first = self.tp.rank * total // self.tp.size * self.head_dim
        copy_exactly(parameter.data[start : start + size], loaded[first : first + size])


class RowParallelLinear(LinearBase):
    """A linear layer split by inputs: each rank computes a partial sum over its inputs, an all-reduce adds them up."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel):
        self.tp = tp
        super().__init__(tp.share("the inputs of a row-parallel layer", in_features), out_features, bias)

    def load_shard(self, parameter, loaded, shard):
        if parameter.dim() == 2 and self.tp.size > 1:
            size = parameter.shape[1]
            if loaded.shape[1:] != (size * self.tp.size,):
                raise ValueError(f"shape {tuple(loaded.shape)} where {size * self.tp.size} columns are needed")
            loaded = loaded[:, self.tp.rank * size : (self.tp.rank + 1) * size]
        copy_exactly(parameter.data, loaded)

    def forward(self, x):
        # Every rank would add the bias once: only rank 0 does.
        bias = self.bias if self.tp.rank == 0 else None
        return self.tp.all_reduce(self.multiply(x, bias))


def local_kv_heads(num_kv_heads: int, tp: TensorParallel) -> int:
    """KV heads that one rank holds; raises ValueError where heads and ranks do not divide one another."""
    if num_kv_heads % tp.size == 0:
        return num_kv_heads // tp.size
    if tp.size % num_kv_heads == 0:
        return 1
    raise ValueError(
        f"tensor_parallel_size ({tp.size}) must divide num_key_value_heads ({num_kv_heads}) or be a multiple."
    )
