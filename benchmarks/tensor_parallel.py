"""Tensor parallel beside one process: the same tokens, and what a decode step costs.

Both draw greedy tokens for the same prompts with the same weights in float32 and must agree. Then each decodes
`--batch` sequences in `--dtype`; a sample is the time of one step in which every sequence decodes. The ranks are a group of
NCCL's with one GPU each, or of gloo's on CPUs. Where they can write each other's memory, a kernel of ours sums few rows
(`nanovllm.utils.inboxes`): a record's "group" names the group, not who sums, which its commit tells.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from pathlib import Path

import torch
from common import RESULTS, record, write
from random_models import HELP, describe, model_folder

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL


def random_prompts(args: argparse.Namespace, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(args.seed)
    return torch.randint(vocab_size, (args.batch, args.prompt_tokens), generator=generator).tolist()


def greedy_tokens(folder: Path, size: int, args: argparse.Namespace) -> list[list[int]]:
    """float32 tokens: in bfloat16 the ranks' sums round differently, and near-ties fall differently."""
    settings = engine_settings(size, args) | {"dtype": "float32"}
    with LLM(folder, **settings) as llm:
        prompts = random_prompts(args, llm.model_config.vocab_size)
        params = SamplingParams(temperature=0, max_tokens=args.check_tokens, ignore_eos=True)
        outputs = llm.generate(prompts, params, use_tqdm=False)
    gc.collect()
    return [output["token_ids"] for output in outputs]


def decode_steps(folder: Path, size: int, args: argparse.Namespace) -> list[float]:
    """Milliseconds of each step in which the whole batch decodes, without the first `--warm-up` ones."""
    with LLM(folder, **engine_settings(size, args), dtype=args.dtype) as llm:
        params = SamplingParams(temperature=0, max_tokens=args.warm_up + args.steps + 1, ignore_eos=True)
        for prompt in random_prompts(args, llm.model_config.vocab_size):
            llm.add_request(prompt, params)
        samples = []
        while llm.has_unfinished:
            stats = llm.step()
            if stats.num_decode_tokens == args.batch and not stats.num_prefill_tokens:
                samples.append(stats.seconds * 1e3)
    gc.collect()
    return samples[args.warm_up :]


def engine_settings(size: int, args: argparse.Namespace) -> dict:
    length = args.prompt_tokens + max(args.check_tokens, args.warm_up + args.steps + 1) + 1
    return dict(
        tensor_parallel_size=size,
        device=args.device,
        max_num_seqs=args.batch,
        max_num_batched_tokens=max(min(args.batch * args.prompt_tokens, 16384), args.batch),
        max_model_len=length,
        num_kvcache_blocks=args.batch * -(-length // 16) + 1,
        kvcache_block_size=16,
        enable_prefix_caching=False,
        enforce_eager=args.enforce_eager,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EMBEDDED_MODEL), help=f"{HELP}; default: the embedded model")
    parser.add_argument("--size", type=int, default=2, help="ranks, compared with one")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--check-tokens", type=int, default=32, help="greedy tokens a prompt that must agree; 0: none")
    parser.add_argument("--steps", type=int, default=128, help="timed decode steps")
    parser.add_argument("--warm-up", type=int, default=16, help="steps before them")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", default="auto", help="of the timed steps")
    parser.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--label", help="added to the model's name in the results, such as batch256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    with model_folder(args.model, seed=args.seed) as folder:
        equal = args.batch
        if args.check_tokens:
            expected, got = (greedy_tokens(folder, size, args) for size in (1, args.size))
            equal = sum(a == b for a, b in zip(expected, got, strict=True))
            print(f"float32 greedy tokens: {equal} of {args.batch} prompts draw the same {args.check_tokens}")
        samples = {size: decode_steps(folder, size, args) for size in (1, args.size)}
    on_gpu = torch.cuda.is_available() and args.device != "cpu"
    median = {size: statistics.median(values) for size, values in samples.items()}
    for size, values in samples.items():
        print(f"tensor_parallel_size {size}: {median[size]:8.3f} ms a decode step (best {min(values):.3f})")
    result = record(
        "tensor_parallel",
        engine=describe(args.model).split(",")[0] + (f"-{args.label}" if args.label else ""),
        metric="ms per decode step",
        samples=samples[args.size],
        workload={
            "model": describe(args.model),
            "tensor_parallel_size": args.size,
            "group": "nccl" if on_gpu else "gloo",
            "batch": args.batch,
            "prompt_tokens": args.prompt_tokens,
            "dtype": args.dtype,
            "enforce_eager": args.enforce_eager,
            "seed": args.seed,
        },
        samples_of_one_process=samples[1],
        median_of_one_process=median[1],
        speedup=median[1] / median[args.size],
        float32_check={"prompts": args.batch, "tokens": args.check_tokens, "equal_prompts": equal}
        if args.check_tokens
        else None,
    )
    print(write(result, args.out))
    if equal < args.batch:
        raise SystemExit("the two drew different tokens")


if __name__ == "__main__":
    main()
