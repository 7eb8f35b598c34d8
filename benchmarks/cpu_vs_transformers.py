"""Throughput of ragged prompts on a CPU: this engine beside transformers' batched `generate`, in one run.

Both complete the same prompts greedily with the same weights in float32 and must draw the same tokens. transformers gets
the whole batch padded on the left, the way it is meant to be called. Two workloads: every prompt gets exactly `--tokens`
tokens (`fixed`), and every prompt ends where the model ends it, at most there (`natural`). Samples are output tokens per
second of process CPU time, the two engines taking turns, so that neighbours on the machine hurt both alike. The first
round of each workload is cold (code is compiled, layouts are made) and kept apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, record, write
from random_models import HELP, describe, model_folder
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL

STORY_STARTS = ("Once upon a time", "One morning", "Tell me a story about a", "It was raining, so")

SETTINGS = {"enable_prefix_caching": False, "dtype": "float32", "device": "cpu", "max_num_batched_tokens": 1024}
"""Of this engine. Without prefix caching: the repeats would otherwise find their prompts cached. With small steps: the
activations of a step of thousands of tokens are memory that the system hands out and takes back, page by page."""


def ragged_prompts(num: int, low: int, high: int, llm: LLM, seed: int) -> list[list[int]]:
    """`num` prompts of `low` to `high` tokens: starts of stories, so that natural ends exist; random ids without a tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (num,), generator=generator).tolist()
    if llm.tokenizer is None:
        return [torch.randint(llm.model_config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
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
    parser.add_argument("--model", default=str(EMBEDDED_MODEL), help=f"{HELP}; default: the embedded model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(16, 256), metavar=("LOW", "HIGH"))
    parser.add_argument("--tokens", type=int, default=128, help="output tokens a prompt, at most")
    parser.add_argument(
        "--repeats", type=int, default=7, help="of each workload, after a cold one (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    torch.set_num_threads(1)
    name = describe(args.model).split(",")[0]
    with model_folder(args.model, seed=args.seed) as folder:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with LLM(folder, **SETTINGS) as llm:
            prompts = ragged_prompts(args.prompts, *args.prompt_tokens, llm, args.seed)
            # Random weights have no natural end.
            for natural in (False, True) if llm.tokenizer else (False,):
                kind = "natural" if natural else "fixed"
                samples, outputs = take_turns(model, llm, prompts, args.tokens, args.repeats, natural)
                workload = {
                    "prompts": args.prompts,
                    "prompt_tokens": [len(p) for p in prompts],
                    "output_tokens": [len(o) for o in outputs],
                    "stops": kind,
                    "seed": args.seed,
                    "threads": 1,
                    "model": f"{name}, float32",
                    "settings": SETTINGS,
                }
                ratios = [o / t for o, t in zip(samples["nanovllm"][1:], samples["transformers"][1:], strict=True)]
                for engine, (cold, *warm) in samples.items():
                    result = record(
                        f"cpu_vs_transformers_{kind}" + ("" if name == "embedded" else f"_{name}"),
                        metric="output tokens/s of process CPU time",
                        samples=warm,
                        workload=workload,
                        engine=engine,
                        cold=cold,
                        **({"ratios_to_transformers": ratios} if engine == "nanovllm" else {}),
                    )
                    path = write(result, args.out)
                    print(f"{kind:8} {engine:13} {result['median']:8.0f} tok/s, cold {cold:8.0f}   {path.name}")
                print(
                    f"{kind:8} ratio         {statistics.median(ratios):8.2f} "
                    f"(min {min(ratios):.2f}, max {max(ratios):.2f})"
                )


def take_turns(
    model: torch.nn.Module, llm: LLM, prompts: list[list[int]], tokens: int, repeats: int, natural: bool
) -> tuple[dict[str, list[float]], list[list[int]]]:
    """Each engine's rates, the cold round first, and the tokens; raises SystemExit where the engines' tokens differ."""
    engines = {
        "transformers": lambda: transformers_generate(model, prompts, tokens, natural),
        "nanovllm": lambda: nanovllm_generate(llm, prompts, tokens, natural),
    }
    samples: dict[str, list[float]] = {name: [] for name in engines}
    for _ in tqdm(range(1 + repeats), desc="natural" if natural else "fixed"):
        outputs = {}
        for name, function in engines.items():
            rate, outputs[name] = timed(function)
            samples[name].append(rate)
        if outputs["transformers"] != outputs["nanovllm"]:
            raise SystemExit("the two engines drew different tokens: the comparison means nothing")
    return samples, outputs["nanovllm"]


if __name__ == "__main__":
    main()
