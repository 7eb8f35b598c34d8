"""Time of a decode step at several batch sizes: 128 tokens in, 256 out, all requests there at once, temperature 0.6.

A sample is the wall time of one whole `generate` divided by the tokens that each sequence gets, so the prefill is in it:
milliseconds a step; batch size / that is the rate. The first round of each batch size is cold and kept apart.
"""

from __future__ import annotations

import argparse
import random

import engines
from common import record, write
from random_models import describe, model_folder, vocab_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines.add_options(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128], help="default: 1 8 32 128")
    parser.add_argument("--input-tokens", type=int, default=128, help="default %(default)s")
    parser.add_argument("--output-tokens", type=int, default=256, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=6, help="of each batch; the first is cold (default %(default)s)")
    args = parser.parse_args()
    if args.rounds < 2:
        raise SystemExit("--rounds must be at least 2: the first round is cold")
    engines.check(args)

    with model_folder(args.model, seed=args.seed, tokenizer=args.engine == "nano-vllm") as folder:
        draw = random.Random(args.seed)
        ids = min(engines.TOKEN_IDS, vocab_size(folder))
        workloads = []
        for batch in args.batch:
            prompts = engines.random_prompts(draw, [args.input_tokens] * batch, ids)
            workloads.append(engines.Workload(prompts, [args.output_tokens] * batch, args.rounds))
        answer = engines.run(args, folder, workloads)
    print(f"\n{'batch':>5} {'ms/step':>9} {'tokens/s':>10}")
    for batch, seconds in zip(args.batch, answer["workloads"], strict=True):
        cold, *warm = [value * 1e3 / args.output_tokens for value in seconds]
        result = record(
            f"latency_bs{batch}",
            metric="ms per step",
            samples=warm,
            engine=engines.engine_name(args),
            workload={
                "model": describe(args.model),
                "batch": batch,
                "input_tokens": args.input_tokens,
                "output_tokens": args.output_tokens,
                "temperature": 0.6,
                "settings": engines.settings(args),
                "seed": args.seed,
            }
            | answer["info"],
            cold=cold,
            versions=engines.all_versions(args),
        )
        path = write(result, args.out)
        print(f"{batch:5} {result['median']:9.3f} {batch * 1e3 / result['median']:10.0f}  {path.name}")


if __name__ == "__main__":
    main()
