"""Imports run one way, and the scheduler runs where there is no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).parent / "lint-imports"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LINTER), "--config", str(root / "pyproject.toml"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_imports_run_one_way():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("nanovllm/kernels/extra.py", "import nanovllm.engine", "nanovllm imports run one way"),
        ("nanovllm/utils/extra.py", "import nanovllm.models", "nanovllm imports run one way"),
        ("nanovllm/engine/scheduler.py", "import torch", "the scheduler works on Python integers"),
        ("nanovllm/layers/extra.py", "import course.plots", "nanovllm knows neither hnsw nor course"),
        ("hnsw/extra.py", "import nanovllm.config", "hnsw knows neither nanovllm nor course, nor torch"),
        ("nanovllm/strange.py", "import math", "nanovllm imports run one way"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(tmp_path, module, line, contract):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("nanovllm", "hnsw", "course"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path / module
    target.write_text((target.read_text() if target.exists() else "") + f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert f"{contract} BROKEN" in result.stdout or "not listed" in result.stdout + result.stderr


@pytest.mark.parametrize("module", ["sequence", "block_manager", "scheduler"])
def test_runs_without_torch(module):
    code = f"import sys; sys.modules['torch'] = None; import nanovllm.engine.{module}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
