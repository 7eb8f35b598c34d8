"""What PyTorch's autograd modes change in one forward pass: time, and memory kept for a backward pass that never comes.

Two models with the same weights: transformers' own Qwen3, whose weights want gradients, and this engine's, whose weights
do not. Modes: `default` (autograd on), `frozen` (autograd on, no weight wants a gradient; this is the engine's case without
its decorator), `no_grad` and `inference_mode`. Samples are taken in turn, so that a disturbance hits all modes alike; on a
CPU they are seconds of process CPU time with one thread, on a GPU seconds until it has finished.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, record, write
from random_models import HELP, describe, model_folder

from course import anatomy, roofline
from course.prefill_decode import saved_for_backward
from nanovllm import LLM
from nanovllm.attention import AttentionMetadata
from nanovllm.config import EMBEDDED_MODEL

Forward = Callable[[], Any]
SETTINGS = {"dtype": "float32", "num_kvcache_blocks": 1, "enforce_eager": True}


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Autograd stays on, but no weight of `model` wants a gradient."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def modes_of(model: torch.nn.Module) -> dict[str, Callable[[], contextlib.AbstractContextManager]]:
    """The modes that differ for `model`: where no weight wants a gradient, `default` is `frozen`."""
    modes = {"frozen": lambda: frozen(model), "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    if any(parameter.requires_grad for parameter in model.parameters()):
        return {"default": torch.enable_grad} | modes
    return modes


def seconds_in_turn(forwards: dict[str, Forward], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """`rounds` samples of each, after one that warms up; every round starts with another one."""
    names = list(forwards)
    samples: dict[str, list[float]] = {name: [] for name in names}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            roofline.synchronize(device)
            start = clock()
            forwards[name]()
            roofline.synchronize(device)
            if number >= 0:
                samples[name].append(clock() - start)
    return samples


def under(mode: Callable[[], contextlib.AbstractContextManager], forward: Forward) -> Forward:
    def run() -> None:
        with mode():
            forward()

    return run


def engine_forward(llm: Any, num_tokens: int) -> Forward:
    """The engine's model over `num_tokens` tokens of one sequence, down to the last one's logits, in a cache of its own."""
    model, device, block_size = llm.model_runner.model, llm.model_runner.device, llm.model_runner.block_size
    num_blocks = -(-num_tokens // block_size)
    for layer in model.attention_layers():
        shape = (num_blocks, 2, layer.num_kv_heads, block_size, layer.head_dim)
        layer.kv_cache = torch.zeros(shape, dtype=llm.model_runner.dtype, device=device)

    def index(values: Any) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device=device)

    metadata = AttentionMetadata(
        query_start=index([0, num_tokens]),
        context_lens=index([num_tokens]),
        block_tables=index(range(num_blocks)).unsqueeze(0),
        slot_mapping=index(range(num_tokens)),
        num_decodes=int(num_tokens == 1),
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )
    positions = torch.arange(num_tokens, device=device)
    ids = positions % model.config.vocab_size

    def forward() -> None:
        model.compute_logits(model(ids, positions, metadata)[-1:])

    return forward


def transformers_forward(model: Any, num_tokens: int) -> Forward:
    """transformers' model over the same tokens, without a cache, down to the last one's logits."""
    ids = torch.arange(num_tokens, device=model.device)[None] % model.config.vocab_size
    return lambda: model(ids, use_cache=False, logits_to_keep=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EMBEDDED_MODEL), help=HELP)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128, 512], help="tokens of a forward pass")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    passes = []
    with model_folder(args.model) as folder, LLM(folder, **SETTINGS) as llm:
        peer = anatomy.load_transformers(folder, device)
        codes = {
            "transformers": (peer, lambda tokens: transformers_forward(peer, tokens)),
            "engine": (llm.model_runner.model, lambda tokens: engine_forward(llm, tokens)),
        }
        for tokens in args.tokens:
            for code, (model, make) in codes.items():
                modes, forward = modes_of(model), make(tokens)
                seconds = seconds_in_turn(
                    {m: under(context, forward) for m, context in modes.items()}, device, args.rounds
                )
                entry: dict[str, Any] = {"code": code, "tokens": tokens, "seconds": seconds}
                if code == "transformers":
                    entry["kept_bytes"] = {m: saved_for_backward(peer, tokens, context) for m, context in modes.items()}
                    entry["weight_bytes"] = sum(parameter.nbytes for parameter in peer.parameters())
                passes.append(entry)
                row = "  ".join(f"{mode} {roofline.median_ms(samples):.2f} ms" for mode, samples in seconds.items())
                print(f"{tokens:>4} tokens, {code:<12} {row}", flush=True)
    clock = "CPU seconds" if device.type == "cpu" else "seconds"
    first = passes[0]
    result = record(
        "inference_mode",
        engine=describe(args.model).split(",")[0] + ("-gpu" if device.type == "cuda" else ""),
        metric=f"{clock} a forward pass of {first['tokens']} tokens, {first['code']}, inference_mode",
        samples=first["seconds"]["inference_mode"],
        workload={
            "model": describe(args.model),
            "tokens": args.tokens,
            "rounds": args.rounds,
            "dtype": "float32",
            "threads": torch.get_num_threads(),
        },
        passes=passes,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
