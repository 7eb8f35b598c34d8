"""What a step of the engine costs in operations and bytes, and how fast a machine could be: the roofline model.

Source of the model: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model for
multicore architectures". A step takes at least the time of its arithmetic and at least the time of its memory traffic.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from course.anatomy import flops_by_part, parameters_by_part
from nanovllm.config import ModelConfig
from nanovllm.utils.memory import kv_bytes_per_token


class Chunk(NamedTuple):
    """`new` tokens of one sequence that follow `cached` ones; a decode is a chunk of one token."""

    cached: int
    new: int


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and bytes of memory traffic that a step cannot avoid."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations a byte: what decides whether arithmetic or memory is the limit."""
        return self.flops / self.bytes


def step_cost(config: ModelConfig, chunks: Iterable[Chunk], itemsize: int) -> Cost:
    """The cost of one step in which every chunk samples one token.

    Operations: those of the matrix products (`course.anatomy.flops_by_part`); the LM head runs for one token a chunk.
    Bytes: every weight once, however many tokens share it; one row of the embedding a token; the keys and values of
    each sequence read once, those of the new tokens written. Left out: activations and logits, which stay small or in
    caches, and whatever is read twice. So no implementation in this dtype can move less.

    Args:
        config: the model's shape.
        chunks: what the step computes.
        itemsize: bytes of one number, in weights and cache alike.
    """
    chunks = list(chunks)
    new = sum(chunk.new for chunk in chunks)
    contexts = sum(chunk.new * chunk.cached + chunk.new * (chunk.new + 1) // 2 for chunk in chunks)
    parts = flops_by_part(config, context=1)
    flops = new * (parts["projections"] + parts["MLP"]) + contexts * parts["attention"] + len(chunks) * parts["LM head"]
    kv = kv_bytes_per_token(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, itemsize)
    read = sum(chunk.cached + chunk.new for chunk in chunks)
    return Cost(flops, weight_bytes(config, itemsize) + new * config.hidden_size * itemsize + (read + new) * kv)


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of the weights that every step reads: all but the embedding, of which it reads rows; a tied head is one table."""
    parts = parameters_by_part(config)
    return (
        sum(parts.values()) - parts["embedding"] - parts["LM head"] + config.vocab_size * config.hidden_size
    ) * itemsize


def decode_cost(config: ModelConfig, batch: int, context: int, itemsize: int) -> Cost:
    """One decode step of `batch` sequences that attend to `context` tokens each, the new one included."""
    return step_cost(config, [Chunk(context - 1, 1)] * batch, itemsize)


def prefill_cost(config: ModelConfig, num_tokens: int, itemsize: int) -> Cost:
    """One prompt of `num_tokens` tokens in one step."""
    return step_cost(config, [Chunk(0, num_tokens)], itemsize)


@dataclass(frozen=True)
class Roof:
    """A machine's two limits: operations a second of large matrix products, bytes a second of memory."""

    flops: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """The intensity at which both limits meet, in operations a byte."""
        return self.flops / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """Operations a second that a step of this intensity can reach at best."""
        return min(self.flops, intensity * self.bandwidth)

    def seconds(self, cost: Cost) -> float:
        """The least time of a step."""
        return max(cost.flops / self.flops, cost.bytes / self.bandwidth)


# --- measuring -----------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(work: dict[Any, Callable[[], Any]], device: torch.device, rounds: int) -> dict[Any, list[float]]:
    """Seconds of each function, `rounds` samples each, taken in turn so that a disturbance hits all alike.

    Each runs once before, so that nothing lazy is in a sample.
    """
    for function in work.values():
        function()
    samples: dict[Any, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            samples[name].append(time.perf_counter() - start)
    return samples


@torch.inference_mode()
def measure_bandwidth(
    sizes: Sequence[int], device: torch.device, dtype: torch.dtype, rounds: int = 7
) -> dict[int, float]:
    """Bytes a second at which a matrix of each size in bytes is read by a product with one vector: what a decode does.

    Small sizes come out of a cache; the best of `rounds` samples counts.
    """
    rates = {}
    for size in sizes:
        columns = 1024
        rows = max(1, size // (columns * dtype.itemsize))
        matrix = torch.full((rows, columns), 0.5, dtype=dtype, device=device)
        vector = torch.ones(columns, dtype=dtype, device=device)
        # Several in a row: one alone would measure the launch where the matrix is small.
        repeats = max(1, min(50, 2**27 // matrix.nbytes))
        out = torch.empty(rows, dtype=dtype, device=device)

        def work(matrix=matrix, vector=vector, out=out, repeats=repeats) -> None:
            for _ in range(repeats):
                torch.mv(matrix, vector, out=out)

        rates[size] = repeats * matrix.nbytes / min(seconds_each({0: work}, device, rounds)[0])
        del matrix, work
    return rates


@torch.inference_mode()
def measure_flops(size: int, device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Operations a second of a product of two (size, size) matrices, the best of `rounds` samples."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / min(seconds_each({0: lambda: torch.mm(a, b, out=out)}, device, rounds)[0])


def generate_seconds(llm: Any, prompts: list[list[int]], num_tokens: int) -> float:
    """Seconds in which the engine reads `prompts` and generates `num_tokens` tokens for each, greedily."""
    from nanovllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def random_prompts(llm: Any, batch: int, num_tokens: int, seed: int = 0) -> list[list[int]]:
    """Token ids drawn from a seeded generator: no two prompts share a prefix, so nothing comes from a prefix cache."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(llm.model_config.vocab_size, (batch, num_tokens), generator=generator).tolist()


def prefill_seconds(llm: Any, num_tokens: int, rounds: int) -> list[float]:
    """Seconds from a prompt of `num_tokens` tokens to its first token, `rounds` samples after one that warms up."""
    return [
        generate_seconds(llm, random_prompts(llm, 1, num_tokens, seed=10_000 + index), 1) for index in range(rounds + 1)
    ][1:]


def decode_seconds(llm: Any, batch: int, context: int, steps: int, rounds: int) -> list[float]:
    """Seconds of a decode step of `batch` sequences around `context` tokens each, `rounds` samples after a warm-up.

    The requests are read first, however many steps that takes; a sample is the mean over the `steps` steps after the first
    in which all of them decode.
    """
    from nanovllm import SamplingParams

    llm.async_scheduling = False  # one step at a time: on a GPU the engine would launch the next one first
    device = llm.model_runner.device
    params = SamplingParams(temperature=0, max_tokens=llm.max_model_len, ignore_eos=True)
    samples = []
    for index in range(rounds + 1):
        prompts = random_prompts(llm, batch, max(1, context - steps // 2), seed=20_000 + index)
        requests = [llm.add_request(prompt, params) for prompt in prompts]
        try:
            while True:
                stats = llm.step()
                if stats.num_prefill_tokens == 0 and stats.num_decode_tokens == batch:
                    break
            synchronize(device)
            start = time.perf_counter()
            for _ in range(steps):
                llm.step()
            synchronize(device)
            samples.append((time.perf_counter() - start) / steps)
        finally:
            for request in requests:
                llm.abort(request)
                llm.take_output(request)
    return samples[1:]


def autograd_seconds(model: Any, num_tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a forward pass of a transformers model under each of PyTorch's modes, samples taken in turn."""
    device = next(model.parameters()).device
    ids = torch.randint(model.config.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0)).to(device)

    def under(mode: Any) -> Callable[[], Any]:
        def run() -> None:
            with mode():
                model(ids, use_cache=False)

        return run

    modes = {"with gradients": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    return seconds_each({name: under(mode) for name, mode in modes.items()}, device, rounds)


def median_ms(samples: Sequence[float]) -> float:
    """The median of samples in seconds, in milliseconds."""
    return 1e3 * statistics.median(samples)
