"""Buckets and padding of the decode graphs, without a GPU: a fake graph runs the recorded function at replay."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny import make_checkpoint, random_prompts

from nanovllm import LLM, SamplingParams
from nanovllm.engine import cuda_graphs
from nanovllm.engine.cuda_graphs import DecodeGraphs, bucket_for, bucket_sizes
from nanovllm.engine.input_batch import prepare_inputs
from nanovllm.engine.scheduler import Batch, ScheduledSequence
from nanovllm.engine.sequence import Sequence


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 20, 64, 100, 256, 257, 1000])
def test_every_batch_has_the_smallest_bucket_that_holds_it(most):
    sizes = bucket_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == most
    for num_seqs in range(1, most + 1):
        size = bucket_for(num_seqs, sizes)
        assert size == min(s for s in sizes if s >= num_seqs)
        assert size - num_seqs <= (7 if num_seqs <= 64 else 15 if num_seqs <= 256 else 63)
    assert bucket_for(most + 1, sizes) is None


class FakeGraph:
    """Keeps the recorded call, and runs it again on whatever the static tensors hold: what a real graph does."""

    recording: FakeGraph | None = None

    def pool(self):
        return "pool"

    def replay(self):
        self.logits.copy_(self.forward(self.inputs))


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


def recorder(forward):
    """`forward`, which hands itself to the graph that is being recorded."""

    def call(inputs):
        logits = forward(inputs)
        if FakeGraph.recording:
            FakeGraph.recording.forward, FakeGraph.recording.inputs = forward, inputs
            FakeGraph.recording.logits = logits
        return logits

    return call


def batch_of(lengths: list[int], block_size: int = 16) -> Batch:
    entries = []
    for i, length in enumerate(lengths):
        seq = Sequence(i, list(range(1, length + 1)), SamplingParams())
        seq.num_computed_tokens = length - 1
        seq.block_table = [10 * i + j for j in range(-(-length // block_size))]
        entries.append(ScheduledSequence(seq, 1))
    return Batch(entries, len(entries))


def test_padding_rows_read_and_write_nothing_also_after_a_larger_batch(fake_cuda):
    seen = []

    def forward(inputs):
        seen.append([t.clone() for t in (inputs.metadata.slot_mapping, inputs.metadata.context_lens)])
        return inputs.token_ids[inputs.sampled_rows, None].float()

    graphs = DecodeGraphs(recorder(forward), bucket_sizes(20), 64, 16, torch.device("cpu"))
    graphs.record()
    assert fake_cuda == [None] + ["pool"] * (len(graphs.sizes) - 1)
    assert list(graphs.graphs) == sorted(graphs.sizes, reverse=True)
    for lengths in ([9, 40, 17, 33, 5, 60, 2], [3, 20, 7, 11, 9]):
        logits = graphs.replay(prepare_inputs(batch_of(lengths), 16, torch.device("cpu")))
        assert logits.flatten().tolist() == lengths  # the newest token of sequence i is its length
        slots, context_lens = seen[-1]
        assert context_lens.tolist() == lengths + [0] * (8 - len(lengths))
        assert (slots[len(lengths) :] == -1).all()
        assert slots[: len(lengths)].tolist() == [
            (10 * i + (n - 1) // 16) * 16 + (n - 1) % 16 for i, n in enumerate(lengths)
        ]


def test_only_batches_of_decodes_within_the_largest_size_are_served():
    graphs = DecodeGraphs(lambda inputs: None, bucket_sizes(20), 64, 16, torch.device("cpu"))
    assert graphs.serves(20, 20)
    assert not graphs.serves(21, 21)
    assert not graphs.serves(3, 2)


@pytest.mark.parametrize(("max_num_seqs", "num_blocks"), [(3, 7), (20, 14)])
def test_tokens_equal_eager_s(tmp_path, fake_cuda, monkeypatch, max_num_seqs, num_blocks):
    """The whole engine with fake graphs on the CPU, where contexts of length 0 are served by the numba backend."""
    folder = make_checkpoint(tmp_path)
    prompts = random_prompts(9, 2, 50, seed=6)
    params = [SamplingParams(temperature=0, max_tokens=5 + 3 * i) for i in range(9)]
    settings = {"max_num_seqs": max_num_seqs, "num_kvcache_blocks": num_blocks}
    with LLM(folder, **settings) as llm:
        expected = [output["token_ids"] for output in llm.generate(prompts, params, use_tqdm=False)]
    with LLM(folder, **settings) as llm:
        runner = llm.model_runner
        forward = runner._forward
        monkeypatch.setattr(runner, "_forward", recorder(forward))
        runner.graphs = runner._make_graphs()
        runner.graphs.record()
        replays = []
        replay = cuda_graphs.DecodeGraphs.replay
        monkeypatch.setattr(
            cuda_graphs.DecodeGraphs, "replay", lambda self, inputs: replays.append(1) or replay(self, inputs)
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output["token_ids"] for output in outputs] == expected
    assert len(replays) > 10
    assert sum(output["metrics"]["preemptions"] for output in outputs) > 0
