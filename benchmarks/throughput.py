"""Offline throughput on nano-vllm's workload: 256 sequences of 100 to 1,024 random tokens in and out, temperature 0.6.

The weights are random, of a published Qwen3's shape: they cost the same time as trained ones. The workload runs twice, so
that the warm-up (compilation, caches) is visible; each round is a sample, in output tokens per second of wall time.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, record, write
from tensor_parallel import SHAPES, write_random_checkpoint

from nanovllm import LLM, SamplingParams


def workload(num_seqs: int, shortest: int, longest: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and numbers of output tokens, drawn in the order in which nano-vllm's benchmark draws them."""
    draw = random.Random(seed)
    prompts = [[draw.randint(0, 10000) for _ in range(draw.randint(shortest, longest))] for _ in range(num_seqs)]
    return prompts, [draw.randint(shortest, longest) for _ in range(num_seqs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="Qwen3-0.6B")
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--tokens", type=int, nargs=2, default=(100, 1024), metavar=("LOW", "HIGH"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    prompts, num_output = workload(args.num_seqs, *args.tokens, args.seed)
    params = [SamplingParams(temperature=0.6, max_tokens=n, ignore_eos=True) for n in num_output]
    with tempfile.TemporaryDirectory() as temporary:
        write_random_checkpoint(SHAPES[args.shape], Path(temporary), args.seed)
        start = time.perf_counter()
        llm = LLM(
            temporary,
            max_model_len=4096,
            max_num_seqs=args.num_seqs,
            enforce_eager=args.enforce_eager,
            attention_backend=args.attention_backend,
            # Repeats of the workload must not find their prompts cached.
            enable_prefix_caching=False,
        )
        startup = time.perf_counter() - start
    samples = []
    with llm:
        backend = llm.model_runner.attention_backend
        for number in range(args.rounds):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - start
            if [len(output["token_ids"]) for output in outputs] != num_output:
                raise SystemExit("a request did not get the tokens that it asked for")
            samples.append(sum(num_output) / seconds)
            print(
                f"round {number}: {sum(num_output)} tokens in {seconds:.2f} s, {samples[-1]:.0f} tokens/s", flush=True
            )
    mode = "eager" if args.enforce_eager else "graphs"
    result = record(
        "throughput",
        metric="output tokens/s",
        samples=samples,
        engine=f"nanovllm-{mode}",
        workload={
            "model": f"{args.shape}, random weights, bfloat16",
            "sequences": args.num_seqs,
            "input_tokens": sum(map(len, prompts)),
            "output_tokens": sum(num_output),
            "temperature": 0.6,
            "max_model_len": 4096,
            "attention_backend": backend,
            "seed": args.seed,
        },
        warm=samples[-1],
        startup_seconds=startup,
    )
    print(
        f"{mode}, {backend}: warm {samples[-1]:.0f} tokens/s, start-up {startup:.1f} s, {write(result, args.out).name}"
    )


if __name__ == "__main__":
    main()
