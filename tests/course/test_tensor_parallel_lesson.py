"""The lesson on tensor parallel: its two processes compute what one does, and its cost model is what it says."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import time
from multiprocessing.shared_memory import SharedMemory

import pytest
import torch
import torch.nn.functional as F

from course import anatomy, plots, recorded
from course import tensor_parallel as parallel
from course.exercises import CORRECT, WRONG, grade
from nanovllm.config import EMBEDDED_MODEL, ModelConfig
from nanovllm.engine import tensor_parallel as engine

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def ranks():
    with parallel.Ranks(2) as ranks:
        yield ranks


def random_tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# --- what two processes compute ------------------------------------------------------------------------------------


def test_the_mlp_takes_one_all_reduce(ranks):
    x, gate, up, down = random_tensors((5, 16), (12, 16), (12, 16), (16, 12))
    wanted = (F.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)) @ down.double().T
    found = ranks.run(parallel.parallel_mlp, x, gate, up, down)
    for partial, result, calls in found:
        torch.testing.assert_close(result.double(), wanted, atol=1e-3, rtol=1e-4)
        assert (partial.double() - wanted).abs().max() > 1
        assert calls == [("all-reduce", 5 * 16 * 4)]
    torch.testing.assert_close(found[0][0] + found[1][0], found[0][1])


def test_lookup_and_logits_equal_torch(ranks):
    table, hidden = random_tensors((12, 8), (3, 8))
    ids = torch.tensor([0, 5, 6, 11, 5])
    for rank, (found, whole) in enumerate(ranks.run(parallel.parallel_lookup, ids, table)):
        assert torch.equal(whole, F.embedding(ids, table))
        held = (ids >= 6 * rank) & (ids < 6 * rank + 6)
        assert torch.equal(found, whole * held[:, None])
    for logits in ranks.run(parallel.parallel_logits, hidden, table):
        torch.testing.assert_close(logits, F.linear(hidden, table))


def test_the_model_equals_transformers(ranks):
    theirs = anatomy.load_transformers(EMBEDDED_MODEL)
    with torch.no_grad():
        wanted = theirs(torch.tensor([PROMPT])).logits[0]
    config = ModelConfig.from_folder(EMBEDDED_MODEL)
    for part in ranks.run(parallel.parallel_model, EMBEDDED_MODEL, PROMPT):
        assert anatomy.difference(part["logits"], wanted) < 1e-4
        assert len(part["calls"]) == parallel.num_collectives(config)
        assert part["kv_heads"] * 2 == config.num_key_value_heads
        assert 2 * part["parameters"] == parallel.share(config, 2)[0]
    (alone,) = parallel.run_alone(parallel.parallel_model, EMBEDDED_MODEL, PROMPT)
    assert anatomy.difference(alone["logits"], wanted) < 1e-4 and alone["calls"][0][0] == "all-reduce"


@pytest.mark.parametrize("skip", [0, 1, 8, 12])
def test_each_all_reduce_matters(ranks, skip):
    (alone,) = parallel.run_alone(parallel.parallel_model, EMBEDDED_MODEL, PROMPT)
    for part in ranks.run(parallel.parallel_model, EMBEDDED_MODEL, PROMPT, skip):
        assert anatomy.difference(part["logits"], alone["logits"]) > 1e-3


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, parallel.PIECE_BYTES, 3_000_000])
def test_messages_of_any_size_arrive(ranks, size):
    message = bytes(i % 251 for i in range(size))
    assert ranks.run(parallel.checksum, message) == [(size, sum(message))] * 2
    assert parallel.message_bytes(parallel.checksum, message) > size


def test_an_error_is_reported_and_the_ranks_go_on(ranks):
    with pytest.raises(RuntimeError, match="rank 0 raised an error(.|\n)*missing 3 required"):
        ranks.run(parallel.parallel_mlp, torch.ones(1, 2))
    assert ranks.run(parallel.checksum, b"ab") == [(2, 195)] * 2


def test_a_killed_rank_is_reported_and_nothing_is_left():
    ranks = parallel.Ranks(2)
    assert ranks.run(parallel.checksum, b"") == [(0, 0)] * 2
    name = ranks._commands._segment.name
    pids = [process.pid for process in ranks._processes]
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code -9"):
        ranks.run(parallel.checksum, b"")
    del ranks  # not closed: dropped
    gc.collect()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_all_reduces_are_timed(ranks):
    for seconds in ranks.run(parallel.time_all_reduce, [1024, 2**22], 5):
        assert len(seconds) == 2 and 0 < seconds[0] < seconds[1] < 5


# --- figures -------------------------------------------------------------------------------------------------------


def test_shares():
    for config in anatomy.PUBLISHED.values():
        whole = parallel.share(config, 1)
        assert whole[0] == 2 * anatomy.transformers_parameters(config)
        assert parallel.share(config, 8)[1] * 8 == whole[1]
        assert parallel.share(config, 16)[1] == parallel.share(config, 8)[1]
        with pytest.raises(ValueError, match="num_attention_heads"):
            parallel.share(config, 3)


def test_a_step_reads_all_weights_but_the_embedding():
    tied, untied = anatomy.PUBLISHED["Qwen3-0.6B"], anatomy.PUBLISHED["Qwen3-8B"]
    assert parallel.read_bytes(tied) == 2 * anatomy.transformers_parameters(tied)
    table = untied.vocab_size * untied.hidden_size
    assert parallel.read_bytes(untied) == 2 * (anatomy.transformers_parameters(untied) - table)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_at_the_break_even_both_are_as_fast(size):
    config = anatomy.PUBLISHED["Qwen3-8B"]
    limit = parallel.break_even(config, size, 1e12)
    for fixed in (0.0, 0.5):
        one, many = (sum(parallel.step_parts(config, n, 1e12, fixed, limit).values()) for n in (1, size))
        assert one == pytest.approx(many)


SHAPE = anatomy.PUBLISHED["Qwen3-8B"]


def test_the_eager_run_is_what_the_lesson_says():
    """Its sentences give these figures, rounded."""
    run = recorded.load("tensor_parallel-qwen3-8b-af3c580")
    one, two = run["median_of_one_process"], run.median
    assert (int(one), int(two)) == (21, 39)
    for name in ("tensor_parallel-qwen3-8b-af3c580", "tensor_parallel-embedded"):
        check = recorded.load(name)["float32_check"]
        assert check["equal_prompts"] == check["prompts"]
    reading = parallel.read_bytes(SHAPE) / parallel.BYTES_A_SECOND["NVIDIA H200"] * 1e3
    assert round(one - reading) == 18 and f"{reading / 2:.1f}" == "1.6"
    assert round((two - one + reading / 2) / 74 * 1e3, -1) == 260
    assert [round(f(run[k])) for k in ("samples", "samples_of_one_process") for f in (min, max)] == [28, 54, 20, 28]
    small = parallel.read_bytes(ModelConfig.from_folder(EMBEDDED_MODEL))
    assert round(small / 1e6) == 9 and round(small / 2 / parallel.BYTES_A_SECOND["NVIDIA H200"] * 1e6) == 1


def test_the_run_with_graphs_is_what_the_lesson_says():
    run = recorded.load("tensor_parallel-qwen3-8b")
    one, two = run["median_of_one_process"], run.median
    assert run["workload"]["enforce_eager"] is False
    assert (f"{one:.1f}", f"{two:.1f}", int(100 * one / two)) == ("6.7", "5.8", 114)
    rate = json.loads((recorded.ROOT / "benchmarks" / "peers.json").read_text())["measured"]["roofline"]
    assert f"{parallel.H100_BYTES_A_SECOND / 1e12:.2f} TB/s that this H100 reads" in rate
    parts, each = parallel.recorded_parts(run, SHAPE), parallel.collective_us(run, SHAPE)
    assert [round(each[name]) for name in ("least", "most", "goal")] == [23, 34, 8]
    assert f"{parts['1 GPU']['weights']:.1f}" == "4.9" and f"{parts['2 GPUs']['collectives']:.1f}" == "1.7"
    assert round(parts["1 GPU"]["fixed"]) == 2 and one / parallel.GOAL < two
    for check in recorded.load("gpu_agreement-ranks")["parts"]["ranks"]["found"].values():
        assert check["equal"] == check["prompts"] and not check["ties"]


def runs_on_an_h200(suffix):
    return [recorded.load(f"tensor_parallel-qwen3-8b-{name}{suffix}") for name in ("h200", "h200-batch256")]


def test_the_runs_launched_ahead_are_what_the_lesson_says():
    before = recorded.load("tensor_parallel-qwen3-8b")
    few, many = runs_on_an_h200("-9a107e9")
    steps = [(run["median_of_one_process"], run.median) for run in (few, many)]
    assert [f"{each:.1f}" for each in steps[0]] == ["5.1", "4.0"]
    assert [parallel.times_as_fast(run) for run in (before, few, many)] == [1.14, 1.26, 1.47]
    assert all(two > one / parallel.GOAL for one, two in steps)

    old, new, wide = (parallel.collective_us(run, SHAPE) for run in (before, few, many))
    assert [round(new[name]) for name in ("least", "most", "goal")] == [8, 20, 6]
    assert new["most"] < old["least"] and new["goal"] < new["least"] and round(wide["least"]) == 0
    costs = [parallel.recorded_parts(run, SHAPE)["2 GPUs"]["collectives"] for run in (before, few)]
    assert few.median - costs[1] + costs[0] > few["median_of_one_process"]  # two would have gained nothing
    assert f"{few.median - costs[1] + costs[0]:.1f}" == "5.1"

    above = [two - one / 2 for one, two in steps]
    assert f"{above[1]:.1f}" == "3.1" and round(above[1] / above[0], 1) == 2.1 and steps[1][0] > 3 * steps[0][0]
    saved = parallel.recorded_parts(many, SHAPE)["2 GPUs"]
    assert saved["KV cache"] > 2 * saved["weights"]
    assert many["workload"]["batch"] == 8 * few["workload"]["batch"]
    for run in (few, many):
        assert run["float32_check"] is None and run["device"]["name"] == "NVIDIA H200"


def test_a_step_reads_the_keys_and_values_of_every_sequence():
    """36 layers, 8 heads of 128 numbers, keys and values, 2 bytes each."""
    assert parallel.kv_read_bytes(SHAPE, 256, 1024) == 256 * 1024 * 36 * 8 * 128 * 2 * 2
    assert 2 * parallel.share(SHAPE, 2)[1] * 32 * 128 == parallel.kv_read_bytes(SHAPE, 32, 128)


def test_the_runs_with_sums_of_our_own_are_what_the_lesson_says():
    old, new = runs_on_an_h200("-9a107e9"), runs_on_an_h200("")
    for before, after in zip(old, new, strict=True):
        assert before["workload"] == after["workload"] and before["device"]["name"] == after["device"]["name"]
        assert after["float32_check"] is None
    steps = [(run["median_of_one_process"], run.median) for run in new]
    assert [f"{each:.1f}" for step in steps for each in step] == ["5.0", "3.4", "16.6", "9.2"]
    assert [parallel.times_as_fast(run) for run in new] == [1.48, 1.79]
    assert [two < one / parallel.GOAL for one, two in steps] == [False, True]

    above = [[run.median - run["median_of_one_process"] / 2 for run in runs] for runs in (old, new)]
    assert [[f"{each:.1f}" for each in of] for of in above] == [["1.5", "3.1"], ["0.9", "0.9"]]
    assert [f"{before - after:.1f}" for before, after in zip(*above, strict=True)] == ["0.6", "2.1"]
    each = [[parallel.collective_us(run, SHAPE) for run in runs] for runs in (old, new)]
    assert [[round(us["most"]) for us in of] for of in each] == [[20, 42], [12, 13]]
    assert [round(us["least"]) for us in each[1]] == [0, 0] and round(each[1][1]["goal"]) == 20

    # 32 sequences would miss the goal with collectives that cost nothing, were only the reading halved.
    few = parallel.recorded_parts(new[0], SHAPE)["2 GPUs"]
    free = new[0].median - few["collectives"]
    assert free > steps[0][0] / parallel.GOAL and f"{free:.2f}" == "3.37"
    assert f"{few['fixed']:.1f}" == "1.7" and f"{steps[0][0] / parallel.GOAL - free + few['fixed']:.1f}" == "1.3"
    # 256 reach it because the rest is halved as well, in part.
    one, two = parallel.recorded_parts(new[1], SHAPE).values()
    assert [f"{parts['fixed']:.1f}" for parts in (one, two)] == ["5.4", "3.6"] and two["collectives"] == 0
    assert round(new[1]["workload"]["batch"] * SHAPE.vocab_size / 1e6) == 39  # MB: half of the logits, of two bytes


@pytest.mark.parametrize("name", ["", "-af3c580", "-h200-9a107e9", "-h200-batch256-9a107e9", "-h200", "-h200-batch256"])
def test_the_parts_of_a_recorded_run_add_up(name):
    run = recorded.load(f"tensor_parallel-qwen3-8b{name}")
    parts = parallel.recorded_parts(run, SHAPE)
    assert sum(parts["1 GPU"].values()) == pytest.approx(run["median_of_one_process"])
    assert sum(parts["2 GPUs"].values()) == pytest.approx(run.median)
    for part in ("weights", "KV cache"):
        assert parts["1 GPU"][part] == 2 * parts["2 GPUs"][part]
    assert 0 < parts["2 GPUs"]["fixed"] <= parts["1 GPU"]["fixed"]
    each = parallel.collective_us(run, SHAPE)
    assert 0 <= each["least"] < each["most"]


def test_a_step_message_is_small():
    small, large = parallel.step_message_bytes(32, 100), parallel.step_message_bytes(32, 1000)
    assert 1000 < small < large < 16 * 1024


def test_the_message_of_a_graph_is_smaller():
    pytest.importorskip("triton")
    from nanovllm.engine.decode_rows import RowChanges

    tokens = RowChanges(known_rows=list(range(32)), known_tokens=[SHAPE.vocab_size - 1] * 32)
    blocks = {2**20 + 256 * row: 2**20 + row for row in range(2)}  # a row in sixteen gets a block in each step
    for cells in ({}, blocks):
        assert len(engine.pack("replay_shard", dataclasses.replace(tokens, cells=cells), 32)) < 1024


def test_the_checkers_judge():
    assert grade("local-lookup", parallel.lookup).verdict == CORRECT
    assert grade("local-lookup", lambda ids, table, first: table[ids % 6]).verdict == WRONG
    assert (
        grade("break-even", lambda reading, size, layers: reading * (1 - 1 / size) / (2 * layers + 2)).verdict
        == CORRECT
    )
    assert grade("break-even", lambda reading, size, layers: reading / layers).verdict == WRONG
    assert grade("rank-rows", lambda *sizes: []).verdict == WRONG


def test_every_figure_can_be_drawn():
    run = recorded.load("tensor_parallel-embedded")
    cost = parallel.draw_cost("Qwen3-8B", 40, 0)
    assert [text.get_text() for text in cost.axes[0].texts] == [
        " 4.91 ms",
        " 5.42 ms, 0.91 ×",
        " 4.19 ms, 1.17 ×",
        " 3.57 ms, 1.37 ×",
    ]
    pictures = [parallel.draw_split(), cost, parallel.draw_recorded({"a": run, "b": run})]
    pair = {"a": recorded.load("tensor_parallel-qwen3-8b"), "b": run}
    four = parallel.draw_recorded_parts(pair | dict(zip("cd", runs_on_an_h200(""), strict=True)), SHAPE)
    upper, lower = four.axes[0], four.axes[2]
    assert len(four.axes) == 4 and upper.get_xlim() == lower.get_xlim()
    pictures += [parallel.draw_recorded_parts(pair, SHAPE), four]
    pictures.append(parallel.draw_all_reduce([1024, 2**22], [1e-4, 1e-3]))
    assert all(plots.png(picture).startswith(b"\x89PNG") for picture in pictures)
