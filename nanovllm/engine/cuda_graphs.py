"""CUDA graphs of the decode step: its launches are recorded once and replayed with one call.

A small model's decode step is hundreds of short kernels; launching each from Python takes longer than running it. A graph
records the launches with the addresses they work on. So inputs are copied into the same tensors before every replay, and
a batch is padded to the next size that was recorded. Nothing is compiled, and nothing is faster but the launching.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

from nanovllm.attention.base import AttentionMetadata
from nanovllm.engine.input_batch import StepInputs


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
    """Static inputs for the largest batch, and a graph a size that reads their first rows and writes logits.

    A padding row has context length 0, so it reads nothing, and slot -1, so it writes nothing.

    Args:
        forward: the step to record, StepInputs -> logits (rows, vocab_size).
        sizes: ascending batch sizes.
        max_model_len: the longest context that the graphs must serve.
        block_size: token slots in a block.
        device: a CUDA device.
    """

    def __init__(
        self,
        forward: Callable[[StepInputs], torch.Tensor],
        sizes: list[int],
        max_model_len: int,
        block_size: int,
        device: torch.device,
    ):
        self.forward = forward
        self.sizes = sizes
        self.max_model_len = max_model_len
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.logits: dict[int, torch.Tensor] = {}
        self._pool = None
        rows = sizes[-1]

        def tensor(*shape: int, dtype: torch.dtype = torch.int32, fill: int = 0) -> torch.Tensor:
            return torch.full(shape, fill, dtype=dtype, device=device)

        self.token_ids = tensor(rows, dtype=torch.int64)
        self.positions = tensor(rows, dtype=torch.int64)
        self.slot_mapping = tensor(rows, fill=-1)
        self.context_lens = tensor(rows)
        self.block_tables = tensor(rows, -(-max_model_len // block_size))
        self.rows = torch.arange(rows + 1, device=device)
        self.query_start = self.rows.to(torch.int32)

    def record(self) -> None:
        """Records all sizes, the largest first: the smaller ones then reuse its memory."""
        for size in reversed(self.sizes):
            self.record_one(size)

    def record_one(self, size: int) -> None:
        """Runs the step once, so that everything lazy has happened, then records it."""
        inputs = self._inputs(size)
        self.forward(inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self.logits[size] = self.forward(inputs)
        self._pool = self._pool or graph.pool()
        self.graphs[size] = graph

    def serves(self, num_seqs: int, num_decodes: int) -> bool:
        """Whether a batch is one of decodes only and small enough."""
        return num_seqs == num_decodes and bucket_for(num_seqs, self.sizes) is not None

    def replay(self, inputs: StepInputs) -> torch.Tensor:
        """Logits (rows that sample, vocab_size) of a batch that `serves` accepts; valid until the next replay."""
        num_seqs, num_blocks = inputs.metadata.block_tables.shape
        size = bucket_for(num_seqs, self.sizes)
        self.token_ids[:num_seqs].copy_(inputs.token_ids)
        self.positions[:num_seqs].copy_(inputs.positions)
        self.slot_mapping[:num_seqs].copy_(inputs.metadata.slot_mapping)
        self.context_lens[:num_seqs].copy_(inputs.metadata.context_lens)
        self.block_tables[:num_seqs, :num_blocks].copy_(inputs.metadata.block_tables)
        # Rows that an earlier, larger batch left behind would write its tokens again.
        self.slot_mapping[num_seqs:size].fill_(-1)
        self.context_lens[num_seqs:size].fill_(0)
        self.graphs[size].replay()
        return self.logits[size][inputs.sampled_rows]

    def _inputs(self, size: int) -> StepInputs:
        metadata = AttentionMetadata(
            query_start=self.query_start[: size + 1],
            context_lens=self.context_lens[:size],
            block_tables=self.block_tables[:size],
            slot_mapping=self.slot_mapping[:size],
            num_decodes=size,
            max_query_len=1,
            max_context_len=self.max_model_len,
        )
        return StepInputs(self.token_ids[:size], self.positions[:size], metadata, self.rows[:size])
