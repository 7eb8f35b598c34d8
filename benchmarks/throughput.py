"""Offline throughput on nano-vllm's workload: 256 sequences of 100 to 1,024 random tokens in and out, temperature 0.6.

The workload runs `--rounds` times with other prompts of the same lengths. The first round is cold: it compiles kernels and
fills caches. The samples are the warm rounds, in output tokens per second of wall time.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --engine nano-vllm --peer-path ../nano-vllm
    python benchmarks/throughput.py --engine vllm
"""

from __future__ import annotations

import argparse
import random

import engines
from common import record, write
from random_models import describe, model_folder, vocab_size


def bench_requests(
    num_seqs: int, shortest: int, longest: int, ids: int, seed: int
) -> tuple[list[list[int]], list[int]]:
    """Prompts and numbers of output tokens, drawn in the order in which nano-vllm's benchmark draws them."""
    draw = random.Random(seed)
    prompts = [[draw.randint(0, ids - 1) for _ in range(draw.randint(shortest, longest))] for _ in range(num_seqs)]
    return prompts, [draw.randint(shortest, longest) for _ in range(num_seqs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines.add_options(parser)
    parser.add_argument("--num-seqs", type=int, default=256, help="requests, all there at once (default %(default)s)")
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(100, 1024), metavar=("LOW", "HIGH"), help="default: 100 1024"
    )
    parser.add_argument("--rounds", type=int, default=4, help="the first is cold (default %(default)s)")
    args = parser.parse_args()
    if args.rounds < 2:
        raise SystemExit("--rounds must be at least 2: the first round is cold")
    engines.check(args)

    with model_folder(args.model, seed=args.seed, tokenizer=args.engine == "nano-vllm") as folder:
        ids = min(engines.TOKEN_IDS, vocab_size(folder))
        prompts, output_tokens = bench_requests(args.num_seqs, *args.tokens, ids, args.seed)
        answer = engines.run(args, folder, [engines.Workload(prompts, output_tokens, args.rounds)])
    total = sum(output_tokens)
    cold, *warm = [total / seconds for seconds in answer["workloads"][0]]
    result = record(
        "throughput",
        metric="output tokens/s",
        samples=warm,
        engine=engines.engine_name(args),
        workload={
            "model": describe(args.model),
            "sequences": args.num_seqs,
            "input_tokens": sum(map(len, prompts)),
            "output_tokens": total,
            "temperature": 0.6,
            "settings": engines.settings(args),
            "seed": args.seed,
        }
        | answer["info"],
        cold=cold,
        startup_seconds=answer["startup"]["engine"],
        versions=engines.all_versions(args),
    )
    path = write(result, args.out)
    print(f"\n{'engine':24} {'cold':>10} {'warm':>10}  output tokens/s")
    print(f"{result['engine']:24} {cold:10.0f} {result['median']:10.0f}  {path.name}")


if __name__ == "__main__":
    main()
