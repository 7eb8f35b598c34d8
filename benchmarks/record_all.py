"""Everything that a GPU has to record, with one command: is it correct first, then every measurement, by importance.

    python benchmarks/record_all.py --minutes 60          or: make gpu-records
    python benchmarks/record_all.py --list                what would run here

Each step is a process of its own with its own time limit; one that fails or takes too long stops no other. Their output
goes to `build/gpu-records/<step>.log`, the JSON files to `benchmarks/results` and `notebooks/data`, or below `--out`. When
the minutes are used up, the steps that are left are skipped: run them later with `--only`. The exit status is 1 where a
step failed or was stopped.

Needed are torch with CUDA, triton, numpy, numba, transformers, safetensors, tqdm, xxhash and psutil, and pytest for the
tests. Where git does not know this checkout's commit, BENCH_COMMIT must say it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare machine has not installed the packages

from common import RESULTS, ROOT, commit

DATA = ROOT / "notebooks" / "data"
LOGS = ROOT / "build" / "gpu-records"
SHORTEST = 30
"""Seconds that must be left for a step to be worth its start."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        words: what Python is called with; a script's name stands for `benchmarks/<name>.py`.
        limit: seconds after which it is stopped.
        folder: where its JSON files go, RESULTS or DATA; None where it writes none.
        gpus: how many it needs.
        package: one that must be installed.
    """

    name: str
    words: tuple[str, ...]
    limit: float
    folder: Path | None = RESULTS
    gpus: int = 1
    package: str | None = None

    def obstacle(self, gpus: int) -> str | None:
        """Why it cannot run here."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if gpus < self.gpus:
            return f"needs {self.gpus} GPU{'s' * (self.gpus > 1)}"
        script = script_of(self.words[0])
        return None if script is None or script.is_file() else f"there is no {script.name}"


def script_of(word: str) -> Path | None:
    return None if word.startswith("-") else ROOT / "benchmarks" / f"{word}.py"


def all_steps(peer_path: Path | None = None) -> list[Step]:
    """What there is to record, the most important first; peers where they are installed."""
    small, large = ("--model", "random:qwen3-0.6b"), ("--model", "random:qwen3-8b")
    steps = [
        Step("tests", ("-m", "pytest", "-q", "-m", "gpu", "tests/nanovllm/test_gpu.py"), 600, None, package="pytest"),
        Step("agreement", ("gpu_agreement",), 480),
        Step("throughput", ("throughput", *small), 300),
        Step("latency", ("latency", *small), 300),
        Step("idle", ("profile_step", *small), 240),
        Step("slow-to-fast", ("record_slow_to_fast", *small), 480, DATA),
        Step("kernels", ("-m", "benchmarks.kernels"), 360),
        Step("startup", ("startup", *small), 480),
        Step("throughput-eager", ("throughput", *small, "--enforce-eager", "--rounds", "3"), 360),
        Step("cuda-graphs", ("record_cuda_graphs", *small), 360, DATA),
        Step("kv-cache", ("record_kv_cache", *small), 240, DATA),
        Step("prefill-decode", ("record_prefill_decode", *small), 360, DATA),
        Step("paged-kernels", ("record_paged_kernels",), 240, DATA),
        Step("decode-configs", ("record_decode_configs",), 300, DATA),
        Step("inference-mode", ("inference_mode", *small), 240),
        Step("tensor-parallel", ("tensor_parallel", *large, "--dtype", "bfloat16", "--steps", "64"), 480, gpus=2),
        Step("tensor-parallel-embedded", ("tensor_parallel",), 180, gpus=2),
        Step("vllm-throughput", ("throughput", *small, "--engine", "vllm"), 480, package="vllm"),
        Step("vllm-latency", ("latency", *small, "--engine", "vllm"), 480, package="vllm"),
    ]
    if peer_path:
        peer = ("--engine", "nano-vllm", "--peer-path", str(peer_path))
        steps.append(Step("nano-vllm-throughput", ("throughput", *small, *peer), 480, package="flash_attn"))
        steps.append(Step("nano-vllm-latency", ("latency", *small, *peer), 480, package="flash_attn"))
    return steps


@dataclass
class Outcome:
    """How a step ended: "ok", "failed (status)", "stopped" at its limit, or "skipped: why", and what it wrote."""

    step: Step
    result: str
    seconds: float = 0.0
    files: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        return self.result != "ok" and not self.result.startswith("skipped")


def command(step: Step, out: Path | None) -> list[str]:
    script = script_of(step.words[0])
    words = [str(script.relative_to(ROOT)), *step.words[1:]] if script else list(step.words)
    target = folder_of(step, out)
    return [sys.executable, *words, *(["--out", str(target)] if target and out else [])]


def folder_of(step: Step, out: Path | None) -> Path | None:
    return out / step.folder.relative_to(ROOT) if out and step.folder else step.folder


def contents(folder: Path | None) -> dict[str, int]:
    """Its JSON files and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} if folder else {}


def run_step(step: Step, seconds: float, out: Path | None, logs: Path) -> Outcome:
    """Runs one step for at most so many seconds; it and all that it started are ended then."""
    folder = folder_of(step, out)
    before = contents(folder)
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    # All steps belong to one commit: the first file that is written makes the tree dirty.
    environment = os.environ | {"BENCH_COMMIT": commit(), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    start = time.monotonic()
    with (logs / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command(step, out), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(seconds)
            result = "ok" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            result = "stopped"
        finally:
            end_session(process)
    after = contents(folder)
    files = tuple(sorted(name for name in after if after[name] != before.get(name)))
    return Outcome(step, result, time.monotonic() - start, files)


def end_session(process: subprocess.Popen) -> None:
    """Ends the process and what it started: an engine's workers would keep the GPU's memory from the next step."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(steps: Sequence[Step], seconds: float, gpus: int, out: Path | None, logs: Path) -> list[Outcome]:
    """Runs the steps in order until the seconds are used up."""
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    outcomes = []
    for number, step in enumerate(steps, start=1):
        left = deadline - time.monotonic()
        obstacle = step.obstacle(gpus) or ("no time left" if left < min(SHORTEST, step.limit) else None)
        if obstacle:
            outcome = Outcome(step, f"skipped: {obstacle}")
        else:
            limit = min(step.limit, left)
            print(f"[{number}/{len(steps)}] {step.name}: at most {limit:.0f} s of {left:.0f} s left", flush=True)
            outcome = run_step(step, limit, out, logs)
        print(f"[{number}/{len(steps)}] {step.name}: {outcome.result} after {outcome.seconds:.0f} s", flush=True)
        if outcome.bad:
            tail = (logs / f"{step.name}.log").read_text(errors="replace").splitlines()[-12:]
            print("\n".join(f"    {line[:200]}" for line in tail), flush=True)
        outcomes.append(outcome)
    return outcomes


def report(outcomes: Sequence[Outcome]) -> str:
    width = max(len(outcome.step.name) for outcome in outcomes)
    lines = [f"{'step':{width}}  {'seconds':>7}  result"]
    for outcome in outcomes:
        lines.append(
            f"{outcome.step.name:{width}}  {outcome.seconds:7.0f}  {outcome.result}  {' '.join(outcome.files)}"
        )
    return "\n".join(line.rstrip() for line in lines)


def chosen(steps: Sequence[Step], only: Sequence[str], skip: Sequence[str]) -> list[Step]:
    """Raises SystemExit where a name is none of the steps."""
    names = [step.name for step in steps]
    for name in [*only, *skip]:
        if name not in names:
            raise SystemExit(f"there is no step {name}; there are {', '.join(names)}")
    return [step for step in steps if (not only or step.name in only) and step.name not in skip]


def main(steps: Sequence[Step] | None = None, gpus: int | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90, help="for all of it (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run just these")
    parser.add_argument("--skip", nargs="+", default=[], metavar="STEP", help="leave these out")
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--peer-path", type=Path, metavar="PATH", help="checkout of nano-vllm, to record it too")
    parser.add_argument("--out", type=Path, help="folder for the JSON files and logs, instead of this checkout")
    args = parser.parse_args()
    gpus = torch.cuda.device_count() if gpus is None else gpus
    steps = chosen(all_steps(args.peer_path) if steps is None else steps, args.only, args.skip)
    if args.list:
        for step in steps:
            print(f"{step.name:26}{step.limit:5.0f} s  {step.obstacle(gpus) or ' '.join(step.words)}")
        return 0
    if not gpus:
        raise SystemExit("there is no CUDA device here, and this records what one does; --list shows the steps")
    out = args.out.resolve() if args.out else None
    print(f"commit {commit()}, {gpus} GPUs, {args.minutes:g} minutes, {len(steps)} steps", flush=True)
    outcomes = run_all(steps, args.minutes * 60, gpus, out, out / "logs" if out else LOGS)
    print(f"\n{report(outcomes)}")
    return int(any(outcome.bad for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
