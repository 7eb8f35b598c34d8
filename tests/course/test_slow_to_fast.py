"""The ladders count what the engine computes, switch off what they say, and the script that records one runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from course import anatomy, notebooks, plots, recorded, roofline
from course import slow_to_fast as lesson
from course.exercises import CORRECT, WRONG, grade
from nanovllm.config import EMBEDDED_MODEL, ModelConfig
from nanovllm.layers.packed import PackedWeight

CONFIG = ModelConfig.from_folder(EMBEDDED_MODEL)
QWEN = anatomy.PUBLISHED["Qwen3-0.6B"]
ROOF = roofline.Roof(flops=8e10, bandwidth=1e10)


@pytest.fixture(scope="module")
def runs():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lesson.climb(rounds=1)
    torch.set_num_threads(threads)


# --- the ladder of the processor -----------------------------------------------------------------------------------


def test_every_rung_gives_transformers_tokens(runs):
    model = anatomy.load_transformers(EMBEDDED_MODEL)
    with lesson.engine({}) as llm:
        prompts = lesson.workload(llm.tokenizer)
    wanted = [anatomy.greedy_by_transformers(model, ids, n) for ids, n in zip(prompts, lesson.LENGTHS, strict=True)]
    for run in runs:
        assert run.tokens == wanted, run.name


def test_the_work_is_that_of_closed_forms(runs):
    with lesson.engine({}) as llm:
        pairs = list(zip(map(len, lesson.workload(llm.tokenizer)), lesson.LENGTHS, strict=True))
    by_name = {run.name: run for run in runs}
    assert by_name["recompute everything"].computed == sum(p + i for p, n in pairs for i in range(n))
    assert by_name["KV cache"].computed == by_name["continuous batching"].computed == sum(p + n - 1 for p, n in pairs)
    assert len(by_name["static batches"].steps) == max(lesson.LENGTHS[:8]) + max(lesson.LENGTHS[8:])
    assert len(by_name["continuous batching"].steps) == max(lesson.LENGTHS)
    shared = by_name["continuous batching"].computed - by_name["prefix caching"].computed
    assert shared == 8 * 48  # the second eight find three blocks each
    assert [run.steps for run in runs[5:]] == [runs[4].steps] * 3


def test_a_floor_is_the_sum_over_steps():
    steps = [[roofline.Chunk(0, 200)], [roofline.Chunk(200, 1)]]
    run = lesson.Run("", [], steps)
    prefill, decode = run.costs(CONFIG)
    assert prefill.flops / ROOF.flops > prefill.bytes / ROOF.bandwidth
    assert decode.flops / ROOF.flops < decode.bytes / ROOF.bandwidth
    assert run.floor(CONFIG, ROOF) == prefill.flops / ROOF.flops + decode.bytes / ROOF.bandwidth
    assert run.work(CONFIG).flops == prefill.flops + decode.flops


# --- switching off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in lesson.SWITCHES if name != "fused" and name != "early"])
def test_a_switch_turns_off_inside_its_block_only(name):
    import importlib

    module, attribute, off = lesson.SWITCHES[name]
    before = getattr(importlib.import_module(module), attribute)
    with lesson.without([name]):
        assert getattr(importlib.import_module(module), attribute) is off
    assert getattr(importlib.import_module(module), attribute) is before


def test_without_packing_no_layer_is_packed():
    def packed(llm):
        return [m for m in llm.model_runner.model.modules() if isinstance(getattr(m, "packed", None), PackedWeight)]

    with lesson.without(["packed"]), lesson.engine({}) as llm:
        assert packed(llm) == []
    with lesson.engine({}) as llm:
        assert packed(llm)


def test_without_loops_norms_are_pytorchs(monkeypatch):
    from nanovllm.kernels import cpu_fused

    calls = []
    names = {"rms_norm", "add_rms_norm", "qknorm_rope_store", "silu_mul"}
    for name in names:
        function = getattr(cpu_fused, name)
        monkeypatch.setattr(cpu_fused, name, lambda *args, f=function, n=name: calls.append(n) or f(*args))
    with lesson.engine({}) as llm:
        with lesson.without(["loops"]):
            lesson.one_token_each(llm, [[5, 6, 7]])
        assert calls == []
        lesson.one_token_each(llm, [[8, 9, 10]])
    assert set(calls) == names


def test_forgetting_empties_the_prefix_cache():
    with lesson.engine({"enable_prefix_caching": True}) as llm:
        prompt = [list(range(100, 140))]
        computed = []
        for forget in (False, False, True):
            if forget:
                lesson.forget(llm)
            with lesson.watched(llm) as steps:
                lesson.one_token_each(llm, prompt)
            computed.append(sum(chunk.new for chunks in steps for chunk in chunks))
        llm.scheduler.check_integrity()
    assert computed == [40, 8, 40]


# --- parts and pictures --------------------------------------------------------------------------------------------


def test_the_parts_of_a_step_are_all_of_it_and_the_hooks_come_off():
    with lesson.engine({"enable_prefix_caching": False}, max_model_len=64) as llm:
        layer = llm.model_runner.model.attention_layers()[0]
        parts = lesson.step_parts(llm, batch=2, context=16, steps=3)
        assert "forward" not in vars(layer)
        assert not llm.has_unfinished
    assert list(parts) == list(lesson.PARTS)
    assert all(value > 0 for value in parts.values())


def test_chosen_parts_take_each_from_where_it_is_switched():
    measured = {on: {4: dict.fromkeys(lesson.PARTS, value)} for on, value in ((False, 8.0), (True, 2.0))}
    on = dict(zip(lesson.PARTS[:3], (True, False, True), strict=True))
    assert list(lesson.chosen_parts(measured, 4, on).values()) == [2.0, 8.0, 2.0, 2.0]


def test_pictures_can_be_drawn(runs):
    measured = {on: {4: dict.fromkeys(lesson.PARTS, value)} for on, value in ((False, 8e-3), (True, 2e-3))}
    rungs = [
        {"name": name, "batches": [{"batch": batch, "seconds": [batch * 1e-3 / k]} for batch in (1, 32)]}
        for k, name in enumerate(("slow", "fast"), 1)
    ]
    rates, limit, _ = lesson.bench_rates()
    figures = [
        lesson.draw_ladder(runs, CONFIG, ROOF),
        lesson.draw_parts(measured, {4: 1e-3}, 4, True, False, True),
        lesson.draw_parts(measured, {4: 1e-3}, 4, False, False, True),
        lesson.draw_steps(rungs, {1: 2e-4}, "a ladder"),
        lesson.draw_rates(rates, limit, "tokens/s", "the bench"),
        lesson.draw_rates({"a": 1.0, "b": 2.0}, None, "tokens/s", "no limit"),
    ]
    assert len({plots.png(figure) for figure in figures}) == len(figures)


# --- benchmarks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "launch"), [(50.0, 5.0), (4.0, 10.0)])
def test_the_pretend_device_equals_a_timeline(kernel, launch):
    from course.graphs import timeline

    device = lesson.PretendDevice(kernel, launch, compile=0.0, cold=kernel)
    for _ in range(7):
        device.work()
    assert device.now() == 7 * launch
    device.synchronize()
    assert device.now() == timeline([kernel] * 7, launch)[-1][2]


def test_the_bench_is_the_one_of_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(notebooks.ROOT / "benchmarks"))
    import throughput

    prompts, outputs = throughput.bench_requests(256, 100, 1024, 10_001, 0)
    assert lesson.bench_lengths() == ([len(prompt) for prompt in prompts], outputs)
    ours = recorded.load("throughput-nanovllm-graphs")["workload"]
    assert (sum(map(len, prompts)), sum(outputs)) == (ours["input_tokens"], ours["output_tokens"])


def test_the_floor_of_a_bench_is_that_of_its_steps():
    prompts, outputs = [5, 9, 3], [4, 1, 6]
    floor = lesson.bench_floor(QWEN, prompts, outputs)
    read = weights = 0
    for step in range(1, max(outputs)):
        contexts = [p + step for p, n in zip(prompts, outputs, strict=True) if step < n]
        read += sum(contexts) * 114_688  # 112 KiB a token
        weights += roofline.weight_bytes(QWEN, 2)
    assert (floor.kv_bytes, floor.weight_bytes, floor.steps) == (read, weights, max(outputs) - 1)
    assert floor.prefill_flops == sum(roofline.prefill_cost(QWEN, p, 2).flops for p in prompts)


def test_peers_say_the_bandwidth_that_the_lesson_uses():
    text = (notebooks.ROOT / "benchmarks" / "peers.json").read_text(encoding="utf-8")
    assert "3.08 TB/s" in json.loads(text)["measured"]["roofline"]


def test_a_recorded_ladder_is_shown_as_soon_as_there_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorded, "FOLDERS", (tmp_path,))
    assert lesson.recorded_ladder() is None
    assert "not recorded yet" in capsys.readouterr().out
    run = recorded.SCHEMA_KEYS
    data = {key: {} if kind is dict else "" for key, kind in run.items()}
    data |= {"schema": 1, "device": {"name": "a GPU"}, "samples": [1.0], "median": 1.0, "rungs": []}
    (tmp_path / "slow_to_fast.json").write_text(json.dumps(data), encoding="utf-8")
    assert lesson.recorded_ladder()["rungs"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recording_script_climbs_the_gpus_ladder_under_the_interpreter(tmp_path):
    script = notebooks.ROOT / "benchmarks" / "record_slow_to_fast.py"
    words = ["--model", "random:tiny", "--batches", "2", "--context", "4", "--steps", "1", "--rounds", "1", "--out"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, str(script), *words, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=550,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    data = json.loads((tmp_path / "slow_to_fast.json").read_text(encoding="utf-8"))
    assert recorded.faults(data) == []
    assert [rung["name"] for rung in data["rungs"]] == [rung.name for rung in lesson.GPU_LADDER]
    assert [rung["batches"][0]["same_tokens"] for rung in data["rungs"]] == [None] + [1.0] * 7  # float32
    assert [row["batch"] for row in data["floors"]] == [2]
    floors = {row["batch"]: ROOF.seconds(roofline.Cost(row["flops"], row["bytes"])) for row in data["floors"]}
    lesson.draw_steps(data["rungs"], floors, data["workload"]["model"])


# --- exercises -----------------------------------------------------------------------------------------------------


def test_the_floor_checker_agrees_with_the_course():
    def least(steps, weights, kv, flops, bandwidth, speed):
        roof = roofline.Roof(flops=speed, bandwidth=bandwidth)
        costs = [
            roofline.Cost(flops * sum(n for _, n in chunks), weights + kv * sum(c + n for c, n in chunks))
            for chunks in steps
        ]
        return sum(map(roof.seconds, costs))

    assert grade("schedule-floor", least).verdict == CORRECT
    assert grade("schedule-floor", lambda *a: 0.99 * least(*a)).verdict == WRONG


def test_a_benchmark_that_runs_less_than_asked_is_noticed():
    def benchmark(device, repeats):
        device.work()
        device.synchronize()
        start = device.now()
        for _ in range(repeats // 2):
            device.work()
        device.synchronize()
        return (device.now() - start) / (repeats // 2)

    assert grade("honest-benchmark", benchmark).verdict == WRONG
    assert grade("honest-benchmark", lambda device, repeats: 50.0).verdict == WRONG


@pytest.mark.parametrize("name", lesson.careless_times(50.0, 5.0, 200))
def test_every_careless_time_is_wrong_for_the_kernel_that_the_lesson_shows(name):
    assert abs(lesson.careless_times(50.0, 5.0, 200)[name] - 50) > 2.5
