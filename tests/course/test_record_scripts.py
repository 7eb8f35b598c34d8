"""The scripts that record GPU figures for notebooks 05 and 06 run here as well, small, and write what those read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from course import notebooks, recorded

PREFILL_DECODE = (
    "record_prefill_decode.py --rounds 1 --batches 1 3 --contexts 32 --prompts 16 64 --steps 4 --long-prompt 128 "
    "--budgets 512 64 --matrix 64"
)
CUDA_GRAPHS = "record_cuda_graphs.py --batches 1 3 --context 32 --rounds 2 --engine-batches 1 3 --steps 4"


def run(command: str, folder) -> dict:
    script, *arguments = command.split()
    path = notebooks.ROOT / "benchmarks" / script
    words = [sys.executable, str(path), "--model", "random:tiny", *arguments, "--out", str(folder)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    (file,) = folder.glob("*.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    assert recorded.faults(data) == []
    return data


@pytest.mark.slow
def test_prefill_and_decode(tmp_path):
    data = run(PREFILL_DECODE, tmp_path)
    assert [(row["batch"], row["context"]) for row in data["decode"]] == [(1, 32), (3, 32)]
    assert [row["tokens"] for row in data["prefill"]] == [16, 64]
    whole, chunked = data["beside_a_prompt"]
    assert sum(step["prefill"] for step in whole["steps"]) == sum(step["prefill"] for step in chunked["steps"]) == 128
    assert max(step["prefill"] for step in whole["steps"]) == 128
    assert max(step["prefill"] + step["decode"] for step in chunked["steps"]) <= 64
    assert set(data["transformers_modes"]["512"]) == {"with gradients", "no_grad", "inference_mode"}


@pytest.mark.slow
def test_cuda_graphs(tmp_path):
    data = run(CUDA_GRAPHS, tmp_path)
    assert [row["batch"] for row in data["steps"]] == [1, 3]
    assert all(row["same_logits"] for row in data["steps"])
    assert set(data["engine_steps"]) == {"graphs", "eager"}
    assert all(set(row) >= {"eager", "replay", "operations"} for row in data["profiles"])
