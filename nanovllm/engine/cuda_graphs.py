"""CUDA graphs of the decode step: its launches are recorded once and replayed with one call.

A small model's decode step is hundreds of short kernels; launching each from Python takes longer than running it. A graph
records the launches with the addresses they work on. So the step reads and writes the same tensors every time
(`nanovllm.engine.decode_rows`), and a batch is padded to the next size that was recorded. Nothing is compiled, and nothing
is faster but the launching.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from tqdm.auto import tqdm


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """The batch sizes to record, ascending: 1, 2, 4, 8, then steps of 8 to 64, of 16 to 256, of 64; last max_num_seqs.

    A step pads its batch by at most 7 rows to 64, 15 to 256, 63 beyond.
    """
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def bucket_for(num_seqs: int, sizes: list[int]) -> int | None:
    """The smallest recorded size that holds `num_seqs` sequences, or None where none does."""
    index = bisect_left(sizes, num_seqs)
    return sizes[index] if index < len(sizes) else None


class DecodeGraphs:
    """A graph a batch size, each of the same step on the first rows of the same tensors.

    Args:
        step: what to record: the decode step of so many rows, `size -> logits (size, N)` of this rank's part of the
            vocabulary. It may launch kernels only; padding rows must read and write nothing.
        sizes: ascending batch sizes.
    """

    def __init__(self, step: Callable[[int], torch.Tensor], sizes: list[int]):
        self.step = step
        self.sizes = sizes
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.logits: dict[int, torch.Tensor] = {}
        self._pool = None

    def record(self) -> None:
        """Records all sizes, the largest first: the smaller ones then reuse its memory."""
        for size in tqdm(self.sizes[::-1], desc="Recording CUDA graphs", leave=False, delay=2):
            self.record_one(size)

    def record_one(self, size: int) -> None:
        """Runs the step once, so that everything lazy has happened, then records it."""
        self.step(size)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self.logits[size] = self.step(size)
        self._pool = self._pool or graph.pool()
        self.graphs[size] = graph

    def serves(self, num_seqs: int, num_decodes: int) -> bool:
        """Whether a batch is one of decodes only and small enough."""
        return num_seqs == num_decodes and bucket_for(num_seqs, self.sizes) is not None

    def replay(self, num_seqs: int) -> torch.Tensor:
        """Runs the step on the first `num_seqs` rows. Returns their logits, valid until the next replay."""
        size = bucket_for(num_seqs, self.sizes)
        self.graphs[size].replay()
        return self.logits[size][:num_seqs]
