"""What notebook 11 shows of a GPU: the time of a decode step as one optimization after the other is switched on.

Each rung of the ladder is the engine with everything up to that rung. Rungs that have no setting are switched off in place:
the engine itself is not made to run slowly. The tokens of all rungs are compared; in bfloat16 they may part at near-ties, so
what is recorded is the share of requests that agree with the rung before.

    python benchmarks/record_slow_to_fast.py
"""

from __future__ import annotations

import argparse
import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import ROOT, record, write
from random_models import HELP, describe, model_folder

from nanovllm import LLM, SamplingParams

DATA = ROOT / "notebooks" / "data"

# Settings of each rung, and what of the optimizations without a setting it still lacks.
PLAIN = {"attention_backend": "reference", "enforce_eager": True, "async_scheduling": False}
TRITON = {"attention_backend": "triton", "kvcache_block_size": 256}
LADDER: list[tuple[str, dict[str, Any], set[str]]] = [
    ("plain PyTorch", PLAIN, {"fused", "early", "gemv"}),
    ("our attention kernels", PLAIN | TRITON, {"fused", "early", "gemv"}),
    ("fused kernels", PLAIN | TRITON, {"early", "gemv"}),
    ("CUDA graphs", {**TRITON, "async_scheduling": False}, {"early", "gemv"}),
    ("launch one step ahead", TRITON, {"early", "gemv"}),
    ("early launch of kernels", TRITON, {"gemv"}),
    ("matrix-vector kernel", TRITON, set()),
]


@contextlib.contextmanager
def without(missing: set[str]) -> Iterator[None]:
    """Switches optimizations off that have no setting."""
    with contextlib.ExitStack() as stack:
        if "fused" in missing:
            import nanovllm.attention.triton as backend

            stack.enter_context(patch.object(backend.TritonAttention, "fused", False))
        if "early" in missing:
            import nanovllm.kernels.launch as launch

            stack.enter_context(patch.object(launch, "_supported", lambda device: False))
        if "gemv" in missing:
            import nanovllm.layers.linear as linear

            stack.enter_context(patch.object(linear, "GEMV_ROWS", 0))
        yield


def decode_seconds(llm: LLM, batch: int, context: int, steps: int, rounds: int) -> tuple[list[float], list[list[int]]]:
    """Seconds of a decode step, `rounds` samples after a warm-up, and the tokens of the last round.

    A sample is the difference between a long and a short run of the same requests, so that reading them falls out.
    """
    draw = random.Random(0)
    ids = min(10_001, llm.model_config.vocab_size)
    prompts = [[draw.randrange(ids) for _ in range(context)] for _ in range(batch)]

    def run(tokens: int) -> tuple[float, list[list[int]]]:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        torch.cuda.synchronize()
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start, [output["token_ids"] for output in outputs]

    samples = []
    for _ in range(rounds + 1):
        short, _ = run(2)
        long, tokens = run(2 + steps)
        samples.append((long - short) / steps)
    return samples[1:], tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen3-0.6b", help=f"{HELP} (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens in, for each sequence (default %(default)s)")
    parser.add_argument("--steps", type=int, default=48, help="decode steps in a sample (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the result (default notebooks/data)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this script needs a CUDA device")

    rungs: list[dict[str, Any]] = []
    with model_folder(args.model) as folder:
        before: dict[int, list[list[int]]] = {}
        for name, settings, missing in LADDER:
            rung: dict[str, Any] = {"name": name, "settings": settings, "switched_off": sorted(missing), "batches": []}
            with (
                without(missing),
                LLM(
                    str(folder),
                    max_model_len=2048,
                    max_num_seqs=max(args.batches),
                    enable_prefix_caching=False,
                    **settings,
                ) as llm,
            ):
                for batch in args.batches:
                    seconds, tokens = decode_seconds(llm, batch, args.context, args.steps, args.rounds)
                    agree = None
                    if batch in before:
                        agree = sum(a == b for a, b in zip(tokens, before[batch], strict=True)) / batch
                    before[batch] = tokens
                    rung["batches"].append({"batch": batch, "seconds": seconds, "same_tokens": agree})
                    print(
                        f"{name:26} batch {batch:4}: {min(seconds) * 1e3:8.3f} ms a step, same tokens {agree}",
                        flush=True,
                    )
            rungs.append(rung)
    last = rungs[-1]["batches"][0]
    result = record(
        "slow_to_fast",
        metric=f"seconds a decode step of the last rung, batch {last['batch']}",
        samples=last["seconds"],
        workload={"model": describe(args.model), "context": args.context, "steps": args.steps, "seed": 0},
        rungs=rungs,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
