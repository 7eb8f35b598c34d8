"""What the lesson on the KV cache counts, against tensors, transformers, the engine's block manager and a second formula."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from course import anatomy, plots, recorded
from course import kv_cache as lesson
from nanovllm.config import EMBEDDED_MODEL
from nanovllm.utils.memory import num_kv_blocks

CARDS = {"0.6B": 0.6, "1.7B": 1.7, "4B": 4.0, "8B": 8.2, "14B": 14.8, "32B": 32.8}
"""Parameters in billions, as the model cards on the hub state them."""


@pytest.mark.parametrize("name", lesson.QWEN3)
def test_the_shapes_are_those_of_the_published_models(name):
    config = lesson.QWEN3[name]
    assert round(anatomy.count_parameters(config) / 1e9, 1) == CARDS[name.removeprefix("Qwen3-")]
    if name in anatomy.PUBLISHED:
        assert config == anatomy.PUBLISHED[name]


def test_the_benchmarks_have_the_same_shapes(monkeypatch):
    monkeypatch.syspath_prepend(str(recorded.ROOT / "benchmarks"))
    import random_models

    for name, config in lesson.QWEN3.items():
        raw = random_models.config(random_models.SHAPES[name.lower()])
        assert {key: raw[key] for key in vars(config) if key in raw} == {
            k: v for k, v in vars(config).items() if k in raw
        }


@pytest.mark.parametrize("ranks", [1, 2, 8, 16])
def test_bytes_per_token_are_those_of_the_tensors(ranks):
    for config in lesson.QWEN3.values():
        heads = -(-config.num_key_value_heads // ranks)
        shape = (config.num_hidden_layers, 2, heads, config.head_dim)
        assert lesson.bytes_per_token(config, ranks) == torch.empty(shape, dtype=torch.bfloat16, device="meta").nbytes


def test_what_the_lesson_says_about_the_family():
    small, large = lesson.QWEN3["Qwen3-0.6B"], lesson.QWEN3["Qwen3-32B"]
    assert round(anatomy.count_parameters(large) / anatomy.count_parameters(small)) == 55
    assert round(lesson.bytes_per_token(large) / lesson.bytes_per_token(small), 1) == 2.3
    ratios = [lesson.seed_block_bytes(c, 16) / (16 * lesson.bytes_per_token(c)) for c in lesson.QWEN3.values()]
    assert ratios == [1, 1, 2, 2, 2.5, 4]
    eight = lesson.QWEN3["Qwen3-8B"]
    users = [lesson.plan(eight, gigabytes * 1e9, 4096).users for gigabytes in (24, 80)]
    assert users[1] > 15 * users[0] > 0


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-14B"])
def test_a_plan_shares_out_the_budget_to_the_last_block(name, ranks):
    made = lesson.plan(lesson.QWEN3[name], 80e9, 5000, utilization=0.8, ranks=ranks, block_size=32)
    rest = made.budget - made.weights - made.overhead - made.step - made.cache
    assert 0 <= rest < made.block_bytes
    assert made.users == made.num_blocks // 157  # 5,000 tokens are 156.25 blocks of 32
    assert made.cache == made.num_blocks * 32 * lesson.bytes_per_token(lesson.QWEN3[name], ranks)


def test_a_model_that_does_not_fit_has_no_users():
    made = lesson.plan(lesson.QWEN3["Qwen3-32B"], 24e9, 4096)
    assert made.num_blocks < 0 and made.users == 0 and made.cache == 0


@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_slots_taken_are_whole_blocks_of_each_sequence(block_size):
    lengths = lesson.bench_lengths(num=20)
    assert all(200 <= n <= 2048 for n in lengths)
    empty = sum(-n % block_size for n in lengths)
    assert lesson.slots_taken(lengths, block_size) == sum(lengths) + empty
    assert lesson.wasted_share(lengths, block_size) == pytest.approx(empty / (sum(lengths) + empty))


def test_recorded_starts_are_what_the_formula_says():
    """Each recorded start on a GPU: the blocks follow from its terms."""
    try:
        run = recorded.load("kv_cache_budget")
    except FileNotFoundError:
        pytest.skip("nothing recorded yet")
    assert run["samples"] == [start["num_blocks"] for start in run["starts"]]
    for start in run["starts"]:
        terms = start["terms"]
        assert num_kv_blocks(**terms) == start["num_blocks"]
        assert terms["block_bytes"] == start["block_bytes"]
        assert terms["peak"] > terms["current"] > 0
    assert run["too_many"]["num_blocks"] > max(start["num_blocks"] for start in run["starts"])


def test_watched_start_reports_the_engine_and_puts_everything_back():
    from nanovllm.engine import model_runner

    before = model_runner.num_kv_blocks, torch.cuda.reset_peak_memory_stats
    settings = {"device": "cpu", "max_num_seqs": 4, "max_num_batched_tokens": 64, "num_kvcache_blocks": 40}
    with lesson.watched_start(EMBEDDED_MODEL, **settings) as (llm, found):
        assert found["num_blocks"] == llm.model_runner.num_kvcache_blocks == 40
        assert found["settings"] == settings
        lesson.largest_step(llm)
    assert before == (model_runner.num_kv_blocks, torch.cuda.reset_peak_memory_stats)


def test_the_recording_script_runs_without_a_gpu(tmp_path):
    script = recorded.ROOT / "benchmarks" / "record_kv_cache.py"
    options = ["--model", "random:tiny", "--step-tokens", "64", "--max-num-seqs", "4", "--out", str(tmp_path)]
    if torch.cuda.is_available():
        pytest.skip("on a GPU the script takes a minute")
    subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True, timeout=300)
    data = json.loads((tmp_path / "kv_cache_budget.json").read_text())
    assert recorded.faults(data) == [] and data["starts"][0]["num_blocks"] == data["samples"][0]


def test_figures_are_drawn():
    terms = {"total": 85 * 10**9, "utilization": 0.9, "used": 3 * 10**9, "peak": 3 * 10**9, "current": 12 * 10**8}
    terms |= {"block_bytes": 28 * 65536, "reserved": 3 * 10**8}
    start = {"terms": terms, "num_blocks": num_kv_blocks(**terms), "block_bytes": 28 * 65536, "block_size": 16}
    steps = [{"action": "start", "allocated": 0, "peak": 0, "reserved": 0, "device": 0}] * 2
    steps += [{"action": "del, empty_cache()", "allocated": 5, "peak": 9, "reserved": 5, "device": 6}]
    figures = [lesson.draw_per_token(lesson.QWEN3), lesson.draw_slots([5, 16], 16), lesson.draw_start(start)]
    figures += [lesson.draw_waste([20, 30], [1, 16], 64), lesson.draw_allocator(steps)]
    figures += [lesson.draw_plan("Qwen3-8B", gpu, 4096, 0.9, ranks) for gpu, ranks in (("L4", 1), ("H100", 4))]
    figures.append(lesson.draw_plan("Qwen3-32B", "L4", 4096, 0.9, 1))
    assert all(len(plots.png(figure)) > 5000 for figure in figures)


def test_print_terms_adds_up(capsys):
    mib = lesson.MIB
    terms = {"total": 1000 * mib, "utilization": 0.5, "used": 100 * mib, "peak": 90 * mib, "current": 60 * mib}
    lesson.print_terms({"terms": terms | {"block_bytes": 4 * mib, "reserved": 20 * mib}})
    printed = capsys.readouterr().out
    assert "350 MiB" in printed and printed.strip().endswith("87")
