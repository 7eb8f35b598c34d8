"""Turns the scheduler's decision into the tensors of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nanovllm.attention.base import AttentionMetadata
from nanovllm.engine.scheduler import Batch
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.sampler import SamplingBatch


@dataclass(slots=True)
class StepInputs:
    """Attributes:
    token_ids, positions: (T), the new tokens of all sequences and their positions.
    metadata: what attention needs.
    sampled_rows: rows of the T tokens whose logits are needed; one for each sequence that samples, in batch order.
        None where all are.
    unknown, sources: of the tokens in flight, which of the T they are, and where the last launched step drew them;
        None where all tokens are known. See `take_drawn`.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    metadata: AttentionMetadata
    sampled_rows: torch.Tensor | None = None
    unknown: torch.Tensor | None = None
    sources: torch.Tensor | None = None

    def take_drawn(self, drawn: Drawn | None) -> None:
        """Fills in the tokens that were in flight."""
        if self.unknown is not None:
            self.token_ids[self.unknown] = drawn.tokens[self.sources]


@dataclass(slots=True)
class Drawn:
    """What a launched step draws: tokens that are on the device before they are known on the host.

    Attributes:
        tokens: int64, on the device.
        index_of: for each sequence that samples, by seq_id, where in `tokens` its token is.
    """

    tokens: torch.Tensor
    index_of: dict[int, int]


def prepare_inputs(batch: Batch, block_size: int, device: torch.device, drawn: Drawn | None = None) -> StepInputs:
    """Flattens the batch: tokens one sequence after the other, block tables padded with 0 to the longest.

    Where a token in flight will lie is looked up in `drawn`, what the last launched step draws.
    """
    scheduled = batch.scheduled
    counts = np.array([entry.num_new_tokens for entry in scheduled])
    starts = np.array([entry.seq.num_computed_tokens for entry in scheduled])
    context_lens = starts + counts
    query_start = np.zeros(len(scheduled) + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])

    tables = [entry.seq.block_table for entry in scheduled]
    block_tables = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table

    token_ids: list[int] = []
    unknown: list[int] = []
    sources: list[int] = []
    sampled_rows: list[int] = []
    for seq, num_new_tokens in scheduled:
        start = seq.num_computed_tokens
        end = start + num_new_tokens
        token_ids += seq.token_ids[start:end]
        if end > len(seq.token_ids):
            unknown.append(len(token_ids))
            sources.append(drawn.index_of[seq.seq_id])
            token_ids.append(0)
        if end == seq.num_tokens:
            sampled_rows.append(len(token_ids) - 1)

    owner = np.repeat(np.arange(len(scheduled)), counts)  # (T): which sequence each token belongs to
    positions = np.arange(len(token_ids)) - query_start[owner] + starts[owner]
    slots = block_tables[owner, positions // block_size] * block_size + positions % block_size

    def to_device(array: np.ndarray | list[int], dtype: type = np.int64) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(array, dtype))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return StepInputs(
        token_ids=to_device(token_ids),
        positions=to_device(positions),
        metadata=AttentionMetadata(
            query_start=to_device(query_start, np.int32),
            context_lens=to_device(context_lens, np.int32),
            block_tables=to_device(block_tables, np.int32),
            slot_mapping=to_device(slots, np.int32),
            num_decodes=batch.num_decodes,
            max_query_len=int(counts.max()),
            max_context_len=int(context_lens.max()),
        ),
        sampled_rows=to_device(sampled_rows) if len(sampled_rows) < len(token_ids) else None,
        unknown=to_device(unknown) if unknown else None,
        sources=to_device(sources) if unknown else None,
    )


def prepare_sampling(seqs: list[Sequence], vocab_size: int, device: torch.device, fused: bool = False) -> SamplingBatch:
    """The sampling parameters of the sequences that sample in this step."""
    params = [seq.sampling_params for seq in seqs]
    if all(p.greedy for p in params) and not fused:
        return SamplingBatch(all_greedy=True)

    def to_device(values: list, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    batch = SamplingBatch(
        temperatures=to_device([p.temperature for p in params], torch.float32),
        seeds=to_device([seq.seed for seq in seqs], torch.int64),
        positions=to_device([seq.num_tokens for seq in seqs], torch.int64),
        fused=fused,
    )
    filtered = [row for row, p in enumerate(params) if p.filters and not p.greedy]
    if filtered:
        filters = [params[row] for row in filtered]
        batch.filtered = to_device(filtered, torch.int64)
        batch.top_k = to_device([p.top_k if p.top_k > 0 else vocab_size for p in filters], torch.int64)
        batch.top_p = to_device([p.top_p for p in filters], torch.float32)
        batch.min_p = to_device([p.min_p for p in filters], torch.float32)
    return batch
