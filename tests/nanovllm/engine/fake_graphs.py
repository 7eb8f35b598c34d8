"""CUDA graphs without a GPU: a fake graph runs the recorded function at replay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from nanovllm import LLM
from nanovllm.engine.cuda_graphs import DecodeGraphs, bucket_sizes
from nanovllm.engine.decode_rows import DecodeRows
from nanovllm.engine.model_runner import ModelRunner


class FakeGraph:
    """Keeps the recorded call, and makes it again on whatever the static tensors hold: what a real graph does."""

    recording: FakeGraph | None = None

    def pool(self):
        return "pool"

    def replay(self):
        self.logits.copy_(self.step(self.size))


def recorder(step):
    """`step`, which hands itself to the graph that is being recorded."""

    def call(size):
        logits = step(size)
        if FakeGraph.recording:
            FakeGraph.recording.step, FakeGraph.recording.size, FakeGraph.recording.logits = step, size, logits
        return logits

    return call


def fake_cuda(setattr: Callable[[object, str, object], None]) -> list:
    """Puts fakes in the place of what recording needs of torch.cuda. Returns a list that grows by a recording's pool."""
    pools = []

    @contextlib.contextmanager
    def graph(fake, pool):
        pools.append(pool)
        FakeGraph.recording = fake
        yield
        FakeGraph.recording = None

    setattr(torch.cuda, "CUDAGraph", FakeGraph)
    setattr(torch.cuda, "graph", graph)
    setattr(torch.cuda, "synchronize", lambda *_: None)
    return pools


def turn_graphs_on(runner: ModelRunner) -> list[int]:
    """Turns the decode graphs of a runner on the CPU on. Returns a list that grows by one a replay."""
    most = runner.config.max_num_seqs
    runner.rows = DecodeRows(most, runner.max_model_len, runner.block_size, runner.device)
    runner.graphs = DecodeGraphs(recorder(runner._decode_rows), bucket_sizes(most))
    runner.graphs.record()
    replays = []
    replay = runner.graphs.replay
    runner.graphs.replay = lambda num_seqs: replays.append(num_seqs) or replay(num_seqs)
    return replays


def with_fake_graphs(llm: LLM) -> list[int]:
    return turn_graphs_on(llm.model_runner)


def turn_graphs_on_in_this_process() -> None:
    """From now on every runner on the CPU has decode graphs: for processes that share a model."""
    fake_cuda(setattr)
    plain = ModelRunner.__init__

    def with_graphs(runner: ModelRunner, *args, **kwargs) -> None:
        plain(runner, *args, **kwargs)
        runner.replays = turn_graphs_on(runner)

    ModelRunner.__init__ = with_graphs
