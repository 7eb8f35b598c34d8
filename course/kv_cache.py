"""KV cache sizing: what the lesson on memory needs besides the engine's own functions.

Everything that counts bytes of keys and values calls `nanovllm.utils.memory`, the functions that the engine's allocator
calls. Sizes are bytes unless a name says otherwise; GiB is 2^30 bytes.
"""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from course import anatomy, plots, recorded
from course.exercises import Wrong, checker, expect_equal
from course.weight_loading import parameter_bytes
from nanovllm.config import ModelConfig
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence as Request
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.memory import kv_bytes_per_token, num_kv_blocks

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


# --- the family ------------------------------------------------------------------------------------------------------


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> ModelConfig:
    return dataclasses.replace(
        anatomy.PUBLISHED["Qwen3-0.6B"],
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=tied,
    )


QWEN3: dict[str, ModelConfig] = {
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, True),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, True),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, True),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, False),
    "Qwen3-14B": _qwen3(5120, 17408, 40, 40, False),
    "Qwen3-32B": _qwen3(5120, 25600, 64, 64, False),
}
"""The dense Qwen3 models, as their config.json on the Hugging Face hub describes them; all have 8 KV heads of 128."""

GPUS: dict[str, float] = {
    "L4": 24,
    "RTX 4090": 24,
    "A100 40GB": 40,
    "L40S": 48,
    "A100 80GB": 80,
    "H100": 80,
    "H200": 141,
}
"""Memory as the makers state it, in GB (10^9 bytes); what a driver reports differs by a few per cent."""

BF16 = 2


def bytes_per_token(config: ModelConfig, ranks: int = 1, itemsize: int = BF16) -> int:
    """KV bytes of one token on one of `ranks` GPUs; a KV head is not split, so past their number nothing is saved."""
    return kv_bytes_per_token(
        config.num_hidden_layers, max(1, config.num_key_value_heads // ranks), config.head_dim, itemsize
    )


def seed_block_bytes(config: ModelConfig, block_size: int, itemsize: int = BF16) -> int:
    """The formula of the notes that this course grew from: no keys *and* values, and query heads for KV heads.

    ``block_bytes = token_bytes_per_block * number_of_layers * number_of_heads * head_dimension``
    """
    return block_size * itemsize * config.num_hidden_layers * config.num_attention_heads * config.head_dim


@dataclass(frozen=True)
class Plan:
    """How a GPU's memory is shared out, in bytes, and how many blocks and users that gives.

    `overhead` is what the process takes besides tensors (the CUDA context), `step` what one step needs on top of the
    weights; both are assumptions of whoever plans, and measured by the engine.
    """

    total: int
    budget: int
    weights: int
    overhead: int
    step: int
    block_bytes: int
    num_blocks: int
    users: int

    @property
    def cache(self) -> int:
        return max(0, self.num_blocks) * self.block_bytes


def plan(
    config: ModelConfig,
    gpu_bytes: float,
    tokens_per_user: int,
    utilization: float = 0.9,
    ranks: int = 1,
    block_size: int = 16,
    step: int = GIB,
    overhead: int = GIB // 2,
) -> Plan:
    """The KV cache of one of `ranks` GPUs by the engine's own functions, and how many users of that length fit.

    Args:
        config: the model; weights and cache are taken in bfloat16.
        gpu_bytes: memory of one GPU.
        tokens_per_user: prompt and answer together.
        utilization: `gpu_memory_utilization`.
        ranks: GPUs that share the model.
        block_size: token slots in a block.
        step, overhead: see `Plan`.
    """
    weights = parameter_bytes(config, ranks)
    block_bytes = block_size * bytes_per_token(config, ranks)
    num_blocks = num_kv_blocks(
        total=int(gpu_bytes),
        utilization=utilization,
        used=weights + overhead,
        peak=weights + step,
        current=weights,
        block_bytes=block_bytes,
    )
    return Plan(
        total=int(gpu_bytes),
        budget=int(gpu_bytes * utilization),
        weights=weights,
        overhead=overhead,
        step=step,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        users=max(0, num_blocks) // -(-tokens_per_user // block_size),
    )


# --- blocks and lengths ----------------------------------------------------------------------------------------------


def bench_lengths(num: int = 256, shortest: int = 100, longest: int = 1024, seed: int = 0) -> list[int]:
    """Tokens of each of `num` requests, prompt and answer each drawn evenly between `shortest` and `longest`."""
    draw = random.Random(seed)
    return [draw.randint(shortest, longest) + draw.randint(shortest, longest) for _ in range(num)]


def slots_taken(lengths: Sequence[int], block_size: int) -> int:
    """Token slots that the engine's block manager hands out for sequences of these lengths."""
    taken = 0
    for number, length in enumerate(lengths):
        manager = BlockManager(-(-length // block_size), block_size, enable_prefix_caching=False)
        request = Request(number, [0] * length, SamplingParams())
        if not manager.allocate(request):
            raise RuntimeError(f"{manager.num_blocks} blocks do not hold {length} tokens")
        taken += len(request.block_table)
    return taken * block_size


def wasted_share(lengths: Sequence[int], block_size: int) -> float:
    """Share of the slots handed out that hold no token."""
    return 1 - sum(lengths) / slots_taken(lengths, block_size)


# --- live where there is a GPU, else recorded ------------------------------------------------------------------------


def allocator_run() -> tuple[list[dict[str, Any]] | None, str]:
    """The allocator's steps on this machine's GPU, or recorded ones, or None; and where they come from."""
    if torch.cuda.is_available():
        return allocator_steps(), f"measured now on {torch.cuda.get_device_name()}"
    run = _recorded("kv_cache_allocator")
    return (run["steps"], run.badge) if run else (None, _NOT_RECORDED)


def budget_run(model: Any) -> tuple[list[dict[str, Any]] | None, dict[str, Any] | None, str]:
    """Engine starts (see `measure_start`), the attempt with too many blocks, and where they come from.

    On a machine with a GPU one start of `model` is measured now, without the attempt; else the recorded run is given.
    """
    if torch.cuda.is_available():
        return [measure_start(model)], None, f"measured now on {torch.cuda.get_device_name()}"
    run = _recorded("kv_cache_budget")
    return (run["starts"], run["too_many"], run.badge) if run else (None, None, _NOT_RECORDED)


_NOT_RECORDED = "no GPU here, and no recorded run yet: python benchmarks/record_kv_cache.py writes it on a GPU"


def _recorded(name: str) -> recorded.Recorded | None:
    try:
        return recorded.load(name)
    except FileNotFoundError:
        return None


TERMS = {
    "total": "total: the GPU's memory",
    "utilization": "utilization: the share that we may take",
    "used": "used: taken now, by everybody",
    "step": "peak - current: what a step needs besides",
    "reserved": "reserved: CUDA graphs",
    "cache": "left for the KV cache",
    "block_bytes": "bytes of a block",
    "num_blocks": "blocks",
}


def print_terms(start: Mapping[str, Any]) -> None:
    """Print the allocator's formula term by term, in MiB, and the blocks that come out of the engine's function."""
    terms = start["terms"]
    step, reserved = terms["peak"] - terms["current"], terms.get("reserved", 0)
    budget = terms["total"] * terms["utilization"]
    rows = [
        (TERMS["total"], f"{terms['total'] / MIB:>10,.0f} MiB"),
        (TERMS["utilization"], f"x {terms['utilization']:>8.2f} = {budget / MIB:,.0f} MiB"),
        (TERMS["used"], f"-{terms['used'] / MIB:>9,.0f} MiB"),
        (TERMS["step"], f"-{step / MIB:>9,.0f} MiB"),
        (TERMS["reserved"], f"-{reserved / MIB:>9,.0f} MiB"),
        (TERMS["cache"], f"={(budget - terms['used'] - step - reserved) / MIB:>9,.0f} MiB"),
        (TERMS["block_bytes"], f"/{terms['block_bytes'] / MIB:>9,.2f} MiB"),
        (TERMS["num_blocks"], f"={num_kv_blocks(**terms):>9,}"),
    ]
    for what, value in rows:
        print(f"{what:<46}{value}")


# --- pictures --------------------------------------------------------------------------------------------------------


def draw_per_token(configs: Mapping[str, ModelConfig]) -> Any:
    """KiB of KV cache a token, and what it would be if every query head had its own keys and values."""
    fig, axis = plots.figure(figsize=(8.0, 3.2))
    names = list(configs)
    kept = [bytes_per_token(config) / 1024 for config in configs.values()]
    own = [
        kv_bytes_per_token(c.num_hidden_layers, c.num_attention_heads, c.head_dim, BF16) / 1024
        for c in configs.values()
    ]
    axis.barh(range(len(names)), own, color="#DFE1E0", label="a KV head for each query head")
    axis.barh(range(len(names)), kept, color=plots.COLOURS[0], label="grouped-query attention, as published")
    for row, (small, large) in enumerate(zip(kept, own, strict=True)):
        axis.annotate(f"{small:,.0f}", (small, row), xytext=(4, -3), textcoords="offset points", fontsize=9)
        axis.annotate(f"{large:,.0f}", (large, row), xytext=(4, -3), textcoords="offset points", fontsize=9)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="KiB of KV cache for one token, bfloat16")
    axis.grid(axis="y", visible=False)
    axis.legend(loc="upper right")
    return fig


def draw_slots(lengths: Sequence[int], block_size: int) -> Any:
    """One row for each sequence: its blocks as boxes, tokens filled, the free rest of the last block hatched."""
    from matplotlib.patches import Rectangle

    fig, axis = plots.figure(figsize=(9.0, 0.45 * len(lengths) + 1.2))
    for row, length in enumerate(lengths):
        blocks = -(-length // block_size)
        axis.barh(row, length, height=0.62, color=plots.COLOURS[0])
        axis.barh(
            row, blocks * block_size - length, left=length, height=0.62, color="#F6D5C3", hatch="///", edgecolor="#D55E00"
        )  # fmt: skip
        for block in range(blocks):
            axis.add_patch(
                Rectangle((block * block_size, row - 0.31), block_size, 0.62, fill=False, edgecolor="#2B2B2B", lw=0.7)
            )
    axis.set_yticks(range(len(lengths)), [f"{n} tokens" for n in lengths])
    axis.invert_yaxis()
    share = wasted_share(lengths, block_size)
    axis.set(
        xlabel="token slots", title=f"Blocks of {block_size}: {share:.0%} of the slots taken hold nothing (hatched)"
    )
    axis.grid(visible=False)
    return fig


def draw_waste(lengths: Sequence[int], block_sizes: Sequence[int], max_model_len: int) -> Any:
    """Wasted share against the block size, beside a whole row of max_model_len for each; and block-table entries."""
    fig, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.2))
    mean = sum(lengths) / len(lengths)
    left.plot(
        block_sizes, [wasted_share(lengths, b) for b in block_sizes], "o-", label="blocks, as the engine takes them"
    )
    left.plot(
        block_sizes, [(b - 1) / 2 / (mean + (b - 1) / 2) for b in block_sizes], ":", color=plots.COLOURS[6],
        label="half a block a sequence",
    )  # fmt: skip
    left.axhline(
        1 - mean / max_model_len, color=plots.COLOURS[1], linestyle="--", label=f"{max_model_len:,} slots each"
    )
    left.set(ylabel="share wasted", ylim=(0, 1), title="What the last blocks waste")
    left.legend(loc="center left", bbox_to_anchor=(0, 0.45))
    right.plot(block_sizes, [slots_taken(lengths, b) / b / len(lengths) for b in block_sizes], "o-")
    right.set(ylabel="entries", title="Length of the block table, on average", yscale="log")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(block_sizes), [str(b) for b in block_sizes])
        axis.minorticks_off()
        axis.set_xlabel("block size, tokens")
    return fig


def draw_allocator(steps: Sequence[Mapping[str, Any]]) -> Any:
    """What tensors hold, what PyTorch holds and the peak, after each step."""
    fig, axis = plots.figure(figsize=(9.0, 3.8))
    x = range(len(steps))
    axis.bar(x, [step["allocated"] for step in steps], color=plots.COLOURS[0], width=0.6, label="allocated: by tensors")
    axis.step(
        x, [step["reserved"] for step in steps], where="mid", color=plots.COLOURS[1], label="reserved: by PyTorch"
    )
    peaks = [step["peak"] for step in steps]
    axis.hlines(
        peaks, [i - 0.3 for i in x], [i + 0.3 for i in x], color=plots.COLOURS[6], zorder=3, label="peak of allocated"
    )
    axis.set_xticks(list(x), [step["action"].replace(", ", "\n") for step in steps], rotation=30, ha="right")
    axis.set(ylabel="MiB")
    axis.legend(ncols=3, loc="upper left")
    top = max(step["peak"] for step in steps)
    axis.set_ylim(0, 1.35 * top)
    return fig


_PARTS = (
    ("weights", "weights", plots.COLOURS[0]),
    ("overhead", "CUDA context and others", plots.COLOURS[6]),
    ("step", "one step", plots.COLOURS[4]),
    ("graphs", "CUDA graphs", plots.COLOURS[3]),
    ("cache", "KV cache", plots.COLOURS[2]),
    ("left", "not ours, or less than a block", "#E4E6E8"),
)


def _draw_share(parts: Mapping[str, float], budget: float, title: str) -> Any:
    fig, axis = plots.figure(figsize=(9.0, 2.6))
    at = 0.0
    for key, label, colour in _PARTS:
        size = parts.get(key, 0.0) / GIB
        if size > 0:
            axis.barh(0, size, left=at, color=colour, label=f"{label} {size:.1f}", height=0.6)
            at += size
    axis.axvline(budget / GIB, color="#2B2B2B", linestyle="--", linewidth=1.2)
    axis.annotate("budget", (budget / GIB, 0.36), xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=9)
    axis.set_yticks([])
    axis.set(xlabel="GiB", title=title, ylim=(-0.4, 0.6))
    axis.grid(axis="y", visible=False)
    fig.legend(ncols=3, loc="outside lower center")
    return fig


def draw_start(start: Mapping[str, Any]) -> Any:
    """A GPU's memory as the engine measured and shared it out."""
    terms = start["terms"]
    parts = {
        "weights": terms["current"],
        "overhead": terms["used"] - terms["current"],
        "step": terms["peak"] - terms["current"],
        "graphs": terms.get("reserved", 0),
        "cache": start["num_blocks"] * start["block_bytes"],
    }
    parts["left"] = terms["total"] - sum(parts.values())
    tokens = start["num_blocks"] * start["block_size"]
    return _draw_share(
        parts, terms["total"] * terms["utilization"], f"{start['num_blocks']:,} blocks, {tokens:,} token slots"
    )


def draw_plan(model: str, gpu: str, tokens_per_user: int, utilization: float, ranks: int) -> Any:
    """The calculator: one GPU's memory shared out by `plan`, and how many users of that length fit."""
    made = plan(QWEN3[model], GPUS[gpu] * 1e9, tokens_per_user, utilization, ranks)
    group = f"{ranks} x {gpu}" if ranks > 1 else gpu
    if made.num_blocks < 1:
        short = (made.weights + made.overhead + made.step - made.budget) / GIB
        parts = {"weights": made.weights, "overhead": made.overhead, "step": made.step}
        return _draw_share(parts, made.budget, f"{model} on {group}: no room for a single block, {short:.1f} GiB short")
    parts = {"weights": made.weights, "overhead": made.overhead, "step": made.step, "cache": made.cache}
    parts["left"] = made.total - sum(parts.values())
    per_token = bytes_per_token(QWEN3[model], ranks) / 1024
    return _draw_share(
        parts,
        made.budget,
        f"{model} on {group}: {made.num_blocks:,} blocks, {made.users:,} users of {tokens_per_user:,} tokens "
        f"({per_token:.0f} KiB a token and GPU)",
    )


# --- exercises of notebook 04 ----------------------------------------------------------------------------------------


@checker("kv-bytes")
def _kv_bytes(kv_bytes: Callable[[ModelConfig, int], int]) -> str:
    small, odd = QWEN3["Qwen3-8B"], dataclasses.replace(QWEN3["Qwen3-0.6B"], num_key_value_heads=2, head_dim=48)
    for name, config, itemsize in (("Qwen3-8B in bfloat16", small, 2), ("the same in float32", small, 4)):
        got, want = kv_bytes(config, itemsize), bytes_per_token(config, itemsize=itemsize)
        if isinstance(got, int | float) and got * 2 == want:
            raise Wrong(f"{name}: {got:,} bytes is half of {want:,}. A token leaves a key and a value in each head.")
        if isinstance(got, int | float) and got * config.num_hidden_layers == want:
            raise Wrong(f"{name}: {got:,} bytes is one layer. Every layer keeps keys and values of its own.")
        if isinstance(got, int | float) and got == want * config.num_attention_heads // config.num_key_value_heads:
            raise Wrong(f"{name}: {got:,} bytes counts a key and a value for each query head. Only KV heads have them.")
        expect_equal(name, got, want)
    expect_equal(
        "a model with 2 KV heads of 48",
        kv_bytes(odd, 2),
        bytes_per_token(odd),
        "hidden_size is not needed: head_dim is a number of its own in Qwen3",
    )
    return "This is nanovllm.utils.memory.kv_bytes_per_token"


@checker("blocks-needed")
def _blocks_needed(blocks: Callable[[list[int], int], int]) -> str:
    for lengths, size, hint in (
        ([16], 16, "a full block needs no other"),
        ([1], 16, "one token takes a block"),
        ([17], 16, "one token more than a block takes a second one"),
        ([5, 5, 5], 16, "no two sequences write into the same block"),
        ([100, 256, 257, 1024], 64, ""),
    ):
        want = sum(-(-n // size) for n in lengths)
        expect_equal(f"the blocks of {size} for lengths {lengths}", blocks(list(lengths), size), want, hint)
    return "The last block of each sequence is half empty on average, and that is all that paging wastes"


@checker("count-blocks")
def _count_blocks(count: Callable[..., int]) -> str:
    # 80 GiB; the weights are 15, a step peaks at 17, the context takes 1, another process 4; 1 for graphs.
    example = {"total": 80 * GIB, "utilization": 0.75, "used": 20 * GIB, "peak": 17 * GIB, "current": 15 * GIB}
    example |= {"block_bytes": GIB // 4, "reserved": GIB}
    got, want = count(**example), num_kv_blocks(**example)
    known = {
        "You take the whole peak off, but the weights are part of it and of `used`: they are counted twice.": 60
        - 20
        - 17
        - 1,
        "You forgot what a step needs on top of the weights: the first large prefill would run out of memory.": 60
        - 20
        - 1,
        "You forgot the CUDA graphs.": 60 - 20 - 2,
        "You take the share of what is free; gpu_memory_utilization is a share of the whole GPU.": 0.75 * 60 - 2 - 1,
        "You left out `used`: the weights are there already, and so is the other process.": 60 - 2 - 1,
    }
    for message, gib in known.items():
        if isinstance(got, int | float) and int(got) == int(gib * 4):
            raise Wrong(f"{int(got)} blocks, but should be {want}. {message}")
    expect_equal("for 80 GiB at 0.75 the number of blocks", got, want)
    expect_equal("the number of blocks is a whole number: its type", type(got).__name__, "int", "round down")
    small = example | {"block_bytes": 7 * GIB}
    expect_equal("with blocks of 7 GiB the number", count(**small), num_kv_blocks(**small), "round down")
    return "The engine's allocator calls the same formula after its warm-up"
