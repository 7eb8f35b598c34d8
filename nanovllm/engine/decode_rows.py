"""The decoding sequences on the device: one row each, which stays from step to step.

A decode step needs a sequence's token, position, block table and sampling parameters. All but little of that is what the
step before had: the token is the one it drew, the position is one further. So the rows live on the device, the step
itself moves them on (`nanovllm.kernels.begin_decode`), and the host uploads changes only: who came, who left, new blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import torch

from nanovllm.attention.base import AttentionMetadata
from nanovllm.engine.input_batch import Drawn, StepInputs
from nanovllm.engine.sequence import Sequence
from nanovllm.kernels.begin_decode import begin_decode
from nanovllm.kernels.sample import sample, sample_shard, tokens_of
from nanovllm.layers.embedding import ParallelLMHead


@dataclass(slots=True)
class RowChanges:
    """What one step changes on the device.

    Attributes:
        cells: numbers to write, by their place in the rows' memory. Each place once: a scatter on a GPU has no order, so
            of two values for a row that one sequence leaves and another takes either could win.
        moved_to, moved_from: rows whose token the last launched step drew, and where that step left it.
        known_rows, known_tokens: rows whose token the host knows.
    """

    cells: dict[int, int] = field(default_factory=dict)
    moved_to: list[int] = field(default_factory=list)
    moved_from: list[int] = field(default_factory=list)
    known_rows: list[int] = field(default_factory=list)
    known_tokens: list[int] = field(default_factory=list)


class DecodeRows:
    """Rows 0 to n - 1 hold the n decoding sequences, in any order; the rest are padding (position -1).

    Args:
        max_rows: most sequences of a step.
        max_model_len: the longest context.
        block_size: token slots in a block.
        device: where the rows live.

    Attributes:
        sequences: (max_rows) the sequence of each row, or None.
        unusual: rows whose tokens the step's own sampler must not draw: they filter, penalize or want log probabilities.
        tokens: (max_rows) int64, what the next step computes; the step writes what it draws here.
        seeds: (max_rows) int64; positions: (max_rows) int32; temperatures: (max_rows) float32;
        block_tables: (max_rows, blocks of max_model_len) int32.
    """

    def __init__(self, max_rows: int, max_model_len: int, block_size: int, device: torch.device):
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.device = device
        self.sequences: list[Sequence | None] = [None] * max_rows
        self.unusual: set[int] = set()
        self._row_of: dict[int, int] = {}
        self._tables: list[list[int] | None] = [None] * max_rows  # as uploaded: the list object that the row follows
        self._num_blocks = [0] * max_rows  # of it that are uploaded
        self._positions = [-1] * max_rows  # where the device stands

        width = -(-max_model_len // block_size)
        # One piece of memory, so that changes of any kind are one upload.
        self._memory = torch.zeros(max_rows * (4 + width), dtype=torch.int32, device=device)
        seeds, positions, temperatures, tables = self._memory.split(
            [2 * max_rows, max_rows, max_rows, max_rows * width]
        )
        self.seeds = seeds.view(torch.int64)
        self.positions = positions.fill_(-1)
        self.temperatures = temperatures.view(torch.float32)
        self.block_tables = tables.view(max_rows, width)
        self._first_position, self._first_temperature, self._first_table = 2 * max_rows, 3 * max_rows, 4 * max_rows
        self._width = width
        self.tokens = torch.zeros(max_rows, dtype=torch.int64, device=device)
        # Written by every step for its own layers.
        self._step_positions, self._context_lens, self._slots = torch.zeros(
            3, max_rows, dtype=torch.int32, device=device
        )
        self._query_start = torch.arange(max_rows + 1, dtype=torch.int32, device=device)

    # Host: which row is whose

    def place(self, seqs: list[Sequence], drawn: Drawn | None) -> RowChanges:
        """Gives the sequences the first rows; who has one of them keeps it.

        Args:
            seqs: the sequences of a decode step, each with one token to compute.
            drawn: what the last launched step drew; has the tokens that are in flight.

        Returns what has to change on the device before the step; nothing where all just go on.
        """
        changes = RowChanges()
        present = {seq.seq_id for seq in seqs}
        for row, seq in enumerate(self.sequences):
            if seq is not None and (row >= len(seqs) or seq.seq_id not in present):
                self._vacate(row, changes)
        holes = iter([row for row in range(len(seqs)) if self.sequences[row] is None])
        for seq in seqs:
            row = self._row_of.get(seq.seq_id)
            if row is None:
                self._fill(next(holes), seq, drawn, changes)
            # Another list: the sequence was preempted and has other blocks. Another position: a step that was no
            # decode step moved it on.
            elif self._tables[row] is not seq.block_table or self._positions[row] != seq.num_computed_tokens:
                self._fill(row, seq, drawn, changes)
            else:
                self._add_blocks(row, changes)
        for row in range(len(seqs)):
            self._positions[row] += 1  # the step does the same
        return changes

    def _vacate(self, row: int, changes: RowChanges) -> None:
        del self._row_of[self.sequences[row].seq_id]
        self.sequences[row] = self._tables[row] = None
        self.unusual.discard(row)
        self._set_position(row, -1, changes)

    def _fill(self, row: int, seq: Sequence, drawn: Drawn | None, changes: RowChanges) -> None:
        self.sequences[row] = seq
        self._row_of[seq.seq_id] = row
        self._tables[row] = seq.block_table
        self._num_blocks[row] = 0
        params = seq.sampling_params
        usual = not (params.penalizes or (params.filters and not params.greedy) or params.logprobs is not None)
        (self.unusual.discard if usual else self.unusual.add)(row)
        self._set_position(row, seq.num_computed_tokens, changes)
        changes.cells[2 * row] = seq.seed & 0xFFFFFFFF
        changes.cells[2 * row + 1] = seq.seed >> 32
        changes.cells[self._first_temperature + row] = struct.unpack("<i", struct.pack("<f", params.temperature))[0]
        self._add_blocks(row, changes)
        if seq.num_in_flight:
            changes.moved_to.append(row)
            changes.moved_from.append(drawn.index_of[seq.seq_id])
        else:
            changes.known_rows.append(row)
            changes.known_tokens.append(seq.token_ids[seq.num_computed_tokens])

    def _set_position(self, row: int, position: int, changes: RowChanges) -> None:
        self._positions[row] = position
        changes.cells[self._first_position + row] = position

    def _add_blocks(self, row: int, changes: RowChanges) -> None:
        new = self._tables[row][self._num_blocks[row] :]
        if new:
            first = self._first_table + row * self._width + self._num_blocks[row]
            changes.cells.update(zip(range(first, first + len(new)), new))
            self._num_blocks[row] += len(new)

    def drawn(self) -> Drawn:
        """What a step that runs now will have drawn."""
        return Drawn(self.tokens, dict(self._row_of))

    # Device

    def apply(self, changes: RowChanges, drawn: Drawn | None) -> None:
        """Uploads the changes, in one copy."""
        parts = [
            list(changes.cells), list(changes.cells.values()),
            changes.moved_to, changes.moved_from, changes.known_rows, changes.known_tokens,
        ]  # fmt: skip
        if not any(parts):
            return
        packed = torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))
        if self.device.type == "cuda":
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        cells, values, moved_to, moved_from, known_rows, known_tokens = packed.split([len(part) for part in parts])
        self._memory[cells] = values.to(torch.int32)  # a seed's halves wrap around, as they should
        if changes.moved_to:
            self.tokens[moved_to] = drawn.tokens[moved_from]
        if changes.known_rows:
            self.tokens[known_rows] = known_tokens

    def begin_step(self, size: int) -> StepInputs:
        """Moves the first `size` rows on by one token and returns the inputs of the step that computes it.

        The same tensors each time: what a CUDA graph needs.
        """
        metadata = AttentionMetadata(
            query_start=self._query_start[: size + 1],
            context_lens=self._context_lens[:size],
            block_tables=self.block_tables[:size],
            slot_mapping=self._slots[:size],
            num_decodes=size,
            max_query_len=1,
            max_context_len=self.max_model_len,
        )
        step_positions = self._step_positions[:size]
        begin_decode(
            self.positions[:size],
            metadata.block_tables,
            self.block_size,
            step_positions,
            metadata.context_lens,
            metadata.slot_mapping,
        )
        return StepInputs(self.tokens[:size], step_positions, metadata)

    def draw(self, logits: torch.Tensor, head: ParallelLMHead) -> None:
        """Draws each row's next token, on every rank the same, and puts it in place for the next step.

        Args:
            logits: (size, rows), this rank's shard, as the head computed it.
        """
        size = len(logits)
        # The drawn token's index in its sequence is the number of tokens before it: the context length.
        inputs = logits[:, : head.num_tokens], self.temperatures[:size], self.seeds[:size], self._context_lens[:size]
        if head.tp.size == 1:
            sample(*inputs, out=self.tokens[:size])
        else:
            tokens_of(head.tp.maximum(sample_shard(*inputs, head.first)), out=self.tokens[:size])
