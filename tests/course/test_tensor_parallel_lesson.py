"""The lesson on tensor parallel: its two processes compute what one does, and its cost model is what it says."""

from __future__ import annotations

import gc
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


def test_the_recorded_runs_are_what_the_lesson_says():
    """Its sentences give these figures, rounded."""
    run = recorded.load("tensor_parallel-qwen3-8b")
    one, two = run["median_of_one_process"], run.median
    assert (int(one), int(two)) == (21, 39)
    assert all(check["equal_prompts"] == check["prompts"] for check in [run["float32_check"]])
    reading = parallel.read_bytes(anatomy.PUBLISHED["Qwen3-8B"]) / parallel.H200_BYTES_A_SECOND * 1e3
    assert round(one - reading) == 18 and f"{reading / 2:.1f}" == "1.6"
    assert round((two - one + reading / 2) / 74 * 1e3, -1) == 260
    assert [round(f(run[k])) for k in ("samples", "samples_of_one_process") for f in (min, max)] == [28, 54, 20, 28]


def test_a_step_message_is_small():
    small, large = parallel.step_message_bytes(32, 100), parallel.step_message_bytes(32, 1000)
    assert 1000 < small < large < 16 * 1024


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
        " 3.15 ms",
        " 4.54 ms, 0.70 ×",
        " 3.75 ms, 0.84 ×",
        " 3.35 ms, 0.94 ×",
    ]
    pictures = [parallel.draw_split(), cost, parallel.draw_recorded({"a": run, "b": run})]
    pictures.append(parallel.draw_all_reduce([1024, 2**22], [1e-4, 1e-3]))
    assert all(plots.png(picture).startswith(b"\x89PNG") for picture in pictures)
