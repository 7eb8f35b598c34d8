"""2,000 random requests under every pressure at once draw the tokens that each draws alone.

The load and the comparison are benchmarks/soak.py: a token that differs passes only where a float64 model of transformers
sees a tie, and in float32 at most three of the 2,000 may. The requests alone are computed once for each dtype.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from fake_graphs import with_fake_graphs

from course.recorded import faults
from nanovllm import LLM
from nanovllm.engine.block_manager import BlockManager
from nanovllm.sampling_params import SamplingParams

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
import soak as soak_module
from soak import Load, Oracle, Soak

pytestmark = pytest.mark.slow
REQUESTS = 2000
ON_CPU = {"device": "cpu", "dtype": "float32"}
ON_GPU = {"device": "cuda", "dtype": "float32"}


@functools.cache
def cpu_soak(looks_back: bool = True) -> Soak:
    return Soak(Load(REQUESTS, looks_back=looks_back), attention_backend="numba", **ON_CPU)


@functools.cache
def gpu_soak(backend: str, looks_back: bool) -> Soak:
    # flash-attn takes only half precision and blocks of 256; float16 rounds finer than bfloat16, so fewer ties differ.
    if backend == "flash_attn":
        load = Load(REQUESTS, block_size=256, looks_back=looks_back)
        return Soak(load, device="cuda", dtype="float16", attention_backend=backend)
    return Soak(Load(REQUESTS, looks_back=looks_back), attention_backend="triton", **ON_GPU)


def check(report: soak_module.Report, most_ties: int) -> None:
    assert report.wrong == []
    assert report.unpressed() == []
    assert len(report.explained) <= most_ties, report.explained


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_two_thousand_requests_on_the_cpu(backend):
    report = cpu_soak().run(attention_backend=backend, **ON_CPU)
    assert report.requests == REQUESTS
    check(report, most_ties=3)
    assert report.preemptions >= 10 and report.prefix_hits >= 200 and report.chunked >= 40


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_two_thousand_requests_launched_ahead(backend):
    report = cpu_soak(looks_back=False).run(attention_backend=backend, async_scheduling=True, **ON_CPU)
    assert report.requests == REQUESTS
    check(report, most_ties=3)
    assert report.preemptions >= 10 and report.prefix_hits >= 200 and report.chunked >= 40
    assert report.steps_ahead > 0.9 * report.steps


@pytest.mark.parametrize("looks_back", [True, False])
def test_requests_through_fake_graphs(looks_back, fake_cuda, monkeypatch):
    """Decode rows on the CPU: looking back in turn, else ahead. Their kernels take a while under the interpreter."""
    replays = []

    def make_llm(*args, **settings):
        llm = LLM(*args, **settings)
        replays.append(with_fake_graphs(llm))
        return llm

    few = copy.copy(cpu_soak(looks_back))
    few.requests, few.alone = few.requests[:400], few.alone[:400]
    monkeypatch.setattr(soak_module, "LLM", make_llm)
    report = few.run(attention_backend="numba", async_scheduling=not looks_back, **ON_CPU)
    assert report.wrong == [] and len(report.explained) <= 1
    assert report.preemptions and report.prefix_hits and report.stopped and report.aborted
    assert len(replays[0]) >= report.decode_steps > 30
    assert looks_back or report.steps_ahead > 0.9 * report.steps


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU here")
def test_eight_requests_through_the_triton_interpreter():
    """Half a second a sequence and step: 2,000 would take hours. The GPU runs them all."""
    few = copy.copy(cpu_soak())
    few.load = Load(8, num_blocks=12)
    pairs = zip(few.requests, few.alone, strict=True)
    pairs = [(r, a) for r, a in pairs if len(r.prompt) <= 24 and r.params.max_tokens <= 4 and r.params.n == 1][:8]
    few.requests, few.alone = (list(part) for part in zip(*pairs, strict=True))
    report = few.run(attention_backend="triton", **ON_CPU)
    assert report.wrong == [] and report.explained == []
    assert report.tokens > 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("looks_back", [True, False], ids=["in_turn", "ahead"])
@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("backend", ["triton", "flash_attn", "reference"])
def test_two_thousand_requests_on_the_gpu(backend, enforce_eager, looks_back):
    if backend == "flash_attn":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    if backend == "reference" and not enforce_eager:
        pytest.skip("the reference backend has no graphs")
    settings = {"device": "cuda", "attention_backend": backend, "enforce_eager": enforce_eager}
    dtype = "float16" if backend == "flash_attn" else "float32"
    report = gpu_soak(backend, looks_back).run(dtype=dtype, **settings)
    check(report, most_ties=3 if dtype == "float32" else REQUESTS // 10)
    assert looks_back or report.steps_ahead > 0.9 * report.steps


@functools.cache
def soak_of_ranks() -> Soak:
    load = Load(60, block_size=32, num_blocks=14, longest_output=40, seed=1)
    return Soak(load, attention_backend="numba", **ON_CPU)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch is built without gloo")
@pytest.mark.parametrize("size", [2, 4])
def test_requests_shared_by_ranks(size):
    """Blocks of 32, prefix hits, preemptions and aborts; chunks are in test_tensor_parallel.py."""
    report = soak_of_ranks().run(attention_backend="numba", tensor_parallel_size=size, **ON_CPU)
    assert report.wrong == [] and len(report.explained) <= 1
    assert report.preemptions and report.prefix_hits and report.aborted


# The judge itself


def test_a_wrong_block_is_found(monkeypatch):
    """A prefix cache whose keys hold no tokens gives somebody else's keys and values."""
    monkeypatch.setattr(BlockManager, "_hash", lambda self, seq, index: index + 1)
    small = Soak(Load(60, seed=3), attention_backend="numba", **ON_CPU)
    report = small.run(attention_backend="numba", **ON_CPU)
    assert len(report.wrong) >= 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, repetition_penalty=1.3, presence_penalty=0.5),
        SamplingParams(temperature=1.0, top_k=5, seed=1),
        SamplingParams(temperature=0.8, top_p=0.9, min_p=0.02, seed=2),
    ],
)
def test_the_oracle_allows_what_is_drawn_and_little_else(params):
    prompt = list(range(20, 40))
    with LLM(**ON_CPU) as llm:
        made = llm.generate(prompt, params, use_tqdm=False)[0]["token_ids"]
        model = llm.config.model
    seed = soak_module.derive_seed(params.seed, 0) if params.seed is not None else 0
    oracle = Oracle(Path(model), 1e-4)
    sets = [oracle.allowed(prompt, made[:i], params, seed) for i in range(12)]
    assert all(token in allowed for token, allowed in zip(made, sets))
    assert sum(map(len, sets)) <= 13


# The script that runs it all on a GPU


@pytest.fixture
def script(monkeypatch, tmp_path):
    import gpu_agreement

    arguments = ["gpu_agreement.py", "--device", "cpu", "--requests", "30", "--prompts", "4", "--max-tokens", "6"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path)])
    return gpu_agreement, lambda: json.loads((tmp_path / "gpu_agreement.json").read_text())


def test_the_gpu_script_runs_on_a_cpu(script, capsys):
    gpu_agreement, result = script
    assert gpu_agreement.main() == 0
    assert faults(result()) == []
    statuses = {name: part["status"] for name, part in result()["parts"].items()}
    assert statuses == {"backends": "agree", "graphs": "not run", "ranks": "agree", "soak": "agree"}
    assert "numba float32 eager ahead" in capsys.readouterr().out


def test_the_gpu_script_goes_on_after_a_failure_and_exits_with_1(script, monkeypatch, capsys):
    gpu_agreement, result = script
    first = gpu_agreement.greedy

    def broken(machine, **settings):
        outputs = first(machine, **settings)
        if settings["attention_backend"] == "numba":
            outputs[0]["token_ids"][2] ^= 1
        return outputs

    monkeypatch.setattr(gpu_agreement, "greedy", broken)
    monkeypatch.setattr(gpu_agreement, "PARTS", dict(gpu_agreement.PARTS, graphs=lambda machine: 1 / 0, ranks=dict))
    assert gpu_agreement.main() == 1
    parts = result()["parts"]
    assert [part["status"] for part in parts.values()] == ["disagree", "error", "error", "agree"]
    assert "token 2 is" in parts["backends"]["found"] and "ZeroDivisionError" in parts["graphs"]["found"]


def test_the_load_of_large_blocks_fits_the_model():
    """flash-attn's blocks of 256 tokens make prompts as long as the embedded model allows, and no longer."""
    soak = Soak(Load(60, block_size=256, seed=2), attention_backend="numba", **ON_CPU)
    longest = max(len(request.prompt) for request in soak.requests)
    assert soak.load.budget < longest < soak.load.max_model_len == 2048
    assert soak.run(attention_backend="numba", **ON_CPU).wrong == []
