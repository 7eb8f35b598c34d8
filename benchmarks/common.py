"""What every benchmark shares: one JSON a run, with where it ran, what it ran and every sample."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from course.device import cpu_count, cpu_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "transformers", "flash_attn", "vllm", "numba", "numpy")


def output_of(*command: str) -> str | None:
    """The command's standard output, or None where it cannot be run or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def device_info() -> dict:
    """Name, driver, memory in GiB and number of the devices: the GPUs, or this machine's CPU cores."""
    if not torch.cuda.is_available():
        memory = round(psutil.virtual_memory().total / 2**30, 1)
        return {"name": cpu_name(), "driver": None, "memory_gib": memory, "count": cpu_count()}
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "driver": driver.splitlines()[0] if driver else None,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "count": torch.cuda.device_count(),
    }


def command() -> str:
    """How Python was called, without what differs from machine to machine: its own path and the output folder."""
    words = ["python", *sys.orig_argv[1:]]
    while "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return " ".join(words)


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter here and are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


@functools.cache  # before the first result is written, which makes the tree dirty
def commit() -> str:
    """The checkout's commit, with `-dirty` where tracked files differ; BENCH_COMMIT names it where git is absent."""
    return (
        os.environ.get("BENCH_COMMIT")
        or output_of("git", "describe", "--always", "--dirty", "--abbrev=40")
        or "unknown"
    )


def record(name: str, *, metric: str, samples: list[float], workload: dict, engine: str | None = None, **more) -> dict:
    """One measurement, as the results files hold it; `metric` names the unit of the samples."""
    result = {
        "schema": 1,
        "name": name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command(),
        "device": device_info(),
        "versions": versions(),
        "workload": workload,
        "metric": metric,
        "samples": samples,
        "median": statistics.median(samples),
    }
    return result | ({"engine": engine} if engine else {}) | more


def write(result: dict, folder: Path = RESULTS) -> Path:
    """Writes a record to <name>.json, or <name>-<engine>.json where peers run beside ours."""
    stem = "-".join(part for part in (result["name"], result.get("engine")) if part)
    path = Path(folder) / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
