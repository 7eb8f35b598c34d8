"""A new batch is bound to the name of a graph's input, and the graph goes on reading the old tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course.museum import Exhibit


def buggy(graph: Any, inputs: dict[str, Tensor], token_ids: Tensor) -> Tensor:
    """Run the recorded step on `token_ids` (B); `inputs["token_ids"]` is the tensor that was recorded."""
    inputs["token_ids"] = token_ids
    graph.replay()
    return graph.output


def fixed(graph: Any, inputs: dict[str, Tensor], token_ids: Tensor) -> Tensor:
    """The values move, the tensor stays; and the result is copied, for the next replay overwrites it."""
    inputs["token_ids"].copy_(token_ids)
    graph.replay()
    return graph.output.clone()


def detect(run: Callable[[Any, dict[str, Tensor], Tensor], Tensor]) -> None:
    """Two different batches give two different results, and the first is still there after the second."""
    from course.graphs import CpuGraph

    table = torch.arange(10.0) * 11
    inputs = {"token_ids": torch.tensor([1, 2])}
    recorded = inputs["token_ids"]
    graph = CpuGraph(lambda: table[recorded])
    first, second = run(graph, inputs, torch.tensor([3, 4])), run(graph, inputs, torch.tensor([5, 6]))
    got = [first.tolist(), second.tolist()]
    assert got == [[33, 44], [55, 66]], f"tokens [3, 4] and [5, 6] give {got}, not rows 33, 44 and 55, 66"


EXHIBIT = Exhibit(
    name="stale_graph_input",
    chapter="06_cuda_graphs",
    title="The graph still reads the batch that it was recorded with",
    symptom="No error and full speed, but every batch gets the answer to the recorded one.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="PyTorch's notes on CUDA graphs: replays read and write the same virtual addresses",
)
