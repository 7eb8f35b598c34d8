"""Rotary position embedding (RoFormer, Su et al. 2021, section 3.2), in the half-split layout of Llama and Qwen."""

from __future__ import annotations

import torch
from torch import nn

from nanovllm.kernels import cpu_fused


class RotaryEmbedding(nn.Module):
    """Turns the pair (x[i], x[i + D/2]) of every head by the angle position * theta^(-2i/D).

    Args:
        head_dim: D, even.
        theta: base of the frequencies (`rope_theta`).
        max_positions: positions 0 to max_positions - 1 are tabulated.
    """

    def __init__(self, head_dim: int, theta: float, max_positions: int):
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.max_positions = max_positions
        self.register_buffer("table", torch.empty(max_positions, head_dim, dtype=torch.float32), persistent=False)
        self.fill_table()

    def fill_table(self) -> None:
        """(max_positions, D) in float32: the cosines of the D/2 angles, then the sines."""
        if self.table.is_meta:
            return
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu") / self.head_dim
        positions = torch.arange(self.max_positions, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, 1.0 / self.theta**exponent)
        self.table.copy_(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def lookup(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (T, 1, D/2) of the positions (T); every layer of a step uses the same."""
        return self.table[positions].to(dtype).unsqueeze(1).chunk(2, dim=-1)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, heads, D) with cos and sin (T, 1, D/2) -> (T, heads, D)."""
    if cpu_fused.serves(x):
        return cpu_fused.apply_rotary(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
