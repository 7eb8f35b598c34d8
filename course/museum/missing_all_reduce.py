"""A row-parallel layer that forgets to add up."""

from __future__ import annotations

from collections.abc import Callable

import torch

from course.museum import Exhibit


def buggy(inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """inputs (T, in / size) and weights (out, in / size), one for each rank -> what each rank goes on with (T, out)."""
    return [x @ weight.T for x, weight in zip(inputs, weights, strict=True)]


def fixed(inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same, with the all-reduce: every rank goes on with the sum."""
    partial = [x @ weight.T for x, weight in zip(inputs, weights, strict=True)]
    return [sum(partial) for _ in partial]


def detect(row_parallel: Callable[[list[torch.Tensor], list[torch.Tensor]], list[torch.Tensor]]) -> None:
    """Two ranks against one product with the whole matrix."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 8, generator=generator), torch.randn(5, 8, generator=generator)
    for rank, y in enumerate(row_parallel(list(x.chunk(2, dim=1)), list(weight.chunk(2, dim=1)))):
        wrong = (y - x @ weight.T).abs().max().item()
        assert wrong < 1e-4, (
            f"rank {rank} of 2 goes on with a result that is off by {wrong:.1f}: its part of the sum only"
        )


EXHIBIT = Exhibit(
    name="missing_all_reduce",
    chapter="07_tensor_parallel",
    title="A row-parallel layer without its all-reduce",
    symptom="Shapes are right, nothing waits, nothing fails, and it is even faster. With one GPU every test passes. With two, "
    "each rank goes on with its part of the sum, and the model writes another text.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make when a layer is split by hand; in the engine RowParallelLinear.forward of "
    "nanovllm/layers/linear.py adds up, or for few rows on GPUs the norm after it (nanovllm/models/summing_norms.py). "
    "A test with one rank cannot find it.",
)
