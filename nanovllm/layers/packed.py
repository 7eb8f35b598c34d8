"""Weights laid out once for the matrix product: the CPU's float32 fast path of every linear layer.

`F.linear` takes a weight as it lies, or brings it into the order of its inner loop at every call. With few rows, as in a
decode step, either costs as much as the product itself. A packed copy pays once, for the price of holding the weight
twice. Where PyTorch has one thread it lies as our own kernel reads it, where it has several as oneDNN does, which uses
them all.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanovllm.kernels import cpu_fused, cpu_linear

MAX_PACKED_BYTES = 2**30

FEW_ROWS = 64
"""Up to so many rows our kernel is faster than F.linear; with more, the order of the weight hardly counts."""


class WatchedParameter(nn.Parameter):
    """A parameter whose `_version` also counts what is reached through `.data`, which PyTorch does not count.

    So every change in place is noticed, but for one through memory shared with NumPy.
    """

    @property
    def data(self) -> torch.Tensor:
        torch.autograd.graph.increment_version(self)
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, value)
        torch.autograd.graph.increment_version(self)


class PackedWeight:
    """The packed copy of one weight (out_features, in_features), made anew whenever the weight has changed."""

    def __init__(self) -> None:
        self._weight: torch.Tensor | None = None
        self._version = -1
        self._one_thread = False
        self._packed: torch.Tensor | np.ndarray | None = None

    def __reduce__(self):
        return PackedWeight, ()  # a copied or pickled layer packs for itself

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """F.linear(x, weight, bias); a weight that is not watched, float32 and on the CPU takes F.linear itself."""
        one_thread = torch.get_num_threads() == 1
        if self._weight is not weight or self._version != weight._version or self._one_thread != one_thread:
            if not isinstance(weight, WatchedParameter) or not _packable(weight):
                return F.linear(x, weight, bias)
            self._weight, self._version, self._one_thread = weight, weight._version, one_thread
            panels = one_thread and len(weight) % cpu_linear.PANEL == 0
            self._packed = cpu_linear.make_panels(weight.detach().numpy()) if panels else _pack(weight)
        if not isinstance(self._packed, np.ndarray):
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        if x.dim() == 2 and x.shape[0] <= FEW_ROWS and cpu_fused.serves(x):
            return cpu_linear.linear(x, self._packed, bias)
        return F.linear(x, weight, bias)


def pack_weights(model: nn.Module) -> int:
    """Gives the model's linear layers and LM head packed copies, where PyTorch can make them.

    Only float32 weights on the CPU are packed, and only while the copies take MAX_PACKED_BYTES in all or less: a larger
    model stays as it is. A weight that is shared with the embedding stays shared; the embedding reads the plain one.

    Returns:
        The bytes that the copies will take; 0 where nothing is packed.
    """
    modules = [module for module in model.modules() if hasattr(module, "packed")]
    weights = {id(module.weight): module.weight for module in modules}
    num_bytes = sum(weight.nbytes for weight in weights.values())
    if not all(map(_packable, weights.values())) or num_bytes > MAX_PACKED_BYTES or not packing_works():
        return 0
    for weight in weights.values():
        weight.__class__ = WatchedParameter  # in place, so that ties and loader attributes stay
    for module in modules:
        module.packed = PackedWeight()
    return num_bytes


@functools.cache
def packing_works() -> bool:
    """Whether this PyTorch has the two operators, which are not public, and they compute what F.linear computes."""
    try:
        weight, bias = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(0, 1, 5)
        x = torch.linspace(-2, 2, 6).view(2, 3)
        packed = torch.ops.mkldnn._linear_pointwise(x, _pack(weight), bias, "none", [], "")
        return torch.allclose(packed, F.linear(x, weight, bias), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _packable(weight: torch.Tensor) -> bool:
    # A tensor made in inference mode counts no versions, so a change of it would go unnoticed.
    return not weight.is_inference() and weight.device.type == "cpu" and weight.dtype == torch.float32


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
