"""Which share of the model this process holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class TensorParallel:
    """This process's place in a group that shares each layer's weights; the default is a group of one.

    Attributes:
        rank: 0 to size - 1.
        size: processes in the group.
        group: the torch.distributed group, or None for the default one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sums `x` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """Joins the ranks' (..., N) tensors along the last dimension: (..., size * N)."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def share(self, what: str, total: int) -> int:
        """This rank's part of `total`; raises ValueError where the ranks cannot share it evenly."""
        if total % self.size:
            raise ValueError(f"tensor_parallel_size ({self.size}) must divide {what} ({total}).")
        return total // self.size
