"""Stands in for CUDA graphs where there is no GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch
from fake_graphs import FakeGraph


@pytest.fixture
def fake_cuda(monkeypatch):
    pools = []

    @contextlib.contextmanager
    def graph(fake, pool):
        pools.append(pool)
        FakeGraph.recording = fake
        yield
        FakeGraph.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return pools
