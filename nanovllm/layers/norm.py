"""RMSNorm (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovllm.kernels import cpu_fused


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; any leading shape.

    Used on the hidden state (size hidden_size) and, in Qwen3, on each query and key head (size head_dim).

    Args:
        fused: whether to run our Triton kernels.
    """

    def __init__(self, size: int, eps: float, fused: bool = False):
        super().__init__()
        self.size = (size,)
        self.eps = eps
        self.fused = fused
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            from nanovllm.kernels.rms_norm import rms_norm

            return rms_norm(x, self.weight, self.eps)
        if cpu_fused.serves(x) and cpu_fused.serves(self.weight):
            return cpu_fused.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.size, self.weight, self.eps)

    def after_add(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a layer's result x (T, size) to the hidden state `residual`, which may be overwritten.

        Returns the norm of the sum, and the sum: the hidden state of the next addition.
        """
        if residual is None:  # before the first layer there is nothing to add to
            return self(x), x
        if self.fused:
            from nanovllm.kernels.rms_norm import add_rms_norm

            return add_rms_norm(x, residual, self.weight, self.eps), residual
        if cpu_fused.serves(x) and cpu_fused.serves(self.weight):
            return cpu_fused.add_rms_norm(x, residual, self.weight, self.eps), residual
        residual = residual + x
        return self(residual), residual
