"""CUDA graphs without a GPU: a fake graph runs the recorded function at replay."""

from __future__ import annotations

from nanovllm import LLM
from nanovllm.engine.cuda_graphs import DecodeGraphs, bucket_sizes
from nanovllm.engine.decode_rows import DecodeRows


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


def with_fake_graphs(llm: LLM) -> list[int]:
    """Turns the decode graphs of an engine on the CPU on. Returns a list that grows by one a replay."""
    runner = llm.model_runner
    runner.rows = DecodeRows(llm.config.max_num_seqs, runner.max_model_len, runner.block_size, runner.device)
    runner.graphs = DecodeGraphs(recorder(runner._decode_rows), bucket_sizes(llm.config.max_num_seqs))
    runner.graphs.record()
    replays = []
    replay = runner.graphs.replay
    runner.graphs.replay = lambda num_seqs: replays.append(num_seqs) or replay(num_seqs)
    return replays
