"""The gate of the MLP: SwiGLU (Shazeer 2020, equation 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nanovllm.kernels import cpu_fused


def silu_and_mul(gate_up: torch.Tensor, fused: bool = False) -> torch.Tensor:
    """(T, 2I), gate and up side by side -> silu(gate) * up (T, I); `fused` in one Triton kernel."""
    if fused:
        from nanovllm.kernels.silu_mul import silu_mul

        return silu_mul(gate_up)
    if cpu_fused.serves(gate_up):
        return cpu_fused.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
