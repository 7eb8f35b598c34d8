"""Decode attention alone, decode attention between other kernels, and the bench, by configuration.

Alone, each call begins while the last programs of the one before still run, so the time in which few programs are left counts
for little. In a step other kernels stand between. So a configuration whose programs end far apart looks fast alone.
Contexts are those of the bench after `--step` decode steps.

    python benchmarks/record_decode_configs.py
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import ROOT, record, write
from engines import TOKEN_IDS
from random_models import describe, model_folder, vocab_size
from throughput import bench_requests

sys.path.insert(0, str(ROOT))

from benchmarks.kernels import DecodeWorkload, time_calls
from nanovllm import LLM, SamplingParams
from nanovllm.kernels import paged_decode
from nanovllm.kernels.paged_decode import DecodeConfig

DATA = ROOT / "notebooks" / "data"
MODEL = "random:qwen3-0.6b"
CONFIGS = (
    DecodeConfig(tile=64, programs_per_sm=3, warps=4, stages=2),
    DecodeConfig(tile=64, programs_per_sm=4, warps=2, stages=2),
    DecodeConfig(tile=16, programs_per_sm=8, warps=1, stages=3),
    DecodeConfig(tile=16, programs_per_sm=8, warps=1, stages=2),
)


def alone_and_between(load: DecodeWorkload, config: DecodeConfig) -> tuple[list[float], list[float]]:
    """Microseconds of a call: one after the other, and with a small kernel of PyTorch's after each, without its own time."""
    other = torch.zeros(256, 1024, dtype=torch.bfloat16, device="cuda")

    def small() -> None:
        other.add_(1)

    def then_small(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: (call(), small())

    calls = load.ours(config)
    rest = statistics.median(time_calls([small] * len(calls)))
    return time_calls(calls), [us - rest for us in time_calls([then_small(call) for call in calls])]


def bench(
    folder: Path, config: DecodeConfig, prompts: list[list[int]], output_tokens: list[int], rounds: int
) -> list[float]:
    """Output tokens a second of each round but the first."""
    paged_decode.CONFIGS[256] = config
    params = [SamplingParams(temperature=0.6, max_tokens=tokens, ignore_eos=True) for tokens in output_tokens]
    ids = min(TOKEN_IDS, vocab_size(folder))
    rates = []
    with LLM(folder, max_model_len=4096, max_num_batched_tokens=16384) as llm:
        for number in range(rounds):
            draw = random.Random(number)
            fresh = [[draw.randrange(ids) for _ in prompt] for prompt in prompts]
            start = time.perf_counter()
            llm.generate(fresh, params, use_tqdm=False)
            rates.append(sum(output_tokens) / (time.perf_counter() - start))
    gc.collect()
    torch.cuda.empty_cache()
    return rates[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--step", type=int, default=100, help="decode steps before the timed ones (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=4, help="of the bench; the first is cold (default %(default)s)")
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the results (default notebooks/data)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: the first round is cold")

    prompts, output_tokens = bench_requests(256, 100, 1024, TOKEN_IDS, 0)
    contexts = [len(p) + args.step for p, n in zip(prompts, output_tokens, strict=True) if n > args.step]
    load = DecodeWorkload(contexts, block_size=16)
    rows = []
    for config in CONFIGS:
        alone, between = alone_and_between(load, config)
        rows.append({"config": config._asdict(), "alone_us": alone, "between_us": between})
    load_bytes = load.bytes
    del load
    torch.cuda.empty_cache()
    print("tile, programs, warps, stages    us alone    us between   bench, tokens/s")
    with model_folder(MODEL, seed=0) as folder:
        for row in rows:
            row["bench"] = bench(folder, DecodeConfig(**row["config"]), prompts, output_tokens, args.rounds)
            alone, between, rate = (statistics.median(row[key]) for key in ("alone_us", "between_us", "bench"))
            print(f"{tuple(row['config'].values())!s:<30}{alone:11.1f}{between:14.1f}{rate:18.0f}", flush=True)
    result = record(
        "decode_configs",
        metric="output tokens/s of the bench with the last configuration",
        samples=rows[-1]["bench"],
        workload={"model": describe(MODEL), "sequences": len(contexts), "tokens": sum(contexts), "block_size": 16}
        | {"bytes": load_bytes, "after_steps": args.step, "temperature": 0.6, "seed": 0},
        rows=rows,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
