"""Buckets and padding of the decode graphs, without a GPU (fake_graphs.py)."""

from __future__ import annotations

import pytest
import torch
from fake_graphs import recorder, with_fake_graphs
from tiny import make_checkpoint, random_prompts

from nanovllm import LLM, SamplingParams
from nanovllm.engine.cuda_graphs import DecodeGraphs, bucket_for, bucket_sizes
from nanovllm.engine.decode_rows import DecodeRows
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


def test_the_smallest_graph_that_holds_the_batch_is_replayed(fake_cuda):
    ran = []

    def step(size):
        ran.append(size)
        return torch.arange(size, dtype=torch.float32)[:, None]

    graphs = DecodeGraphs(recorder(step), bucket_sizes(20))
    graphs.record()
    assert fake_cuda == [None] + ["pool"] * (len(graphs.sizes) - 1)
    assert list(graphs.graphs) == sorted(graphs.sizes, reverse=True)
    for num_seqs in (1, 7, 20, 3):
        assert graphs.replay(num_seqs).flatten().tolist() == list(range(num_seqs))
        assert ran[-1] == bucket_for(num_seqs, graphs.sizes)


def decoding(seq_id: int, length: int, block_size: int = 16) -> Sequence:
    seq = Sequence(seq_id, list(range(1, length + 1)), SamplingParams())
    seq.num_computed_tokens = length - 1
    seq.block_table = [10 * seq_id + i for i in range(-(-length // block_size))]
    return seq


def test_padding_rows_read_and_write_nothing_also_after_a_larger_batch(fake_cuda):
    """Rows that others had before: were one left live, the step would write into a block that may be somebody else's."""
    rows = DecodeRows(20, 64, 16, torch.device("cpu"))
    seen = []

    def step(size):
        inputs = rows.begin_step(size)
        metadata = inputs.metadata
        seen.append([x.tolist() for x in (metadata.slot_mapping, metadata.context_lens, inputs.positions)])
        return inputs.token_ids[:, None].float()

    graphs = DecodeGraphs(recorder(step), bucket_sizes(20))
    graphs.record()
    assert all(slots == [-1] * len(slots) and not any(lens) for slots, lens, _ in seen)
    seq_id = 0
    for lengths in ([9, 40, 17, 33, 5, 60, 2, 16, 32, 48, 1], [3, 20, 7, 11, 9], [63], [8, 8, 8]):
        seqs = [decoding(seq_id + i, length) for i, length in enumerate(lengths)]
        seq_id += len(seqs)
        rows.apply(rows.place(seqs, None), None)
        logits = graphs.replay(len(seqs))
        slots, context_lens, positions = seen[-1]
        padding = bucket_for(len(seqs), graphs.sizes) - len(seqs)
        placed = [seq.num_tokens for seq in rows.sequences[: len(seqs)]]
        assert sorted(placed) == sorted(lengths)
        assert logits.flatten().tolist() == placed  # the newest token of such a sequence is its length
        assert context_lens == placed + [0] * padding
        assert positions == [length - 1 for length in placed] + [0] * padding
        assert slots[len(seqs) :] == [-1] * padding
        assert slots[: len(seqs)] == [
            seq.block_table[-1] * 16 + (seq.num_tokens - 1) % 16 for seq in rows.sequences[: len(seqs)]
        ]


def test_only_batches_of_decodes_within_the_largest_size_are_served():
    graphs = DecodeGraphs(lambda size: None, bucket_sizes(20))
    assert graphs.serves(20, 20)
    assert not graphs.serves(21, 21)
    assert not graphs.serves(3, 2)


MODES = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.9},
    "filtered": {"temperature": 0.9, "top_k": 7, "top_p": 0.9},
    "penalized": {"temperature": 0.9, "repetition_penalty": 1.3},
    "logprobs": {"temperature": 0, "logprobs": 2},
}


def mixed_requests() -> list[SamplingParams]:
    """Requests of every mode that begin, end, filter, penalize and ask for log probabilities beside each other."""
    return [
        SamplingParams(max_tokens=5 + 3 * i, seed=i, ignore_eos=True, **list(MODES.values())[i % 5]) for i in range(9)
    ]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("max_num_seqs", "num_blocks"), [(3, 7), (20, 14)])
@pytest.mark.parametrize("mode", [*MODES, "mixed"])
def test_tokens_equal_eager_s(tmp_path, fake_cuda, max_num_seqs, num_blocks, ahead, mode):
    """The whole engine with fake graphs on the CPU, where contexts of length 0 are served by the numba backend."""
    folder = make_checkpoint(tmp_path)
    prompts = random_prompts(9, 2, 50, seed=6)
    if mode == "mixed":
        params = mixed_requests()
    else:
        params = [SamplingParams(max_tokens=5 + 3 * i, seed=i, **MODES[mode]) for i in range(9)]
    settings = {"max_num_seqs": max_num_seqs, "num_kvcache_blocks": num_blocks}
    with LLM(folder, **settings) as llm:
        expected = llm.generate(prompts, params, use_tqdm=False)
    with LLM(folder, **settings, async_scheduling=ahead) as llm:
        replays = with_fake_graphs(llm)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.scheduler.check_integrity()
        assert llm.scheduler.block_manager.num_free_blocks == num_blocks
    assert [output["token_ids"] for output in outputs] == [output["token_ids"] for output in expected]
    for output, other in zip(outputs, expected):
        assert (output["logprobs"] is None) == (other["logprobs"] is None)
        for mine, theirs in zip(output["logprobs"] or [], other["logprobs"] or []):
            assert mine == pytest.approx(theirs, abs=1e-4)
    assert len(replays) > 10
    assert sum(output["metrics"]["preemptions"] for output in outputs) > 0


def test_only_the_rows_that_the_step_cannot_draw_are_drawn_again(tmp_path, fake_cuda, monkeypatch):
    """One request that filters must not have a whole batch's logits sorted."""
    params = [SamplingParams(max_tokens=8, seed=i, ignore_eos=True, top_k=5 if i == 2 else 0) for i in range(6)]
    with LLM(make_checkpoint(tmp_path)) as llm:
        replays = with_fake_graphs(llm)
        again = []
        drawn = llm.model_runner._sample

        def record(logits, seqs):
            if replays:
                again.append([seq.seq_id for seq in seqs])
            return drawn(logits, seqs)

        monkeypatch.setattr(llm.model_runner, "_sample", record)
        llm.generate(random_prompts(6, 3, 10, seed=7), params, use_tqdm=False)
    assert again == [[2]] * len(replays) and len(replays) == 7
