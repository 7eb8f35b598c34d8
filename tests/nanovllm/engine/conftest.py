"""Stands in for CUDA graphs where there is no GPU."""

from __future__ import annotations

import pytest
from fake_graphs import fake_cuda


@pytest.fixture(name="fake_cuda")
def _fake_cuda(monkeypatch):
    return fake_cuda(monkeypatch.setattr)
