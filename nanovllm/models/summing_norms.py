"""Has a model's norms sum over the ranks: a row-parallel layer's all-reduce and the norm after it in one kernel.

The model is written with an all-reduce at the end of each half layer. Where the ranks can write each other's memory, this
changes a model that is built: for few rows, o_proj and down_proj leave each rank's part of the sum as it is, and the norm
that follows adds up the parts, adds the residual and norms (`nanovllm.kernels.all_reduce`). More rows go as before. Which of the
two it is follows from the number of rows alone, so all ranks do the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanovllm.layers.norm import RMSNorm
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.inboxes import Inboxes


@dataclass(frozen=True)
class SumsInNorm(TensorParallel):
    """The group of a layer whose result goes to a `SummingNorm`."""

    inboxes: Inboxes | None = None

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.inboxes.serves(x) else super().all_reduce(x)


class SummingNorm(RMSNorm):
    """The norm after a layer that belongs to `SumsInNorm`: takes over another norm's weight.

    Args:
        parity: 0 and 1 in turn from one of these norms to the next one.
    """

    def __init__(self, norm: RMSNorm, inboxes: Inboxes, parity: int):
        super().__init__(*norm.size, norm.eps, norm.fused)
        self.weight = norm.weight
        self.inboxes = inboxes
        self.parity = parity

    def after_add(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None or not self.inboxes.serves(x):
            return super().after_add(x, residual)
        from nanovllm.kernels.all_reduce import sum_add_rms_norm

        return sum_add_rms_norm(x, residual, self.weight, self.eps, self.inboxes, self.parity), residual


def sum_in_norms(model: Qwen3ForCausalLM, tp: TensorParallel, inboxes: Inboxes) -> None:
    """Changes the model in place. A step has two sums a layer, so the parities alternate from step to step as well."""
    group = SumsInNorm(tp.rank, tp.size, tp.group, inboxes)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.tp = layer.mlp.down_proj.tp = group
        layer.post_attention_layernorm = SummingNorm(layer.post_attention_layernorm, inboxes, 0)
        if index:  # the first layer's follows the embedding, whose sum stays where it is
            layer.input_layernorm = SummingNorm(layer.input_layernorm, inboxes, 1)
    model.model.norm = SummingNorm(model.model.norm, inboxes, 1)
