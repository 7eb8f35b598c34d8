"""RMSNorm (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovllm.kernels import cpu_fused


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; any leading shape.

    Used on the hidden state (size hidden_size) and, in Qwen3, on each query and key head (size head_dim).
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.size = (size,)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if cpu_fused.serves(x) and cpu_fused.serves(self.weight):
            return cpu_fused.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.size, self.weight, self.eps)
