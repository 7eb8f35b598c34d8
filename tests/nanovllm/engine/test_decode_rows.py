"""What is uploaded for a decode step: who keeps a row, who moves, and nothing for those who just go on."""

from __future__ import annotations

import random

import torch

from nanovllm import SamplingParams
from nanovllm.engine.decode_rows import DecodeRows
from nanovllm.engine.input_batch import Drawn
from nanovllm.engine.sequence import Sequence

CPU = torch.device("cpu")


def sequence(seq_id: int, length: int, block_size: int = 16) -> Sequence:
    seq = Sequence(seq_id, list(range(1, length + 1)), SamplingParams(temperature=seq_id / 8), seed=seq_id << 33 | 5)
    seq.num_computed_tokens = length - 1
    seq.block_table = [100 * seq_id + i for i in range(-(-length // block_size))]
    return seq


def go_on(seqs: list[Sequence], block_size: int = 16) -> None:
    """What the scheduler does between two launched steps: the token is in flight, and gets a slot."""
    for seq in seqs:
        seq.num_in_flight = 1
        seq.num_computed_tokens += 1
        if seq.num_tokens > len(seq.block_table) * block_size:
            seq.block_table.append(100 * seq.seq_id + len(seq.block_table))


def check(rows: DecodeRows, seqs: list[Sequence]) -> None:
    """The device must hold what the sequences say."""
    assert {seq.seq_id for seq in rows.sequences[: len(seqs)]} == {seq.seq_id for seq in seqs}
    assert all(seq is None for seq in rows.sequences[len(seqs) :])
    assert (rows.positions[len(seqs) :] == -1).all()
    for row, seq in enumerate(rows.sequences[: len(seqs)]):
        assert rows.positions[row] == seq.num_computed_tokens
        assert rows.seeds[row] == seq.seed
        assert rows.temperatures[row] == seq.sampling_params.temperature
        assert rows.block_tables[row, : len(seq.block_table)].tolist() == seq.block_table
        assert rows.tokens[row] == (token_in_flight(seq) if seq.num_in_flight else seq.token_ids[-1])


def token_in_flight(seq: Sequence) -> int:
    return 1000 * seq.seq_id + seq.num_computed_tokens


def run_step(rows: DecodeRows, seqs: list[Sequence]) -> Drawn:
    """What the step does on the device: every row moves on and draws."""
    rows.begin_step(len(rows.sequences))
    for row, seq in enumerate(rows.sequences[: len(seqs)]):
        rows.tokens[row] = 1000 * seq.seq_id + seq.num_computed_tokens + 1
    return rows.drawn()


def test_nothing_is_uploaded_for_sequences_that_go_on():
    rows, seqs = DecodeRows(4, 64, 16, CPU), [sequence(1, 3), sequence(2, 9)]
    rows.apply(rows.place(seqs, None), None)
    check(rows, seqs)
    drawn = run_step(rows, seqs)
    go_on(seqs)
    changes = rows.place(seqs, drawn)
    assert not changes.cells and not changes.moved_to and not changes.known_rows


def test_a_new_block_is_one_cell():
    rows, seqs = DecodeRows(4, 64, 16, CPU), [sequence(1, 3), sequence(2, 16)]
    rows.apply(rows.place(seqs, None), None)
    drawn = run_step(rows, seqs)
    go_on(seqs)
    changes = rows.place(seqs, drawn)
    assert list(changes.cells.values()) == [201]
    rows.apply(changes, drawn)
    check(rows, seqs)


def test_any_coming_and_going_leaves_the_rows_as_the_sequences_say():
    """300 steps in which sequences come, end, are preempted, or take a step that is no decode step."""
    draw = random.Random(0)
    rows, seqs, drawn, next_id = DecodeRows(12, 256, 16, CPU), [], None, 1
    for _ in range(300):
        while len(seqs) < 12 and (not seqs or draw.random() < 0.4):
            seqs.insert(draw.randrange(len(seqs) + 1), sequence(next_id, draw.randint(1, 60)))
            next_id += 1
        changes = rows.place(seqs, drawn)
        rows.apply(changes, drawn)
        check(rows, seqs)
        drawn = run_step(rows, seqs)
        go_on(seqs)
        if draw.random() < 0.2:  # a step with a prefill: it computes everyone's next token, in an order of its own
            tokens = [1000 * seq.seq_id + seq.num_computed_tokens + 1 for seq in seqs]
            drawn = Drawn(torch.tensor(tokens), {seq.seq_id: index for index, seq in enumerate(seqs)})
            go_on(seqs)
        if seqs and draw.random() < 0.2:  # preempted, and back with other blocks and no token in flight
            victim = draw.choice(seqs)
            victim.token_ids += [7] * (victim.num_computed_tokens + 1 - len(victim.token_ids))
            victim.num_in_flight = 0
            victim.block_table = [100 * victim.seq_id + 50 + i for i in range(len(victim.block_table))]
        seqs = [seq for seq in seqs if draw.random() < 0.9 and seq.num_computed_tokens < 200]
