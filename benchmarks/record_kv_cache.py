"""What notebook 04 shows of a GPU's memory: the caching allocator step by step, and the engine's budget term by term.

`kv_cache_allocator.json` holds what PyTorch and the device say after each of a few allocations. `kv_cache_budget.json`
holds, for several sizes of a step, the terms from which the engine counted its KV blocks, the memory in use once it is up
and while it serves the largest step, and what happens if half of a step's memory is given to the KV cache as well.

    python benchmarks/record_kv_cache.py

About a minute on a GPU. Without one, only the engine's own count is recorded (`kv_cache_budget`, without terms).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import ROOT, record, write
from random_models import HELP, describe, model_folder

from course import kv_cache

DATA = ROOT / "notebooks" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen3-0.6b", help=f"{HELP} (default %(default)s)")
    parser.add_argument("--step-tokens", type=int, nargs="+", default=[2048, 8192, 16384], metavar="N")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the results (default notebooks/data)")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    print("KV cache on", torch.cuda.get_device_name() if on_gpu else "the CPU", flush=True)

    with model_folder(args.model) as folder:
        if on_gpu:
            steps = kv_cache.allocator_steps()
            result = record(
                "kv_cache_allocator",
                metric="MiB that PyTorch holds after each step",
                samples=[step["reserved"] for step in steps],
                workload={"tensors_mib": [512, 1024, 256]},
                steps=steps,
            )
            print(write(result, args.out), flush=True)

        settings = {"max_num_seqs": args.max_num_seqs}
        starts = []
        for tokens in args.step_tokens:
            for eager in (True, False):
                if eager or tokens == 8192:  # the graphs do not depend on the prefill's size: once is enough
                    start = kv_cache.measure_start(
                        folder, max_num_batched_tokens=tokens, enforce_eager=eager, **settings
                    )
                    starts.append(start)
                    print(f"{tokens} tokens a step, eager {eager}: {start['num_blocks']} blocks", flush=True)
        too_many = {}
        if on_gpu:
            eager = max(
                (s for s in starts if s["settings"]["enforce_eager"]),
                key=lambda s: s["settings"]["max_num_batched_tokens"],
            )
            num_blocks = kv_cache.overcommitted_blocks(eager)
            outcome = kv_cache.try_overcommitted(folder, num_blocks, **eager["settings"])
            too_many = {"too_many": {"num_blocks": num_blocks, "settings": eager["settings"], "outcome": outcome}}
            print(f"{num_blocks} blocks: {outcome}", flush=True)
        result = record(
            "kv_cache_budget",
            metric="KV-cache blocks",
            samples=[start["num_blocks"] for start in starts],
            workload={"model": describe(args.model), "step_tokens": args.step_tokens, **settings},
            starts=starts,
            **too_many,
        )
        print(write(result, args.out), flush=True)


if __name__ == "__main__":
    main()
