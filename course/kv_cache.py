"""KV cache sizing: what the lesson on memory needs besides the engine's own functions.

Everything that counts bytes of keys and values calls `nanovllm.utils.memory`, the functions that the engine's allocator
calls. Sizes are bytes unless a name says otherwise; GiB is 2^30 bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

MIB, GIB = 2**20, 2**30

# --- what a GPU's memory does: run live where there is one, recorded by benchmarks/record_kv_cache.py ------------------


def allocator_steps() -> list[dict[str, Any]]:
    """PyTorch's caching allocator on this GPU, step by step, in MiB; the tensors take 1.75 GiB at most.

    Each step says what was done and then: ``allocated`` (tensors hold it), ``peak`` (the most they held since the last
    reset), ``reserved`` (PyTorch holds it), ``device`` (taken on the device since the first step, by anyone).
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.mem_get_info()[0]
    zero = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    steps: list[dict[str, Any]] = []

    def note(action: str) -> None:
        torch.cuda.synchronize()
        steps.append(
            {
                "action": action,
                "allocated": (torch.cuda.memory_allocated() - zero[0]) / MIB,
                "peak": (torch.cuda.max_memory_allocated() - zero[0]) / MIB,
                "reserved": (torch.cuda.memory_reserved() - zero[1]) / MIB,
                "device": (start - torch.cuda.mem_get_info()[0]) / MIB,
            }
        )

    def mib(size: int) -> torch.Tensor:
        return torch.empty(size * MIB, dtype=torch.uint8, device="cuda")

    note("start")
    weights = mib(512)
    note("weights = 512 MiB")
    activations = mib(1024)
    note("activations = 1024 MiB")
    del activations
    note("del activations")
    again = mib(1024)
    note("activations = 1024 MiB again")
    del again
    torch.cuda.empty_cache()
    note("del activations, empty_cache()")
    torch.cuda.reset_peak_memory_stats()
    note("reset_peak_memory_stats()")
    small = mib(256)
    note("activations = 256 MiB")
    del small, weights
    torch.cuda.empty_cache()
    note("del everything, empty_cache()")
    return steps


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def watched_start(model: Any, **settings: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """An engine and what it measured on its way up.

    Yields:
        the engine, closed at the end, and a dict: ``num_blocks``, ``block_bytes``, ``block_size``, ``settings``; on a
        GPU also ``terms`` (the arguments of `num_kv_blocks`), ``loading`` (``peak`` and ``current`` bytes of tensors
        right before the warm-up resets the peak) and ``device_in_use`` (bytes, everybody's, once it is up).
    """
    from nanovllm import LLM
    from nanovllm.engine import model_runner

    terms: dict[str, Any] = {}
    loading: dict[str, int] = {}

    def watch_count(count: Callable[..., int]) -> Callable[..., int]:
        def counted(**arguments: Any) -> int:
            terms.update(arguments)
            return count(**arguments)

        return counted

    def watch_reset(reset: Callable[..., None]) -> Callable[..., None]:
        def after_reading(*arguments: Any) -> None:
            loading.update(peak=torch.cuda.max_memory_allocated(), current=torch.cuda.memory_allocated())
            reset(*arguments)

        return after_reading

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with (
        _replaced(model_runner, "num_kv_blocks", watch_count),
        _replaced(torch.cuda, "reset_peak_memory_stats", watch_reset),
    ):
        llm = LLM(model, **settings)
    with llm:
        runner = llm.model_runner
        found = {
            "settings": {name: value for name, value in settings.items()},
            "num_blocks": runner.num_kvcache_blocks,
            "block_size": runner.block_size,
            "block_bytes": runner.block_bytes,
        }
        if terms:
            free, total = torch.cuda.mem_get_info()
            found |= {"terms": terms, "loading": loading, "device_in_use": total - free}
        yield llm, found
    del llm
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_step(llm: Any, seed: int = 0) -> None:
    """Serve prompts that fill one step: as many sequences as may run, together as many tokens as a step may compute."""
    from nanovllm import SamplingParams

    config = llm.config
    generator = torch.Generator().manual_seed(seed)
    length = config.max_num_batched_tokens // config.max_num_seqs
    ids = torch.randint(llm.model_config.vocab_size, (config.max_num_seqs, length), generator=generator)
    llm.generate(
        ids.tolist(), SamplingParams(temperature=1.0, top_p=0.9, max_tokens=2, ignore_eos=True), use_tqdm=False
    )


def measure_start(model: Any, **settings: Any) -> dict[str, Any]:
    """`watched_start`, then the largest step: adds ``device_in_use_serving`` and ``peak_serving`` on a GPU."""
    with watched_start(model, **settings) as (llm, found):
        if "terms" in found:
            torch.cuda.reset_peak_memory_stats()
        largest_step(llm)
        if "terms" in found:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            found |= {"device_in_use_serving": total - free, "peak_serving": torch.cuda.max_memory_allocated()}
    return found


def overcommitted_blocks(start: dict[str, Any]) -> int:
    """Blocks that leave only half of a step's memory free on the whole device: more than `start` says is right."""
    terms = start["terms"]
    free = terms["total"] - terms["used"] - (terms["peak"] - terms["current"]) // 2
    return free // start["block_bytes"]


def try_overcommitted(model: Any, num_blocks: int, **settings: Any) -> str:
    """What happens at the largest step of an engine that was told to take `num_blocks`: "served" or the error's type."""
    try:
        with watched_start(model, num_kvcache_blocks=num_blocks, **settings) as (llm, _):
            largest_step(llm)
    except Exception as error:  # the engine may wrap it; its name is what the lesson shows
        cause = error.__cause__ or error
        return type(cause).__name__
    return "served"
