"""Throughput of ragged prompts on a CPU: this engine beside transformers' batched `generate`, in one run.

Both complete the same prompts greedily with the same weights in float32 and must draw the same tokens. transformers gets
the whole batch padded on the left, the way it is meant to be called. Two workloads: every prompt gets exactly `--tokens`
tokens (`fixed`), and every prompt ends where the model ends it, at most there (`natural`). Samples are output tokens per
second of process CPU time, the two engines taking turns, so that neighbours on the machine hurt both alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, record, write
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL

STORY_STARTS = ("Once upon a time", "One morning", "Tell me a story about a", "It was raining, so")


def ragged_prompts(num: int, low: int, high: int, llm: LLM, seed: int) -> list[list[int]]:
    """`num` prompts of `low` to `high` tokens: starts of greedy stories, so that natural ends exist."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (num,), generator=generator).tolist()
    starts = [llm.tokenizer.encode(STORY_STARTS[i % len(STORY_STARTS)]) for i in range(num)]
    params = [
        SamplingParams(temperature=0.8, seed=seed + i, max_tokens=length, ignore_eos=True)
        for i, length in enumerate(lengths)
    ]
    outputs = llm.generate(starts, params, use_tqdm=False)
    return [(start + out["token_ids"])[:n] for start, out, n in zip(starts, outputs, lengths, strict=True)]


def transformers_generate(
    model: torch.nn.Module, prompts: list[list[int]], tokens: int, natural: bool
) -> list[list[int]]:
    """transformers' greedy tokens for the prompts as one batch, padded on the left, cut after each row's end."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    eos = model.generation_config.eos_token_id if natural else None
    with torch.inference_mode():
        rows = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=eos, pad_token_id=0
        )
    stops = {eos} if isinstance(eos, int) else set(eos or ())
    outputs = []
    for row in rows[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        outputs.append(row[:end])
    return outputs


def nanovllm_generate(llm: LLM, prompts: list[list[int]], tokens: int, natural: bool) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=not natural)
    return [output["token_ids"] for output in llm.generate(prompts, params, use_tqdm=False)]


def timed(function: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Output tokens per second of process CPU time, and the tokens."""
    start = time.process_time()
    outputs = function()
    return sum(map(len, outputs)) / (time.process_time() - start), outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(16, 256), metavar=("LOW", "HIGH"))
    parser.add_argument("--tokens", type=int, default=128, help="output tokens a prompt, at most")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()
    # Without prefix caching: the repeats would otherwise find their prompts cached.
    with LLM(enable_prefix_caching=False, dtype="float32", device="cpu") as llm:
        prompts = ragged_prompts(args.prompts, *args.prompt_tokens, llm, args.seed)
        for natural in (False, True):
            engines = {
                "transformers": lambda n=natural: transformers_generate(model, prompts, args.tokens, n),
                "nanovllm": lambda n=natural: nanovllm_generate(llm, prompts, args.tokens, n),
            }
            samples: dict[str, list[float]] = {name: [] for name in engines}
            kind = "natural" if natural else "fixed"
            for _ in tqdm(range(args.repeats), desc=kind):
                outputs = {}
                for name, function in engines.items():
                    rate, outputs[name] = timed(function)
                    samples[name].append(rate)
                if outputs["transformers"] != outputs["nanovllm"]:
                    raise SystemExit("the two engines drew different tokens: the comparison means nothing")
            workload = {
                "prompts": args.prompts,
                "prompt_tokens": [len(p) for p in prompts],
                "output_tokens": [len(o) for o in outputs["nanovllm"]],
                "stops": kind,
                "seed": args.seed,
                "threads": 1,
                "model": "embedded, float32",
            }
            ratios = [o / t for o, t in zip(samples["nanovllm"], samples["transformers"], strict=True)]
            for name, values in samples.items():
                more = {"ratios_to_transformers": ratios} if name == "nanovllm" else {}
                metric = "output tokens/s of process CPU time"
                result = record(
                    f"cpu_vs_transformers_{kind}", metric=metric, samples=values, workload=workload, engine=name, **more
                )
                path = write(result, args.out)
                print(f"{kind:8} {name:13} {result['median']:8.0f} tok/s   {path.name}")
            print(
                f"{kind:8} ratio         {statistics.median(ratios):8.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
