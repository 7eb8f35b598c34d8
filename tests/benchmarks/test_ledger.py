"""What the ledger predicts follows from shapes and records; the files and commits that it names exist."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import subprocess
from pathlib import Path

import pytest
from random_models import SHAPES, layer_tensors

from nanovllm.config import EMBEDDED_MODEL, ModelConfig
from nanovllm.kernels.paged_decode import CONFIGS
from nanovllm.utils import inboxes
from nanovllm.utils.memory import kv_bytes_per_token

ROOT = Path(__file__).resolve().parents[2]
TEXT = " ".join((ROOT / "benchmarks" / "LEDGER.md").read_text(encoding="utf-8").split())
READS = 3.08e12  # bytes a second, of the H100 in benchmarks/peers.json
SHAPE = SHAPES["qwen3-0.6b"]


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def matrix_sizes() -> list[int]:
    return [size[0] * size[1] for size in layer_tensors(SHAPE).values() if len(size) == 2]


def test_the_cpus_floor():
    config = ModelConfig.from_folder(EMBEDDED_MODEL)
    load = result("cpu_vs_transformers_fixed-nanovllm")["workload"]
    context = sum(load["prompt_tokens"]) / load["prompts"] + load["output_tokens"][0] / 2
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    cached = (
        load["prompts"]
        * context
        * kv_bytes_per_token(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, 4)
    )
    products = load["prompts"] * (weights + 2 * context * q * config.num_hidden_layers)
    assert f"{load['prompts']} sequences of {context:.0f} tokens" in TEXT
    assert f"{weights * 4 / 1e6:.1f} MB of weights and {cached / 1e6:.1f} MB of keys and values" in TEXT
    assert f"{products / 1e6:.0f} million multiplications" in TEXT


def a_step(rate: float) -> float:
    """Milliseconds a decode step of the bench, whose longest request has 1,023 of them."""
    return 133_966 / rate / 1023 * 1e3


def test_the_bench_before_and_after():
    peers = json.loads((ROOT / "benchmarks" / "peers.json").read_text())
    before, after = result("throughput-nanovllm-graphs-26d21ec"), result("throughput-nanovllm-graphs")
    rate = before["samples"][-1]
    ours, floor, now = map(a_step, (rate, peers["figures"]["throughput"]["roofline"], after["median"]))
    assert before["commit"].startswith("26d21ec") and "commit 26d21ec" in TEXT
    assert f"a step takes {ours:.1f} ms where the floor is {floor:.1f}: the difference, {ours - floor:.1f} ms" in TEXT
    assert f"from {rate:,.0f} tokens/s to {after['median']:,.0f}, a step from {ours:.1f} ms to {now:.1f}" in TEXT
    assert f"won {ours - now:.1f} of the {ours - floor:.1f} ms" in TEXT
    assert f"{result('throughput-nanovllm-eager')['median']:,.0f} and {after['median']:,.0f} tokens/s" in TEXT


def test_the_ladder():
    ladder = json.loads((ROOT / "notebooks" / "data" / "slow_to_fast.json").read_text())
    steps = {
        rung["name"]: [statistics.median(row["seconds"]) * 1e3 for row in rung["batches"]] for rung in ladder["rungs"]
    }
    names = list(steps)
    gain = {b: [x - y for x, y in zip(steps[a], steps[b], strict=True)] for a, b in itertools.pairwise(names)}
    eager, graphs = steps["fused kernels"], steps["CUDA graphs"]
    pairs = [f"{a:.1f} to {b:.1f}" for a, b in zip(eager, graphs, strict=True)]
    assert f"a step from {pairs[0]} ms, from {pairs[1]} and from {pairs[2]}" in TEXT
    one, some, many = gain["launch one step ahead"]
    assert f"{one:.1f}, {some:.1f} and {many:.1f} ms a step" in TEXT
    one, some, many = gain["fused kernels"]
    assert f"{one:.1f}, {some:.1f} and {many:.1f} ms a step" in TEXT
    one, some, many = gain["early launch of kernels"]
    assert f"{one:.2f} ms at one sequence" in TEXT and f"{some:.2f} at 32" in TEXT and f"{many:.2f} at 256" in TEXT
    one, some, many = gain["matrix-vector kernel"]
    assert f"{one:.2f} ms at one sequence" in TEXT and f"by {some:.1f} and by {many:.1f} ms" in TEXT


def test_kernels_and_idle_shares():
    rows = {row["kernel"]: row for row in result("kernels")["rows"] if "sweep" not in row["kernel"]}

    def microseconds(kernel: str) -> float:
        return statistics.median(rows[kernel]["us"])

    def rate(kernel: str) -> str:
        return f"{rows[kernel]['bytes'] / microseconds(kernel) / 1e6:.2f}"

    assert f"{microseconds('sample 128 tokens'):.0f} microseconds at 128 rows" in TEXT
    assert f"PyTorch takes {microseconds('sample in PyTorch 128 tokens'):,.0f}" in TEXT
    assert 1 / 7 < float(rate("sample 128 tokens")) * 1e12 / READS < 1 / 5
    for batch, kind, words in (
        (128, "equal", "{} TB/s (flash-attn {})"),
        (128, "ragged", "at {} ({})"),
        (256, "ragged", "at {} ({})"),
    ):
        name = f"decode {kind} batch {batch} block 256"
        assert words.format(rate(f"{name} triton"), rate(f"{name} flash_attn")) in TEXT
    assert f"take {microseconds('decode ragged batch 128 block 256 triton'):.0f} with" in TEXT
    old = {row["kernel"]: statistics.median(row["us"]) for row in result("kernels-4a1c22d")["rows"]}
    one, many = (f"decode equal batch {batch} block 256 triton" for batch in (1, 32))
    assert f"{old[one]:.1f} to {microseconds(one):.1f} microseconds" in TEXT
    assert f"32 from {old[many]:.1f} to {microseconds(many):.1f}" in TEXT
    assert f"took {old['decode ragged batch 128 block 256 triton']:.0f} microseconds" in TEXT
    idle = result("gpu_idle-nanovllm-graphs")
    share, reads = idle["kernel_time_shares"]["_decode_kernel"], rate("decode ragged batch 256 block 256 triton")
    comparison = (ROOT / "NANO_VLLM_VS_VLLM.md").read_text(encoding="utf-8")
    assert "four fifths of it and reads at nine tenths" in TEXT
    assert "four fifths of a step's kernel time and reads at nine tenths" in comparison
    assert abs(share - 4 / 5) < 0.05 and abs(float(reads) * 1e12 / READS - 9 / 10) < 0.05
    *waits, worst = sorted(idle["waits_for_the_host"])
    waiting = f"{waits[0]:.1%} to {waits[-1]:.1%} in four of five windows, and {worst:.1%} in one"
    assert waiting.replace("%", " %") in TEXT
    assert f"idles {idle['median']:.1%} of".replace("%", " %") in TEXT
    assert f"worst {max(idle['samples']):.1%}".replace("%", " %") in TEXT
    assert f"{2 * SHAPES['qwen3-8b'].layers} all-reduces a step" in TEXT
    eager = result("tensor_parallel-qwen3-8b-af3c580")
    assert f"two ranks at {eager['median']:.1f} ms and one at {eager['median_of_one_process']:.1f}" in TEXT
    parallel = result("tensor_parallel-qwen3-8b")
    two, one = parallel["median"], parallel["median_of_one_process"]
    assert f"{two:.2f} ms on two H100s, {one:.2f} on one: {math.floor(one / two * 100) / 100:.2f} times" in TEXT


def test_before_and_after_on_an_h200():
    def both(name: str) -> tuple[float, float]:
        before, after = result(f"{name}-h200-276eb4a"), result(f"{name}-h200-9a107e9")
        assert before["commit"].startswith("276eb4a") and after["commit"].startswith("9a107e9")
        assert before["device"]["name"] == after["device"]["name"] == "NVIDIA H200"
        return before["median"], after["median"]

    for batch, words in (
        (1, "from {:.3f} to {:.3f} ms"),
        (8, "from {:.3f} to {:.3f} ms"),
        (32, "from {:.3f} to {:.3f}"),
    ):
        assert words.format(*both(f"latency_bs{batch}-nanovllm-graphs")) in TEXT
    assert "{:,.0f} and {:,.0f} tokens/s (`throughput".format(*both("throughput-nanovllm-graphs")) in TEXT
    now = result("throughput-nanovllm-graphs-h200")
    assert now["commit"].startswith("60e35ce") and now["device"]["name"] == "NVIDIA H200"
    assert f"`throughput-nanovllm-graphs-h200.json`: {now['median']:,.0f} tokens/s" in TEXT
    for name, words in (
        ("h200-9a107e9", "{:.2f} ms on two H200s, {:.2f} on one"),
        ("h200-batch256-9a107e9", "{:.2f} and {:.2f} ms"),
        ("h200", "{:.2f} ms on two H200s, {:.2f} on one"),
        ("h200-batch256", "{:.2f} and {:.2f} ms"),
    ):
        ranks = result(f"tensor_parallel-qwen3-8b-{name}")
        two, one = ranks["median"], ranks["median_of_one_process"]
        assert f"{words.format(two, one)}: {math.floor(one / two * 100) / 100:.2f} times" in TEXT


def test_what_the_ranks_exchange():
    large = SHAPES["qwen3-8b"]
    load = result("tensor_parallel-qwen3-8b-h200-batch256")["workload"]
    logits = load["batch"] * large.vocab * 2
    assert f"received {logits / 2 / 1e6:.0f} MB of logits a step, copied {logits / 1e6:.0f} MB" in TEXT
    cached = load["batch"] * load["prompt_tokens"] * large.layers * 2 * large.kv_heads * large.head_dim * 2
    assert f"reads {cached / 1e9:.0f} GB" in TEXT
    assert f"More than {inboxes.MAX_ROWS} rows" in TEXT
    comparison = (ROOT / "NANO_VLLM_VS_VLLM.md").read_text(encoding="utf-8")
    assert f"up to {inboxes.MAX_ROWS} rows within a host" in comparison


def test_configurations_of_decode_attention():
    run = json.loads((ROOT / "notebooks" / "data" / "decode_configs.json").read_text(encoding="utf-8"))
    rows = {tuple(row["config"].values()): row for row in run["rows"]}

    def medians(config: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(statistics.median(rows[config][key]) for key in ("alone_us", "between_us", "bench"))

    before, three, two = ((64, 3, 4, 2), (16, 8, 1, 3), (16, 8, 1, 2))
    assert tuple(CONFIGS[256]) == two
    assert "{} {:.1f}, {:.1f} microseconds and {:,.0f} tokens/s".format(before, *medians(before)) in TEXT
    for config in (three, two):
        assert "{} {:.1f}, {:.1f} and {:,.0f}".format(config, *medians(config)) in TEXT
    assert max(abs(a / b - 1) for a, b in zip(medians(three)[:2], medians(two)[:2], strict=True)) < 0.01
    assert abs(1 - medians(three)[2] / medians(two)[2] - 1 / 12) < 0.01


def test_predictions_from_bytes():
    rows, layers = 256, SHAPE.layers
    hashed = rows * SHAPE.vocab * 2 * 8
    logits = rows * SHAPE.vocab * 2
    assert f"{hashed / 1e6:.0f} MB at 256 rows, {hashed / READS * 1e3:.2f} ms" in TEXT
    assert f"reads {logits / 1e6:.0f} MB: {logits / READS * 1e3:.2f} ms" in TEXT
    assert f"{4096 // 16 * rows * 4:,} bytes" in TEXT
    heads = (SHAPE.heads + 2 * SHAPE.kv_heads) * SHAPE.head_dim
    fused = 2 * rows * heads * 2 * layers
    assert f"move {fused / 1e6:.0f} MB a step fused" in TEXT and f"{fused / READS * 1e3:.2f} ms apart" in TEXT
    weights = 2 * (layers * sum(matrix_sizes()) + SHAPE.vocab * SHAPE.hidden)
    assert f"{weights / 1e9:.2f} GB of weights, {weights / READS * 1e3:.2f} ms, in {4 * layers + 1} products" in TEXT
    assert f"256 of 133,966 tokens, {256 / 133_966:.1%}".replace("%", " %") in TEXT


def test_predictions_from_launches():
    layers = SHAPE.layers
    fewer = layers * ((2 - 1) * 2 + (6 - 1) + (2 - 1))
    assert f"{fewer} launches less" in TEXT
    # Nine kernels a layer; begin, embedding, plan, last norm, LM head and two of the sampler.
    assert round(9 * layers + 7, -1) == 260 and TEXT.count("about 260") == 2
    assert f"{260e-3:.2f} ms is the most to win" in TEXT and f"{layers} launches, {layers * 1e-3:.2f} ms a step" in TEXT


def test_what_is_named_exists():
    for path in re.findall(r"`((?:benchmarks|nanovllm)/[\w/]+\.(?:py|json))`", TEXT):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"`([\w.-]+\.json)`", TEXT):
        assert (ROOT / "benchmarks" / "results" / name).is_file(), name
    rungs = (ROOT / "course" / "slow_to_fast.py").read_text()
    for rung in re.findall(r'record_slow_to_fast\.py`, "([^"]+)"', TEXT):
        assert f'Rung("{rung}"' in rungs, rung


@pytest.mark.parametrize("commit", sorted(set(re.findall(r"\b[0-9a-f]{7}\b", TEXT))))
def test_commits_exist(commit):
    git = ["git", "-C", str(ROOT)]
    shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("the history is not here: an archive or a shallow clone")
    found = subprocess.run([*git, "cat-file", "-t", commit], capture_output=True, text=True)
    assert found.stdout.strip() == "commit"
