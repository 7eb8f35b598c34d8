"""Every benchmark runs, on a small workload, and writes what the notebooks read; peers are asked what we are asked."""

from __future__ import annotations

import json
import os
import random
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import engine_process
import pytest
import throughput
import torch
from profile_step import idle

from course.recorded import faults

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    *("throughput", "latency", "startup", "profile_step", "tensor_parallel", "cpu_vs_transformers"),
    "record_decode_configs",
)


def run(script: str, *arguments: object, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def records(script: str, folder: Path, *arguments: object, path: Path | None = None) -> dict[str, dict]:
    """What a script writes, by file name, each a recorded run."""
    result = run(script, *arguments, "--out", folder, path=path)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    for name, record in found.items():
        assert not faults(record), name
        assert statistics.median(record["samples"]) == record["median"]
        assert str(folder) not in json.dumps(record)
        assert min(record["samples"]) > 0
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
    assert end.value.code == 0 and "--out" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it needs where there is no GPU")
def test_configurations_of_decode_attention_need_a_gpu():
    result = run("record_decode_configs")
    assert result.returncode == 2 and "needs a CUDA device" in result.stderr


def test_throughput(tmp_path):
    workload = ["--num-seqs", 3, "--tokens", 4, 12]
    (record,) = records("throughput", tmp_path, "--model", "random:tiny", "--rounds", 3, *workload).values()
    _, output_tokens = throughput.bench_requests(3, 4, 12, 199, 0)
    assert record["workload"]["output_tokens"] == sum(output_tokens)
    assert len(record["samples"]) == 2 and record["cold"] > 0  # three rounds: one cold, two warm
    assert record["workload"]["model"] == "tiny, random weights, bfloat16"


def test_latency(tmp_path):
    arguments = ["--model", "nanovllm/embedded_model", "--batch", 1, 3, "--input-tokens", 5, "--output-tokens", 6]
    found = records("latency", tmp_path, *arguments, "--rounds", 2, "--label", "try")
    names = {name.split("-")[0] for name in found}
    assert names == {"latency_bs1", "latency_bs3"} and all(name.endswith("-try") for name in found)
    assert {record["workload"]["batch"] for record in found.values()} == {1, 3}


@pytest.mark.slow
def test_startup(tmp_path):
    found = records("startup", tmp_path, "--model", "nanovllm/embedded_model", "--repeats", 1)
    assert {record["workload"]["caches"] for record in found.values()} == {"cold", "warm"}
    for record in found.values():
        seconds = {phase: values[0] for phase, values in record["phases"].items()}
        parts = sum(seconds[phase] for phase in ("python", "import", "engine", "first_token"))
        assert parts == pytest.approx(seconds["total"]) == record["samples"][0]
        assert 0 < seconds["weights"] < seconds["engine"]


def test_profile_step(tmp_path):
    arguments = ["--model", "nanovllm/embedded_model", "--num-seqs", 2, "--tokens", 6, 14, "--at", 2, 4, "--steps", 2]
    ((name, record),) = records("profile_step", tmp_path, *arguments).items()
    assert name.split("-")[0] in ("gpu_idle", "cpu_idle")
    assert len(record["samples"]) == 2 and all(0 <= share < 1 for share in record["samples"])
    assert all(waits <= share for waits, share in zip(record["waits_for_the_host"], record["samples"], strict=True))


def test_tensor_parallel(tmp_path):
    arguments = ["--batch", 2, "--prompt-tokens", 8, "--check-tokens", 4, "--steps", 3, "--warm-up", 1]
    (record,) = records("tensor_parallel", tmp_path, "--model", "random:tiny", "--device", "cpu", *arguments).values()
    assert record["float32_check"]["equal_prompts"] == 2 and len(record["samples"]) == 3


def test_cpu_vs_transformers(tmp_path):
    arguments = ["--model", "random:tiny", "--prompts", 3, "--prompt-tokens", 4, 9, "--tokens", 5, "--repeats", 2]
    found = records("cpu_vs_transformers", tmp_path, *arguments)
    assert set(found) == {f"cpu_vs_transformers_fixed_tiny-{engine}" for engine in ("nanovllm", "transformers")}
    for record in found.values():
        assert len(record["samples"]) == 2 and record["cold"] > 0 and record["workload"]["output_tokens"] == [5] * 3
    ours, theirs = (
        found[f"cpu_vs_transformers_fixed_tiny-{engine}"]["samples"] for engine in ("nanovllm", "transformers")
    )
    ratios = found["cpu_vs_transformers_fixed_tiny-nanovllm"]["ratios_to_transformers"]
    assert ratios == [o / t for o, t in zip(ours, theirs, strict=True)]


def test_the_workload_is_nano_vllms():
    """142,827 tokens in and 133,966 out: what nano-vllm's README states of its benchmark's output, drawn the same way."""
    prompts, output_tokens = throughput.bench_requests(256, 100, 1024, 10_001, 0)
    assert sum(output_tokens) == 133_966 and sum(map(len, prompts)) == 142_827


def test_idle_equals_brute_force():
    draw = random.Random(0)
    for _ in range(50):
        intervals = [(start, start + draw.randint(1, 6)) for start in (draw.randint(0, 60) for _ in range(8))]
        found = idle(intervals, gap=3)
        first, last = min(a for a, _ in intervals), max(b for _, b in intervals)
        free = [not any(a <= unit < b for a, b in intervals) for unit in range(first, last)]
        gaps = [len(run) for run in "".join("-x"[busy] for busy in free).split("-") if run]
        assert found.window == last - first
        assert (found.short_gaps, found.long_gaps) == (sum(g for g in gaps if g <= 3), sum(g for g in gaps if g > 3))
        assert found.share == pytest.approx(sum(free) / len(free))
    with pytest.raises(ValueError, match="intervals"):
        idle([], gap=3)


def test_the_phases_of_the_start_are_functions_of_the_engine():
    for names in engine_process.STARTUP_PHASES.values():
        for name in names:
            owner, attribute = engine_process.locate(name)
            assert callable(getattr(owner, attribute)), name


PEER = """
class SamplingParams:
    def __init__(self, **settings):
        self.settings = settings

class LLM:
    def __init__(self, *model, **settings):
        self.model, self.settings, self.seen = model, settings, []

    def generate(self, prompts, params, use_tqdm):
        import json, os
        self.seen.append([prompts, [p.settings for p in params]])
        with open(os.environ["PEER_LOG"], "w") as log:
            json.dump({"model": self.model, "settings": self.settings, "seen": self.seen}, log)
        return [OUTPUT for p in params]
"""
"""A package with a peer's interface that notes what it is asked; OUTPUT is a result of p's tokens."""
NANO_OUTPUT = '{"text": "", "token_ids": [0] * p.settings["max_tokens"]}'
VLLM_OUTPUT = 'type("R", (), {"outputs": [type("C", (), {"token_ids": [0] * p.settings["max_tokens"]})]})'


@pytest.mark.parametrize("engine", ["nano-vllm", "vllm"])
def test_peers_get_the_same_workload(engine, tmp_path, monkeypatch):
    package = tmp_path / "peer" / ("nanovllm" if engine == "nano-vllm" else "vllm")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PEER.replace("OUTPUT", NANO_OUTPUT if engine == "nano-vllm" else VLLM_OUTPUT))
    log = tmp_path / "log.json"
    monkeypatch.setenv("PEER_LOG", str(log))
    arguments = ["--model", "random:tiny", "--num-seqs", 3, "--tokens", 4, 12, "--rounds", 2, "--engine", engine]
    if engine == "nano-vllm":
        arguments += ["--peer-path", package.parent]
    # vLLM is an installed package; nano-vllm must win over this repository's package of the same name by --peer-path alone.
    path = package.parent if engine == "vllm" else None
    ((name, record),) = records("throughput", tmp_path / "out", *arguments, path=path).items()
    assert name == f"throughput-{engine}" and record["engine"] == engine
    asked = json.loads(log.read_text())
    prompts, output_tokens = throughput.bench_requests(3, 4, 12, 199, 0)
    for shift, (got, params) in enumerate(asked["seen"]):
        ids = [prompt["prompt_token_ids"] for prompt in got] if engine == "vllm" else got
        assert ids == [[(token + shift) % 199 for token in prompt] for prompt in prompts]
        for settings, tokens in zip(params, output_tokens, strict=True):
            assert settings["max_tokens"] == tokens and settings["temperature"] == 0.6 and settings["ignore_eos"]
    assert len(asked["seen"]) == 2 and asked["settings"]["max_model_len"] == 4096


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "nano-vllm"], "needs --peer-path"),
        (["--engine", "nano-vllm", "--peer-path", "/nonexistent"], "no nanovllm/__init__.py"),
        (["--engine", "nano-vllm", "--peer-path", ROOT], "this repository"),
        (["--rounds", 1], "at least 2"),
        (["--set", "attention_backend"], "NAME=VALUE"),
        (["--model", "random:huge"], "random:tiny"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    result = run("throughput", "--model", "random:tiny", *arguments)
    assert result.returncode != 0 and words in result.stderr


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    import engines

    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="vllm is not installed"):
        engines.check(type("Args", (), {"engine": "vllm"}))


def test_a_failing_engine_ends_the_benchmark(tmp_path):
    result = run("throughput", "--model", "random:tiny", "--set", "no_such_setting=1", "--out", tmp_path)
    assert result.returncode != 0 and "no_such_setting" in result.stderr and not list(tmp_path.iterdir())
