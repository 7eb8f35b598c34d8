"""Rotary position embedding (RoFormer, Su et al. 2021, section 3.2), in the half-split layout of Llama and Qwen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from nanovllm.config import Llama3Scaling, YarnScaling
from nanovllm.kernels import cpu_fused


@dataclass(slots=True)
class RotaryStep:
    """The positions of one step's tokens, for all layers.

    Attributes:
        positions: (T).
        table: (max_positions, D) float32, as `RotaryEmbedding.fill_table` makes it.
        cos, sin: (T, 1, D/2), the table's rows at the positions; None for the fused kernel, which looks them up itself.
    """

    positions: torch.Tensor
    table: torch.Tensor
    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None


class RotaryEmbedding(nn.Module):
    """Turns the pair (x[i], x[i + D/2]) of every head by the angle position * frequency[i].

    Args:
        head_dim: D, even.
        theta: base of the frequencies theta^(-2i/D) (`rope_theta`).
        max_positions: positions 0 to max_positions - 1 are tabulated.
        scaling: how the frequencies are stretched for contexts longer than the model was first trained on.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        max_positions: int,
        scaling: Llama3Scaling | YarnScaling | None = None,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.max_positions = max_positions
        self.scaling = scaling
        self.register_buffer("table", torch.empty(max_positions, head_dim, dtype=torch.float32), persistent=False)
        self.fill_table()

    def fill_table(self) -> None:
        """(max_positions, D) in float32: the cosines of the D/2 angles, then the sines."""
        if self.table.is_meta:
            return
        with torch.device("cpu"):
            angles = torch.outer(torch.arange(self.max_positions, dtype=torch.float32), self._frequencies())
        table = torch.cat([angles.cos(), angles.sin()], dim=-1)
        if isinstance(self.scaling, YarnScaling):
            table *= self.scaling.attention_factor
        self.table.copy_(table)

    def _frequencies(self) -> torch.Tensor:
        """(D/2) radians per position, float32."""
        frequencies = 1.0 / self.theta ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        if isinstance(self.scaling, Llama3Scaling):
            kept = kept_by_llama3(frequencies, self.scaling)
        elif isinstance(self.scaling, YarnScaling):
            kept = kept_by_yarn(self.head_dim, self.theta, self.scaling)
        else:
            return frequencies
        return kept * frequencies + (1 - kept) * frequencies / self.scaling.factor

    def step(self, positions: torch.Tensor, dtype: torch.dtype, fused: bool) -> RotaryStep:
        """What the layers of one step need of its positions (T)."""
        if fused:
            return RotaryStep(positions, self.table)
        return RotaryStep(positions, self.table, *self.lookup(positions, dtype))

    def lookup(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (T, 1, D/2) of the positions (T); every layer of a step uses the same."""
        return self.table[positions].to(dtype).unsqueeze(1).chunk(2, dim=-1)


def kept_by_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """For each frequency (D/2) the share that is not divided by the factor: 1 if fast, 0 if slow, linear between.

    What counts is how often a frequency turns within the original context (Llama 3.1's published model code).
    """
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def kept_by_yarn(head_dim: int, theta: float, scaling: YarnScaling) -> torch.Tensor:
    """As `kept_by_llama3`, but linear in the dimension i between the two borders (YaRN, Peng et al. 2023, section 3.2).

    theta^(-2i/D) turns `beta` times within L positions where i = D/2 * log(L / (2 pi beta)) / log(theta).
    """
    length = scaling.original_max_position_embeddings
    borders = [
        head_dim / 2 * math.log(length / (2 * math.pi * beta)) / math.log(theta)
        for beta in (scaling.beta_fast, scaling.beta_slow)
    ]
    if scaling.truncate:
        borders = [math.floor(borders[0]), math.ceil(borders[1])]
    first, last = max(borders[0], 0), min(borders[1], head_dim - 1)
    if first == last:
        last += 0.001  # a step, not a division by zero
    return 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, heads, D) with cos and sin (T, 1, D/2) -> (T, heads, D)."""
    if cpu_fused.serves(x):
        return cpu_fused.apply_rotary(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
