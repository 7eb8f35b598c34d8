"""What notebook 10 shows of a GPU: the time of each of its kernels, from a copy in PyTorch to the engine's own.

The steps are those of `course.paged_kernels`, in the shape of Qwen3-0.6B, for equal, ragged, and few but long contexts. Every
step is compared with float64 before it is timed.

    python benchmarks/record_paged_kernels.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import ROOT, record, write

from course import paged_kernels as lesson
from course import roofline

DATA = ROOT / "notebooks" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in lesson.QWEN3_06B.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument(
        "--sequences", type=int, default=128, help="of equal and of ragged contexts (default %(default)s)"
    )
    parser.add_argument("--longest", type=int, default=1024, help="of their contexts, in tokens (default %(default)s)")
    parser.add_argument("--few", type=int, default=4, help="sequences with very long contexts (default %(default)s)")
    parser.add_argument("--very-long", type=int, default=4096, help="their contexts, in tokens (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the results (default notebooks/data)")
    args = parser.parse_args()

    # Triton's interpreter, which stands in for a GPU, computes wrong products of bfloat16.
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    shape = {name: getattr(args, name) for name in (*lesson.QWEN3_06B, "block_size")}
    measured = []
    for name, lengths in lesson.workloads(args.sequences, args.longest, args.few, args.very_long).items():
        load = lesson.time_steps(name, lengths, args.rounds, dtype=dtype, **shape)
        measured.append(load)
        print(f"{name}: {len(lengths)} sequences, {load['bytes'] / 1e6:.1f} MB")
        for row in load["steps"]:
            ms = roofline.median_ms(row["seconds"])
            print(
                f"  {row['step']:<8}{ms:10.4f} ms{load['bytes'] / ms / 1e9:8.3f} TB/s   error {row['error']:.1e}",
                flush=True,
            )

    ragged = next(load for load in measured if load["name"] == "ragged")
    engine = next(row for row in ragged["steps"] if row["step"] == "engine")
    result = record(
        "paged_kernels",
        metric="TB/s of the engine's kernel at ragged contexts",
        samples=[ragged["bytes"] / seconds / 1e12 for seconds in engine["seconds"]],
        workload={"dtype": str(dtype).removeprefix("torch."), "seed": 0, **shape},
        workloads=measured,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
