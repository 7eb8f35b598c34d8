"""The stand-in for CUDA graphs keeps the rules of the real thing, and the model's recording gives the engine's tokens."""

from __future__ import annotations

import itertools

import pytest
import torch

from course import graphs, plots
from course.exercises import CORRECT, WRONG, grade
from nanovllm import LLM, SamplingParams
from nanovllm.engine.cuda_graphs import bucket_sizes


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", dtype="float32", attention_backend="reference", max_num_seqs=8) as llm:
        yield llm


@pytest.fixture(scope="module")
def model(llm):
    return graphs.static_model(llm, num_blocks=16, block_size=16)


# --- recording -----------------------------------------------------------------------------------------------------


def test_a_replay_computes_anew_from_the_recorded_addresses():
    torch.manual_seed(0)
    x, w, seen = torch.randn(5, 4), torch.randn(4, 3), torch.zeros(3)

    def step():
        y = (x @ w).view(3, 5).softmax(-1)  # a view between two launches
        seen.add_(y.sum(-1))  # in place on a tensor from outside
        return torch.cat([y, y[:1] * 2]).exp_()

    graph = graphs.CpuGraph(step)
    for _ in range(3):
        before = seen.clone()
        x.normal_()
        graph.replay()
        got, moved = graph.output.clone(), seen - before
        before = seen.clone()
        torch.testing.assert_close(got, step())
        torch.testing.assert_close(moved, seen - before)


def test_views_are_no_launches_and_writes_are():
    x = torch.arange(6.0)
    assert graphs.launches(lambda: x.view(2, 3).t()[0]) == []
    assert graphs.launches(lambda: x.view(2, 3).add_(1).contiguous() + 1) == ["add_", "add"]
    assert graphs.launches(lambda: x.view(2, 3).t().contiguous()) == ["clone"]


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_fill(x > 0, float(x[0])),
    ],
)
def test_reading_on_the_host_is_refused(bad):
    x = torch.tensor([1.0, -2.0])
    with pytest.raises(graphs.CaptureError, match="no values yet"):
        graphs.CpuGraph(lambda: bad(x))


def test_a_number_may_be_written_at_a_mask():
    x = torch.tensor([1.0, -2.0])

    def step():
        y = x.clone()
        y[x < 0] = 0.0
        return y

    graph = graphs.CpuGraph(step)
    x.neg_()
    graph.replay()
    assert graph.output.tolist() == [0.0, 2.0]


# --- the engine's model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 4])
def test_replayed_tokens_are_the_engines(llm, model, rows):
    prompts = [llm.tokenizer.encode(text) for text in ("Once upon a time", "Tom had a red ball. He", "The dog")]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    wanted = [result["token_ids"] for result in llm.generate(prompts, params, use_tqdm=False)]
    step = graphs.DecodeStep(model, rows, 4, "cpu")
    graph = graphs.capture(step, "cpu")

    def replay():
        graph.replay()
        return graph.output

    assert graphs.generate(step, step, prompts, 12) == wanted
    assert graphs.generate(replay, step, prompts, 12) == wanted


def test_padding_rows_touch_no_block_of_a_sequence(model):
    layer = model.attention_layers()[0]
    step = graphs.DecodeStep(model, 4, 4, "cpu")
    step.fill([5, 6, 7, 8], [3, 3, 3, 3], [[0], [1], [2], [3]])
    step()
    before = layer.kv_cache.clone()
    step.fill([9], [4], [[0]])
    step()
    changed = (layer.kv_cache != before).flatten(1).any(1).nonzero().flatten().tolist()
    waste = layer.kv_cache.shape[0] - 1
    assert set(changed) - {waste} == {0}


def test_the_engines_model_and_cache_are_left_alone(llm, model):
    engine = llm.model_runner.model.attention_layers()
    assert all(a.kv_cache is not b.kv_cache for a, b in zip(engine, model.attention_layers(), strict=True))
    assert all(layer.kv_cache.dtype == torch.float32 for layer in engine)
    assert next(llm.model_runner.model.parameters()).dtype == torch.float32


# --- time and padding ----------------------------------------------------------------------------------------------


def test_timeline_equals_a_simulation_by_events():
    kernels, launch = [3.0, 1.0, 7.0, 2.0, 2.0, 9.0], 2.5
    queue, host, device, clock = [], 0, None, 0.0
    ends: list[float] = []
    while len(ends) < len(kernels):  # host and device as two processes that meet in a queue
        events = [(host + 1) * launch] if host < len(kernels) else []
        events += [device] if device is not None else []
        clock = min(events)
        if host < len(kernels) and clock == (host + 1) * launch:
            queue.append(kernels[host])
            host += 1
        if device is not None and clock == device:
            ends.append(clock)
            device = None
        if device is None and queue:
            device = clock + queue.pop(0)
    assert [row[2] for row in graphs.timeline(kernels, launch)] == ends
    assert graphs.replayed(kernels, launch)[-1][2] == launch + sum(kernels)


@pytest.mark.parametrize("most", [1, 8, 100, 256])
def test_the_buckets_serve_every_batch(most):
    sizes = bucket_sizes(most)
    assert sizes[-1] == most
    assert sorted(sizes) == sizes


def test_pictures_can_be_drawn():
    rows = [{"batch": batch, "eager": [2e-3, 3e-3], "replay": [1e-3, 1e-3]} for batch in (1, 2)]
    spans = {"calls": [[0.0, 2.0, "a"], [4.0, 2.0, "b"]], "kernels": [[3.0, 1.0, "k"], [7.0, 1.0, "k"]]}
    figures = [
        graphs.draw_model_timeline(2.0, 5.0, 8),
        graphs.draw_buckets(bucket_sizes(20)),
        graphs.draw_steps(rows, "steps"),
        graphs.draw_profile({"eager": spans, "replay": spans}, 10.0),
        graphs.draw_operations(graphs.operation_seconds([10, 1000], torch.device("cpu"), repeats=3), "a CPU"),
    ]
    assert len({plots.png(figure) for figure in figures}) == len(figures)


def test_time_in_which_kernels_overlap_counts_once():
    assert graphs.covered([[3.0, 1.0, "k"], [0.0, 2.0, "k"], [1.0, 2.5, "k"], [1.5, 0.5, "k"], [10.0, 1.0, "k"]]) == 5.0


# --- exercises -----------------------------------------------------------------------------------------------------


def test_the_checkers_accept_what_the_lesson_uses():
    assert grade("step-time", lambda kernels, launch: graphs.timeline(kernels, launch)[-1][2]).verdict == CORRECT

    def fill(static, batch):
        rows = len(batch["token_ids"])
        for name, values in batch.items():
            static[name][:rows] = values
        static["context_lens"][:rows] = batch["positions"] + 1
        static["slot_mapping"][rows:], static["context_lens"][rows:] = -1, 0

    assert grade("static-inputs", fill).verdict == CORRECT


@pytest.mark.parametrize("name", ["slot_mapping", "context_lens", "token_ids", "positions"])
def test_a_forgotten_input_is_noticed(name):
    def fill(static, batch):
        rows = len(batch["token_ids"])
        values = {**batch, "context_lens": batch["positions"] + 1}
        for key in static:
            if key != name:
                static[key][:rows] = values[key]
        static["slot_mapping"][rows:], static["context_lens"][rows:] = -1, 0

    assert grade("static-inputs", fill).verdict == WRONG


def test_every_kernel_waits_for_its_own_launch():
    for kernels, launch in itertools.product(([1.0, 5.0, 1.0], [9.0, 1.0]), (0.5, 3.0)):
        for index, (called, start, _) in enumerate(graphs.timeline(kernels, launch)):
            assert start >= called == (index + 1) * launch
