"""What notebook 05 shows of a GPU: the roofline, and the engine's steps beside it.

Measures read bandwidth and matrix products; a prompt's time to its first token for several lengths; a decode step's time
for several batches and contexts; the steps of decoding requests while a long prompt is read, whole and in chunks; and a
forward pass of transformers' own Qwen3 with gradients, under no_grad and under inference_mode. Weights are random.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import ROOT, record, write
from random_models import HELP, describe, model_folder

from course import roofline
from course.prefill_decode import steps_beside_a_prompt
from nanovllm import LLM

DATA = ROOT / "notebooks" / "data"


def transformers_modes(folder: Path, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    from transformers import AutoConfig, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(AutoConfig.from_pretrained(folder)).to(device, dtype).eval()
    return {str(tokens): roofline.autograd_seconds(model, tokens, rounds) for tokens in (1, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen3-0.6b", help=f"{HELP} (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 64, 256, 1024, 4096, 8192])
    parser.add_argument("--steps", type=int, default=24, help="decode steps in a sample")
    parser.add_argument("--long-prompt", type=int, default=8192)
    parser.add_argument("--budgets", type=int, nargs=2, default=[16384, 512], metavar=("WHOLE", "CHUNKED"))
    parser.add_argument("--matrix", type=int, default=8192, help="size of the matrices of the FLOP/s measurement")
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the results (default notebooks/data)")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    largest = 4 * 2**30 if device.type == "cuda" else 64 * 2**20
    (bandwidth,) = roofline.measure_bandwidth([largest], device, dtype).values()
    flops = roofline.measure_flops(args.matrix, device, dtype)
    print(f"{bandwidth / 1e12:.3f} TB/s, {flops / 1e12:.1f} TFLOP/s", flush=True)

    longest = max(*args.prompts, *args.contexts, args.long_prompt) + 2 * args.steps + 64
    settings = dict(
        max_model_len=longest,
        max_num_seqs=max(args.batches),
        enable_prefix_caching=False,
        dtype=str(dtype).split(".")[1],
    )
    decode, prefill, beside = [], [], []
    with model_folder(args.model) as folder:
        for budget in args.budgets:
            # All prompts of a batch are read before any decodes: only then is a sample the steps between.
            with LLM(folder, max_num_batched_tokens=max(budget, max(args.batches)), **settings) as llm:
                if budget == args.budgets[0]:
                    for tokens in args.prompts:
                        samples = roofline.prefill_seconds(llm, tokens, args.rounds)
                        prefill.append({"tokens": tokens, "seconds": samples})
                        print(f"prefill {tokens}: {roofline.median_ms(samples):.3f} ms", flush=True)
                    for context in args.contexts:
                        for batch in args.batches:
                            samples = roofline.decode_seconds(llm, batch, context, args.steps, args.rounds)
                            decode.append({"batch": batch, "context": context, "seconds": samples})
                            print(f"decode {batch} at {context}: {roofline.median_ms(samples):.3f} ms", flush=True)
                steps_beside_a_prompt(llm, min(32, max(args.batches) - 1), args.long_prompt)  # warms up
                beside.append(steps_beside_a_prompt(llm, min(32, max(args.batches) - 1), args.long_prompt))
        modes = transformers_modes(folder, device, dtype, 5 * args.rounds)
    for tokens, samples in modes.items():
        print(tokens, {name: round(roofline.median_ms(times), 3) for name, times in samples.items()}, flush=True)

    shown = decode[0]
    result = record(
        "prefill_decode",
        metric=f"seconds a decode step, batch {shown['batch']}, context {shown['context']}",
        samples=shown["seconds"],
        workload={
            "model": describe(args.model),
            "dtype": str(dtype).split(".")[1],
            "itemsize": dtype.itemsize,
            "steps": args.steps,
            "long_prompt": args.long_prompt,
            "seed": 0,
        },
        roof={"bandwidth": bandwidth, "flops": flops},
        decode=decode,
        prefill=prefill,
        beside_a_prompt=beside,
        transformers_modes=modes,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
