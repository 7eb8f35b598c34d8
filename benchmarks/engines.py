"""The engines that benchmarks compare, and how a benchmark runs one: in a fresh process, on the same workload."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import random_models
import torch
from common import RESULTS, output_of, versions

ENGINES = ("nanovllm", "nano-vllm", "vllm")
TOKEN_IDS = 10_001
"""Prompts hold token ids 0 to 10,000, as nano-vllm's benchmark draws them, or those of a smaller vocabulary."""


@dataclass(frozen=True)
class Workload:
    """Requests that are there at once; `rounds` times, each with other prompts of the same lengths."""

    prompts: list[list[int]]
    output_tokens: list[int]
    rounds: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark that compares engines."""
    parser.add_argument("--model", default="random:qwen3-0.6b", help=f"{random_models.HELP} (default %(default)s)")
    parser.add_argument("--engine", choices=ENGINES, default="nanovllm", help="default: this repository's")
    parser.add_argument(
        "--peer-path", type=Path, metavar="PATH", help="checkout of nano-vllm, whose package has our package's name"
    )
    parser.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more setting of the engine's LLM, such as attention_backend=flash_attn; may be given several times",
    )
    parser.add_argument("--label", help="added to the engine's name in the results, such as before-fusion")
    parser.add_argument("--max-model-len", type=int, default=4096, help="default %(default)s")
    parser.add_argument(
        "--max-num-batched-tokens",
        type=int,
        default=16384,
        help="tokens of a step; default %(default)s, nano-vllm's own",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the workload (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Raises SystemExit with the reason where the engine that was asked for is not there."""
    if args.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise SystemExit("--engine vllm: the package vllm is not installed here (pip install vllm, on a GPU machine)")
    if args.engine == "nano-vllm":
        if args.peer_path is None:
            raise SystemExit("--engine nano-vllm needs --peer-path, the folder of a checkout of nano-vllm")
        if not (args.peer_path / "nanovllm" / "__init__.py").is_file():
            raise SystemExit(f"--peer-path {args.peer_path}: there is no nanovllm/__init__.py in it")
        if args.peer_path.resolve() == Path(__file__).resolve().parents[1]:
            raise SystemExit("--peer-path is this repository: give a checkout of nano-vllm")


def settings(args: argparse.Namespace) -> dict:
    """The arguments of the engine's LLM."""
    found = {
        "max_model_len": args.max_model_len,
        "max_num_batched_tokens": args.max_num_batched_tokens,
        "enforce_eager": args.enforce_eager,
    }
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"--set {text}: it must be NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def engine_name(args: argparse.Namespace) -> str:
    """The engine as the results name it: ours with its mode (there are graphs on GPUs only)."""
    mode = None
    if args.engine == "nanovllm":
        mode = "graphs" if torch.cuda.is_available() and not args.enforce_eager else "eager"
    return "-".join(part for part in (args.engine, mode, args.label) if part)


def all_versions(args: argparse.Namespace) -> dict[str, str]:
    """`common.versions`, with the commit of a nano-vllm checkout."""
    found = versions()
    if args.engine == "nano-vllm":
        found["nano-vllm"] = output_of("git", "-C", str(args.peer_path), "rev-parse", "HEAD") or "unknown"
    return found


def run(
    args: argparse.Namespace,
    folder: Path,
    workloads: Sequence[Workload],
    temperature: float = 0.6,
    environment: Mapping[str, str] | None = None,
) -> dict:
    """Runs the workloads one after the other on one engine in a fresh process.

    Returns `workloads` (for each a list of seconds a round), `startup` (seconds of each phase, from the start of the
    process to the first round's end) and `info`. Raises SystemExit where the process fails; its output says why.
    """
    job = {
        "engine": args.engine,
        "model": str(folder),
        "settings": settings(args),
        "peer_path": str(args.peer_path) if args.peer_path else None,
        "ids": min(TOKEN_IDS, random_models.vocab_size(folder)),
        "temperature": temperature,
        "workloads": [vars(workload) for workload in workloads],
    }
    variables = os.environ | dict(environment or {})
    if args.engine == "nano-vllm":
        paths = [str(args.peer_path.resolve()), variables.get("PYTHONPATH")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as temporary:
        question, answer = Path(temporary) / "job.json", Path(temporary) / "answer.json"
        script = Path(__file__).with_name("engine_process.py")
        question.write_text(json.dumps(job | {"started": time.time()}))
        status = subprocess.call([sys.executable, str(script), str(question), str(answer)], env=variables)
        if status or not answer.exists():
            raise SystemExit(f"{args.engine} ended with exit status {status}")
        return json.loads(answer.read_text())


def random_prompts(draw: random.Random, lengths: Sequence[int], ids: int) -> list[list[int]]:
    return [[draw.randrange(ids) for _ in range(length)] for length in lengths]
