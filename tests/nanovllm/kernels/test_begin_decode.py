"""Positions, slots and context lengths of a decode step against the same arithmetic in Python."""

import random

import pytest
import torch

from nanovllm.kernels.begin_decode import begin_decode


@pytest.mark.parametrize("num_rows", [1, 7, 128, 131])
@pytest.mark.parametrize("block_size", [16, 256])
def test_every_row_moves_on_by_one_token_and_padding_stays(num_rows, block_size, device):
    draw = random.Random(num_rows)
    positions = [
        draw.choice([-1, 0, block_size - 1, block_size, draw.randrange(4 * block_size - 3)]) for _ in range(num_rows)
    ]
    tables = [[draw.randrange(1000) for _ in range(4)] for _ in range(num_rows)]
    on_device = torch.tensor(positions, dtype=torch.int32, device=device)
    table = torch.tensor(tables, dtype=torch.int32, device=device)
    outputs = [torch.full((num_rows,), 99, dtype=torch.int32, device=device) for _ in range(3)]
    for _ in range(3):
        begin_decode(on_device, table, block_size, *outputs)
        step_positions, context_lens, slots = (tensor.tolist() for tensor in outputs)
        assert step_positions == [max(p, 0) for p in positions]
        assert context_lens == [p + 1 for p in positions]
        assert slots == [
            -1 if p < 0 else blocks[p // block_size] * block_size + p % block_size
            for p, blocks in zip(positions, tables)
        ]
        positions = [p + 1 if p >= 0 else -1 for p in positions]
        assert on_device.tolist() == positions
