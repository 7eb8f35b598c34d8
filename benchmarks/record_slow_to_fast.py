"""What notebook 11 shows of a GPU: the time of a decode step as one optimization after the other is switched on.

Each rung of the ladder is the engine with everything up to that rung. Rungs that have no setting are switched off in place:
the engine itself is not made to run slowly. The tokens of all rungs are compared; in bfloat16 they may part at near-ties, so
what is recorded is the share of requests that agree with the rung before. The roof is measured beside them.

    python benchmarks/record_slow_to_fast.py

Without a GPU, TRITON_INTERPRET=1 runs the same ladder on small shapes: to test this script, not to time anything.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from common import ROOT, record, write
from random_models import HELP, describe, model_folder

from course import roofline, slow_to_fast
from nanovllm.config import ModelConfig

DATA = ROOT / "notebooks" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen3-0.6b", help=f"{HELP} (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens in, for each sequence (default %(default)s)")
    parser.add_argument("--steps", type=int, default=48, help="decode steps in a sample (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the result (default notebooks/data)")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("this script needs a CUDA device")

    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    (bandwidth,) = roofline.measure_bandwidth([2**32 if on_gpu else 2**24], device, dtype).values()
    flops = roofline.measure_flops(8192 if on_gpu else 256, device, dtype)
    rungs: list[dict[str, Any]] = []
    with model_folder(args.model) as folder:
        config = ModelConfig.from_folder(folder)
        for rung in slow_to_fast.climb_gpu(
            str(folder),
            args.batches,
            args.context,
            args.steps,
            args.rounds,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=args.context + args.steps + 16,
        ):
            rungs.append(rung)
            for row in rung["batches"]:
                print(
                    f"{rung['name']:26} batch {row['batch']:4}: {min(row['seconds']) * 1e3:8.3f} ms a step, "
                    f"same tokens {row['same_tokens']}",
                    flush=True,
                )
    floors = []
    for batch in args.batches:
        cost = roofline.decode_cost(config, batch, args.context + 2 + args.steps // 2, dtype.itemsize)
        floors.append({"batch": batch, "flops": cost.flops, "bytes": cost.bytes})
    last = rungs[-1]["batches"][0]
    result = record(
        "slow_to_fast",
        metric=f"seconds a decode step of the last rung, batch {last['batch']}",
        samples=last["seconds"],
        workload={
            "model": describe(args.model),
            "dtype": str(dtype).removeprefix("torch."),
            "context": args.context,
            "steps": args.steps,
            "seed": 0,
        },
        roof={"bandwidth": bandwidth, "flops": flops},
        floors=floors,
        rungs=rungs,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
