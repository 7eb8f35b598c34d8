"""Which share of the model this process holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class TensorParallel:
    """This process's place in a group that shares each layer's weights; the default is a group of one.

    Attributes:
        rank: 0 to size - 1.
        size: processes in the group.
        group: a gloo or NCCL group of its own, so that two engines can live in one process; None for a group of one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sums `x` over the ranks, in place."""
        if self.size > 1:
            _wait(self.group.allreduce([x], _on_this_stream(dist.AllreduceOptions())))
        return x

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Each number's largest of the ranks, in place."""
        if self.size > 1:
            options = _on_this_stream(dist.AllreduceOptions())
            options.reduceOp = dist.ReduceOp.MAX
            _wait(self.group.allreduce([x], options))
        return x

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Overwrites `x` with rank 0's, in place."""
        if self.size > 1:
            options = _on_this_stream(dist.BroadcastOptions())
            options.rootRank = 0
            _wait(self.group.broadcast([x], options))
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """Joins the ranks' (..., N) tensors along the last dimension: (..., size * N)."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self.group.allgather([parts], [x.contiguous()]).wait()
        return torch.cat(parts, dim=-1)

    def minimum(self, value: int, device: torch.device) -> int:
        """The least of the ranks' values."""
        if self.size == 1:
            return value
        least = torch.tensor([value], device=device)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN
        self.group.allreduce([least], options).wait()
        return int(least)

    def share(self, what: str, total: int) -> int:
        """This rank's part of `total`; raises ValueError where the ranks cannot share it evenly."""
        if total % self.size:
            raise ValueError(f"tensor_parallel_size ({self.size}) must divide {what} ({total}).")
        return total // self.size


def _on_this_stream(options: Any) -> Any:
    """Has NCCL run on the layers' stream, with no event between two streams before and after; old PyTorch cannot."""
    if hasattr(options, "asyncOp"):
        options.asyncOp = False
    return options


def _wait(work: dist.Work | None) -> None:
    """NCCL's collectives on the caller's stream return nothing to wait for; gloo's do."""
    if work is not None:
        work.wait()
