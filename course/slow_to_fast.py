"""What the lesson on speed needs: two ladders of optimizations, the parts of a step, a device to time, and the checkers.

A ladder is a list of rungs; each is the engine with one optimization more than the rung below. An optimization that has no
setting is switched off in place by `without`, so the engine itself stays as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from course import plots, recorded, roofline
from course.exercises import Wrong, checker, expect_close
from nanovllm.config import ModelConfig
from nanovllm.utils.memory import kv_bytes_per_token

# --- switching optimizations off -----------------------------------------------------------------------------------

SWITCHES: dict[str, tuple[str, str, Any]] = {
    "loops": ("nanovllm.kernels.cpu_fused", "serves", lambda x: False),
    "packed": ("nanovllm.engine.model_runner", "pack_weights", lambda model: 0),
    "fused": ("nanovllm.attention.triton", "TritonAttention.fused", False),
    "early": ("nanovllm.kernels.launch", "_supported", lambda device: False),
    "gemv": ("nanovllm.layers.linear", "GEMV_ROWS", 0),
    "skinny": ("nanovllm.layers.linear", "SKINNY_ROWS", 0),
}
"""Optimizations without a setting: the module, the name in it, and the value that turns them off."""


@contextlib.contextmanager
def without(missing: Iterable[str]) -> Iterator[None]:
    """Switch off what `SWITCHES` names, for engines that are made and used inside the block."""
    with contextlib.ExitStack() as stack:
        for name in missing:
            module, attribute, off = SWITCHES[name]
            *owners, last = attribute.split(".")
            owner = importlib.import_module(module)
            for part in owners:
                owner = getattr(owner, part)
            stack.enter_context(patch.object(owner, last, off))
        yield


# --- the ladder of this machine's processor ------------------------------------------------------------------------

BEGINNING = (
    "Once upon a time there was a girl named Lily. She lived in a small house with her mother and her dog Max. "
    "Every morning Lily and Max went to the park to play. One sunny day they found a big red ball under a tree."
)
ENDS = (
    *("Lily", "Max", "The ball", "Then a boy", "Her mother", "A bird", "Suddenly", "The dog ran"),
    *("They played", "It was", "After that", "The tree", "A cat", "One day", "The sun", "Her friend"),
)
LENGTHS = (16, 3, 6, 2, 10, 4, 3, 12, 4, 2, 8, 3, 9, 2, 5, 7)
"""Tokens that each of the requests wants."""
PLACES = 8
"""How many requests may run at once."""


def workload(tokenizer: Any) -> list[list[int]]:
    """Prompts with one beginning and sixteen ends."""
    return [tokenizer.encode(f"{BEGINNING} {end}") for end in ENDS]


def _generate(llm: Any, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    from nanovllm import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths]
    return [output["token_ids"] for output in llm.generate(list(prompts), params, use_tqdm=False)]


def one_token_each(llm: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Read every prompt and draw one token for each."""
    return _generate(llm, prompts, [1] * len(prompts))


def recompute(llm: Any, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """For each new token the whole text is read as if it were new."""
    answers = []
    for prompt, length in zip(prompts, lengths, strict=True):
        ids = list(prompt)
        for _ in range(length):
            ids += _generate(llm, [ids], [1])[0]
        answers.append(ids[len(prompt) :])
    return answers


def one_by_one(llm: Any, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """A request starts when the one before it is done."""
    return [_generate(llm, [prompt], [length])[0] for prompt, length in zip(prompts, lengths, strict=True)]


def static_batches(llm: Any, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Groups of `PLACES`; every row of a group is computed until the longest is done, and cut afterwards."""
    answers = []
    for start in range(0, len(prompts), PLACES):
        group = lengths[start : start + PLACES]
        rows = _generate(llm, prompts[start : start + PLACES], [max(group)] * len(group))
        answers += [row[:length] for row, length in zip(rows, group, strict=True)]
    return answers


@dataclass(frozen=True)
class Rung:
    """The engine with everything up to one optimization.

    Attributes:
        name: the optimization.
        settings: of the engine. missing: what else is switched off, see `SWITCHES`.
        serve: (llm, prompts, lengths) -> generated tokens.
    """

    name: str
    settings: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    serve: Callable[[Any, Sequence[list[int]], Sequence[int]], list[list[int]]] = _generate


_PLAIN = {"attention_backend": "reference", "enable_prefix_caching": False}
_SHARED = {"attention_backend": "reference", "enable_prefix_caching": True}
_COMPILED = {"attention_backend": "numba", "enable_prefix_caching": True}
CPU_LADDER = (
    Rung("recompute everything", _PLAIN, ("loops", "packed"), recompute),
    Rung("KV cache", _PLAIN, ("loops", "packed"), one_by_one),
    Rung("static batches", _PLAIN, ("loops", "packed"), static_batches),
    Rung("continuous batching", _PLAIN, ("loops", "packed")),
    Rung("prefix caching", _SHARED, ("loops", "packed")),
    Rung("small operations as loops", _SHARED, ("packed",)),
    Rung("compiled decode attention", _COMPILED, ("packed",)),
    Rung("packed weights", _COMPILED),
)


@dataclass
class Run:
    """What one rung did with the workload.

    Attributes:
        tokens: generated, for each request.
        steps: what each step of the engine computed, as `roofline.Chunk`s.
        seconds: of the processor, one number a repetition.
    """

    name: str
    tokens: list[list[int]]
    steps: list[list[roofline.Chunk]]
    seconds: list[float] = field(default_factory=list)

    @property
    def computed(self) -> int:
        """Tokens that went through the model."""
        return sum(chunk.new for chunks in self.steps for chunk in chunks)

    def costs(self, config: ModelConfig, itemsize: int = 4) -> list[roofline.Cost]:
        """Operations and bytes of each step."""
        return [roofline.step_cost(config, chunks, itemsize) for chunks in self.steps]

    def work(self, config: ModelConfig) -> roofline.Cost:
        """Operations and bytes of all steps together."""
        costs = self.costs(config)
        return roofline.Cost(sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs))

    def floor(self, config: ModelConfig, roof: roofline.Roof) -> float:
        """The least seconds: every step takes its arithmetic or its bytes, whichever is longer."""
        return sum(roof.seconds(cost) for cost in self.costs(config))


@contextlib.contextmanager
def watched(llm: Any) -> Iterator[list[list[roofline.Chunk]]]:
    """Yield a list that gets the chunks of each step that the engine computes inside the block."""
    steps: list[list[roofline.Chunk]] = []
    schedule = llm.scheduler.schedule

    def watching() -> Any:
        batch = schedule()
        if batch.scheduled:
            steps.append([roofline.Chunk(seq.num_computed_tokens, new) for seq, new in batch.scheduled])
        return batch

    llm.scheduler.schedule = watching
    try:
        yield steps
    finally:
        del llm.scheduler.schedule


def forget(llm: Any) -> None:
    """Empty the prefix cache of an engine that has nothing to do."""
    from nanovllm.engine.block_manager import BlockManager

    old = llm.scheduler.block_manager
    llm.scheduler.block_manager = BlockManager(old.num_blocks, old.block_size, llm.config.enable_prefix_caching)


def engine(settings: Mapping[str, Any], **more: Any) -> Any:
    """The embedded model in float32 on the processor, whatever else this machine has: all rungs run there."""
    from nanovllm import LLM

    return LLM(device="cpu", dtype="float32", **(dict(settings) | more))


def climb(ladder: Sequence[Rung] = CPU_LADDER, rounds: int = 2, long: float = 0.8) -> list[Run]:
    """Serve the workload on each rung: once to count and to warm up, then `rounds` times by the clock.

    The rungs take turns, so that a busy neighbour hurts all alike. Where the first time took more than `long` seconds it is
    the only one: what was still cold hardly counts there.
    """
    runs = []
    with contextlib.ExitStack() as engines:
        llms = []
        for rung in ladder:
            with without(rung.missing):
                llm = engines.enter_context(engine(rung.settings, max_num_seqs=PLACES, max_model_len=256))
                prompts = workload(llm.tokenizer)
                _generate(llm, prompts[:1], [2])  # whatever is compiled or loaded at first use
                forget(llm)
                start = time.process_time()
                with watched(llm) as steps:
                    tokens = rung.serve(llm, prompts, LENGTHS)
                seconds = time.process_time() - start
            llms.append(llm)
            runs.append(Run(rung.name, tokens, steps, [seconds] if seconds > long else []))
        short = [row for row, run in enumerate(runs) if not run.seconds]
        for _ in range(rounds):
            for row in short:
                forget(llms[row])
                with without(ladder[row].missing):
                    start = time.process_time()
                    tokens = ladder[row].serve(llms[row], prompts, LENGTHS)
                    runs[row].seconds.append(time.process_time() - start)
                if tokens != runs[row].tokens:
                    raise RuntimeError(f"{ladder[row].name}: the same requests got other tokens the second time")
    return runs


def measure_roof() -> roofline.Roof:
    """The roof of one thread: the best bandwidth at sizes like those that a step reads, and the best of two products."""
    import torch

    cpu = torch.device("cpu")
    rates = roofline.measure_bandwidth([2**24, 2**25], cpu, torch.float32, rounds=15)
    flops = [roofline.measure_flops(size, cpu, torch.float32, rounds=15) for size in (256, 512)]
    return roofline.Roof(flops=max(flops), bandwidth=max(rates.values()))


def print_counts(runs: Sequence[Run], config: ModelConfig) -> None:
    """Print steps, tokens, operations and bytes of each run."""
    print(f"{'':<28}{'steps':>6}{'tokens computed':>18}{'GFLOP':>9}{'GB':>8}")
    for run in runs:
        work = run.work(config)
        print(f"{run.name:<28}{len(run.steps):>6}{run.computed:>18,}{work.flops / 1e9:>9.2f}{work.bytes / 1e9:>8.2f}")


def print_gains(runs: Sequence[Run], config: ModelConfig, roof: roofline.Roof) -> None:
    """Print what the floor promises for each rung and what was measured, both against the rung below."""
    print(f"{'':<28}{'floor':>9}{'measured':>10}{'tokens/s':>10}{'predicted':>12}{'measured gain':>15}")
    before: tuple[float, float] | None = None
    for run in runs:
        floor, seconds = run.floor(config, roof), min(run.seconds)
        line = f"{run.name:<28}{floor:>7.3f} s{seconds:>8.3f} s{sum(LENGTHS) / seconds:>10.0f}"
        print(line if before is None else f"{line}{before[0] / floor:>11.2f}×{before[1] / seconds:>14.2f}×")
        before = floor, seconds


# --- the parts of a step -------------------------------------------------------------------------------------------

PARTS = ("matrix products", "attention", "norms and SiLU", "everything else")
"""attention: all between the projections, that is QK-norm, RoPE, the cache's new entries, and attention itself."""


@contextlib.contextmanager
def clocked(llm: Any) -> Iterator[dict[str, float]]:
    """Yield processor seconds by part, to which every module of `llm` adds while the block runs; the last part stays 0."""
    from nanovllm.layers import linear
    from nanovllm.layers.attention import Attention
    from nanovllm.layers.embedding import ParallelLMHead
    from nanovllm.layers.linear import LinearBase
    from nanovllm.layers.norm import RMSNorm
    from nanovllm.models import qwen3

    seconds = dict.fromkeys(PARTS, 0.0)
    part_of = {LinearBase: PARTS[0], ParallelLMHead: PARTS[0], Attention: PARTS[1], RMSNorm: PARTS[2]}
    of_heads = {
        m for layer in llm.model_runner.model.model.layers for m in (layer.self_attn.q_norm, layer.self_attn.k_norm)
    }

    running: list[str] = []

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if running:  # inside another part's call, which is timed as a whole
                return function(*args)
            running.append(part)
            start = time.process_time()
            result = function(*args)
            seconds[part] += time.process_time() - start
            running.pop()
            return result

        return run

    with contextlib.ExitStack() as stack:
        for module in llm.model_runner.model.modules():
            for kind, part in part_of.items():
                if isinstance(module, kind):
                    part = PARTS[1] if module in of_heads else part
                    stack.enter_context(patch.object(module, "forward", timed(module.forward, part)))
            # The fused paths pass `forward` by.
            if isinstance(module, Attention):
                stack.enter_context(patch.object(module, "attend_fused", timed(module.attend_fused, PARTS[1])))
            if isinstance(module, RMSNorm):
                stack.enter_context(patch.object(module, "after_add", timed(module.after_add, PARTS[2])))
        stack.enter_context(patch.object(qwen3, "apply_rotary", timed(qwen3.apply_rotary, PARTS[1])))
        stack.enter_context(patch.object(linear, "silu_and_mul", timed(linear.silu_and_mul, PARTS[2])))
        yield seconds


def step_parts(llm: Any, batch: int, context: int, steps: int) -> dict[str, float]:
    """Processor seconds of the parts of a decode step of `batch` sequences at about `context` tokens: the least of `steps`."""
    from nanovllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=llm.max_model_len, ignore_eos=True)
    prompts = roofline.random_prompts(llm, batch, context - steps // 2, seed=batch)
    requests = [llm.add_request(prompt, params) for prompt in prompts]
    samples = []
    try:
        while llm.step().num_decode_tokens < batch:
            pass
        for _ in range(steps):
            with clocked(llm) as seconds:
                start = time.process_time()
                llm.step()
                total = time.process_time() - start
            samples.append(seconds | {PARTS[3]: total - sum(seconds.values())})
    finally:
        for request in requests:
            llm.abort(request)
            llm.take_output(request)
    return {part: min(sample[part] for sample in samples) for part in PARTS}


def measure_parts(batches: Sequence[int], context: int, steps: int = 10) -> dict[bool, dict[int, dict[str, float]]]:
    """`step_parts` by batch, without (False) and with (True) the three optimizations of the processor's kernels."""
    found: dict[bool, dict[int, dict[str, float]]] = {}
    for on, rung in ((False, CPU_LADDER[3]), (True, CPU_LADDER[-1])):
        settings = dict(rung.settings) | {"enable_prefix_caching": False}
        with without(rung.missing), engine(settings, max_num_seqs=max(batches), max_model_len=2 * context) as llm:
            found[on] = {batch: step_parts(llm, batch, context, steps) for batch in batches}
    return found


def chosen_parts(
    measured: Mapping[bool, Mapping[int, Mapping[str, float]]], batch: int, on: Mapping[str, bool]
) -> dict[str, float]:
    """A step put together from measured parts: each with its optimization or without (`on`, by part).

    No optimization changes what is left, so the lower of both measurements stands for it.
    """
    parts = {part: measured[on[part]][batch][part] for part in PARTS[:3]}
    return parts | {PARTS[3]: min(measured[state][batch][PARTS[3]] for state in (False, True))}


def draw_parts(
    measured: Mapping[bool, Mapping[int, Mapping[str, float]]],
    floors: Mapping[int, float],
    batch: int,
    packed: bool,
    compiled: bool,
    loops: bool,
) -> Any:
    """One decode step as stacked bars, plain and with the chosen optimizations, and the floor of its bytes."""
    on = dict(zip(PARTS[:3], (packed, compiled, loops), strict=True))
    bars = {"plain": chosen_parts(measured, batch, dict.fromkeys(PARTS[:3], False))}
    bars["as chosen"] = chosen_parts(measured, batch, on)
    figure, axes = plots.figure(figsize=(7.4, 2.9))
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for part, colour in zip(PARTS, plots.COLOURS, strict=False):
            label = part if row == 0 else None
            axes.barh(row, 1e3 * parts[part], left=1e3 * left, height=0.55, color=colour, label=label)
            left += parts[part]
    plain, chosen = (sum(parts.values()) for parts in bars.values())
    axes.axvline(1e3 * floors[batch], color="#2B2B2B", linestyle="--", linewidth=1.4, label="floor")
    axes.set_yticks(range(2), list(bars))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(
        xlabel="milliseconds of one thread",
        title=f"{batch} sequence{'s' if batch > 1 else ''}: {1e3 * plain:.2f} → {1e3 * chosen:.2f} ms a step, "
        f"{plain / chosen:.2f}× faster, {chosen / floors[batch]:.1f}× the floor",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.25), ncols=5, columnspacing=1.0, handlelength=1.2)
    return figure


# --- benchmarks that mislead ---------------------------------------------------------------------------------------


class PretendDevice:
    """A device that works beside the host, with a clock of its own: the same answer on every machine.

    `work` launches the kernel and returns at once, as on a GPU. The first call also compiles on the host, and its kernel
    finds cold caches. Times are in microseconds.

    Args:
        kernel: how long the kernel runs when warm. launch: how long a call takes the host.
        compile: what the first call takes on top. cold: how long the first kernel runs.
    """

    def __init__(self, kernel: float, launch: float, compile: float = 20_000.0, cold: float = 3_000.0) -> None:
        self._kernel, self._launch, self._compile, self._cold = kernel, launch, compile, cold
        self._host = self._done = 0.0
        self.calls = 0

    def now(self) -> float:
        """The host's clock."""
        return self._host

    def work(self) -> None:
        """Launch the kernel once."""
        self._host += self._launch + (0.0 if self.calls else self._compile)
        self._done = max(self._done, self._host) + (self._kernel if self.calls else self._cold)
        self.calls += 1

    def synchronize(self) -> None:
        """Wait until the device has run everything that was launched."""
        self._host = max(self._host, self._done)


def careless_times(kernel: float, launch: float, repeats: int) -> dict[str, float]:
    """Microseconds a call by careless ways of measuring a `PretendDevice`, each on a fresh one."""

    def measure(warm: bool, wait: bool, each: bool, end: bool) -> float:
        device = PretendDevice(kernel, launch)
        if warm:
            device.work()
        if wait:
            device.synchronize()
        start = device.now()
        for _ in range(repeats):
            device.work()
            if each:
                device.synchronize()
        if end:
            device.synchronize()
        return (device.now() - start) / repeats

    return {
        "no warm-up": measure(warm=False, wait=False, each=False, end=True),
        "clock started while the warm-up runs": measure(warm=True, wait=False, each=False, end=True),
        "clock stopped after the last launch": measure(warm=True, wait=True, each=False, end=False),
        "waiting after each call": measure(warm=True, wait=True, each=True, end=True),
    }


def weight_seconds(rounds: int = 5) -> dict[str, float]:
    """Seconds a product of 8 rows with one weight: the same weight (0.5 MiB) again and again, and 96 in turn."""
    import torch

    weights = [torch.full((512, 256), 0.5) for _ in range(96)]
    x, cpu = torch.ones(8, 256), torch.device("cpu")

    def through(chosen: Sequence[Any]) -> Callable[[], None]:
        def run() -> None:
            for weight in chosen:
                torch.nn.functional.linear(x, weight)

        return run

    work = {"one weight, 96 times": through(weights[:1] * 96), "96 weights in turn": through(weights)}
    with torch.inference_mode():
        return {name: min(s) / len(weights) for name, s in roofline.seconds_each(work, cpu, rounds).items()}


# --- the bench, and the ladder of a GPU ----------------------------------------------------------------------------


def bench_lengths(num_seqs: int = 256, low: int = 100, high: int = 1024, seed: int = 0) -> tuple[list[int], list[int]]:
    """Tokens in and out of each request of ``benchmarks/throughput.py``, drawn as it draws them."""
    draw = random.Random(seed)
    prompts = [len([draw.randint(0, 10_000) for _ in range(draw.randint(low, high))]) for _ in range(num_seqs)]
    return prompts, [draw.randint(low, high) for _ in range(num_seqs)]


@dataclass(frozen=True)
class BenchFloor:
    """What the bench cannot avoid: bytes of the KV cache and of the weights, operations of the prompts, decode steps."""

    kv_bytes: int
    weight_bytes: int
    prefill_flops: int
    steps: int


def bench_floor(config: ModelConfig, prompts: Sequence[int], outputs: Sequence[int], itemsize: int = 2) -> BenchFloor:
    """The floor where all requests start at once: as many decode steps as the longest needs, every cache read once each.

    A request's first token comes from its prompt; token i after it attends to the prompt and the i tokens since.
    """
    per_token = kv_bytes_per_token(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, itemsize)
    contexts = sum(sum(range(p + 1, p + n)) for p, n in zip(prompts, outputs, strict=True))
    steps = max(outputs) - 1
    flops = sum(roofline.prefill_cost(config, tokens, itemsize).flops for tokens in prompts)
    return BenchFloor(contexts * per_token, steps * roofline.weight_bytes(config, itemsize), flops, steps)


def bench_rates() -> tuple[dict[str, float], tuple[str, float], list[str]]:
    """Output tokens a second of the bench by engine, the roofline's limit, and where the figures come from.

    Peers come from ``benchmarks/results`` once they are recorded there, until then from ``benchmarks/peers.json``.
    """
    peers = json.loads((recorded.ROOT / "benchmarks" / "peers.json").read_text(encoding="utf-8"))
    rates = dict(peers["figures"]["throughput"])
    limit = rates.pop("roofline")
    sources = {f"{', '.join(rates)}: {peers['measured']['device']}, {peers['measured']['by']}": None}
    for path in sorted((recorded.ROOT / "benchmarks" / "results").glob("throughput-*.json")):
        run = recorded.load(path.stem)
        rates[run["engine"]] = run.data.get("warm", run.median)
        sources[run.badge] = None
    rates = dict(sorted(rates.items(), key=lambda item: item[1]))
    return rates, (f"roofline, {limit:,}", limit), list(sources)


def recorded_ladder() -> recorded.Recorded | None:
    """The recorded ladder of a GPU; None, and a line that says so, where nobody has recorded one yet."""
    try:
        return recorded.load("slow_to_fast")
    except FileNotFoundError:
        recorded.show_badge("the ladder of a GPU is not recorded yet: benchmarks/record_slow_to_fast.py records it")
        return None


_EAGER = {"attention_backend": "reference", "enforce_eager": True, "async_scheduling": False}
_TRITON = {"attention_backend": "triton", "kvcache_block_size": 256}
GPU_LADDER = (
    Rung("plain PyTorch", _EAGER, ("fused", "early", "gemv", "skinny")),
    Rung("our attention kernels", _EAGER | _TRITON, ("fused", "early", "gemv", "skinny")),
    Rung("fused kernels", _EAGER | _TRITON, ("early", "gemv", "skinny")),
    Rung("CUDA graphs", _TRITON | {"async_scheduling": False}, ("early", "gemv", "skinny")),
    Rung("launch one step ahead", _TRITON, ("early", "gemv", "skinny")),
    Rung("early launch of kernels", _TRITON, ("gemv", "skinny")),
    Rung("matrix-vector kernel", _TRITON, ("skinny",)),
    Rung("products of few rows", _TRITON),
)


def decode_seconds(llm: Any, batch: int, context: int, steps: int, rounds: int) -> tuple[list[float], list[list[int]]]:
    """Seconds of a decode step, `rounds` samples after a warm-up, and the tokens of the last round.

    The clock starts once all sequences decode, so reading the prompts falls out.
    """
    from nanovllm import SamplingParams

    draw = random.Random(0)
    ids = min(10_001, llm.model_config.vocab_size)
    prompts = [[draw.randrange(ids) for _ in range(context)] for _ in range(batch)]

    samples = []
    for _ in range(rounds + 1):
        # The first steps read the prompts; where a step is launched ahead, one more is on its way when the clock stops.
        params = SamplingParams(temperature=0, max_tokens=steps + 4, ignore_eos=True)
        requests = [llm.add_request(prompt, params) for prompt in prompts]
        while llm.step().num_decode_tokens < batch:
            pass
        roofline.synchronize(llm.model_runner.device)
        start = time.perf_counter()
        for _ in range(steps):
            llm.step()
        roofline.synchronize(llm.model_runner.device)
        samples.append((time.perf_counter() - start) / steps)
        while llm.has_unfinished:
            llm.step()
        tokens = [llm.take_output(request)["token_ids"] for request in requests]
    return samples[1:], tokens


def climb_gpu(
    model: str,
    batches: Sequence[int],
    context: int,
    steps: int,
    rounds: int,
    ladder: Sequence[Rung] = GPU_LADDER,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Time a decode step on each rung, and say which share of the requests got the tokens that they got a rung below.

    Yields:
        ``{"name", "settings", "switched_off", "batches": [{"batch", "seconds": [...], "same_tokens"}, ...]}`` a rung;
        `same_tokens` is None on the first. In bfloat16 tokens may part at near-ties, in float32 they may not.
    """
    from nanovllm import LLM

    before: dict[int, list[list[int]]] = {}
    for rung in ladder:
        more = {"max_num_seqs": max(batches), "enable_prefix_caching": False} | settings | dict(rung.settings)
        rows = []
        with without(rung.missing), LLM(model, **more) as llm:
            for batch in batches:
                seconds, tokens = decode_seconds(llm, batch, context, steps, rounds)
                same = None
                if batch in before:
                    same = sum(a == b for a, b in zip(tokens, before[batch], strict=True)) / batch
                before[batch] = tokens
                rows.append({"batch": batch, "seconds": seconds, "same_tokens": same})
        yield {
            "name": rung.name,
            "settings": dict(rung.settings),
            "switched_off": sorted(rung.missing),
            "batches": rows,
        }


def gpu_floor(config: ModelConfig, roof: roofline.Roof, batch: int, context: int, steps: int, itemsize: int) -> float:
    """The least seconds of the decode steps that `climb_gpu` times, on average."""
    return roof.seconds(roofline.decode_cost(config, batch, context + 2 + steps // 2, itemsize))


# --- pictures ------------------------------------------------------------------------------------------------------


def draw_ladder(runs: Sequence[Run], config: ModelConfig, roof: roofline.Roof) -> Any:
    """Seconds of each rung, split into the floor and the rest, and the share that the floor is."""
    floors = [run.floor(config, roof) for run in runs]
    seconds = [min(run.seconds) for run in runs]
    figure, (left, right) = plots.figure(1, 2, figsize=(9.4, 3.6), sharey=True, width_ratios=(2.2, 1))
    rows = range(len(runs))
    rest = [max(0.0, total - floor) for total, floor in zip(seconds, floors, strict=True)]
    left.barh(rows, floors, color=plots.COLOURS[0], label="floor")
    left.barh(rows, rest, left=floors, color=plots.COLOURS[4], label="the rest")
    for row, total in enumerate(seconds):
        left.annotate(f" {total:.2f} s, {seconds[0] / total:.1f}×", (total, row), va="center", fontsize=9)
    left.set_yticks(rows, [run.name for run in runs])
    left.invert_yaxis()
    left.set(xlabel="seconds of one thread for the whole workload", xlim=(0, 1.25 * max(seconds)))
    left.set_title("What it takes, and against the first rung")
    left.legend(loc="lower right")
    shares = [100 * floor / total for floor, total in zip(floors, seconds, strict=True)]
    right.barh(rows, shares, color=plots.COLOURS[2])
    right.set(xlabel="% of the time", title="The floor's share", xlim=(0, 100))
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    return figure


def draw_steps(rungs: Sequence[Mapping[str, Any]], floors: Mapping[int, float], title: str) -> Any:
    """A GPU's decode step on each rung, one panel a batch, with the floor of each (seconds, by batch) where it is known."""
    batches = [row["batch"] for row in rungs[0]["batches"]]
    size = (1.6 + 2.6 * len(batches), 3.4)
    figure, axes = plots.figure(1, len(batches), figsize=size, sharey=True, squeeze=False)
    for column, (axis, batch) in enumerate(zip(axes[0], batches, strict=True)):
        # A sample is the difference of two runs and may err to both sides: the least of them can lie below the floor.
        middle = [1e3 * statistics.median(rung["batches"][column]["seconds"]) for rung in rungs]
        axis.barh(range(len(rungs)), middle, color=plots.COLOURS[4])
        for row, value in enumerate(middle):
            axis.annotate(f" {value:.2f}", (value, row), va="center", fontsize=9)
        if batch in floors:
            axis.axvline(1e3 * floors[batch], color=plots.COLOURS[0], linewidth=2, label="floor")
            axis.legend(loc="lower right")
        axis.set(xlabel="ms a step", title=f"batch {batch}", xlim=(0, 1.25 * max(middle)))
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(rungs)), [rung["name"] for rung in rungs])
    axes[0, 0].invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def draw_rates(rates: Mapping[str, float], floor: tuple[str, float] | None, unit: str, title: str) -> Any:
    """Bars of rates by name, and a line at the rate that nothing can exceed."""
    figure, axes = plots.figure(figsize=(7.4, 0.9 + 0.36 * len(rates)))
    axes.barh(range(len(rates)), list(rates.values()), color=plots.COLOURS[0])
    limit = max(*rates.values(), floor[1] if floor else 0)
    for row, value in enumerate(rates.values()):
        share = f", {value / floor[1]:.0%}" if floor else ""
        axes.annotate(f" {value:,.0f}{share}", (value, row), va="center", fontsize=9)
    if floor:
        axes.axvline(floor[1], color=plots.COLOURS[1], linestyle="--", label=floor[0])
        axes.legend(loc="upper right")
    axes.set_yticks(range(len(rates)), list(rates))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=f"{unit}, and its share of the limit" if floor else unit, title=title, xlim=(0, 1.3 * limit))
    return figure


# --- exercises -----------------------------------------------------------------------------------------------------


@checker("schedule-floor")
def _schedule_floor(least_seconds: Any) -> str:
    weights, kv, flops = 1000, 10, 2000  # bytes, bytes a token, operations a token
    bandwidth, speed = 100.0, 1000.0
    cases = (
        ([[(0, 4)]], "one prompt of 4 tokens"),
        ([[(4, 1)]], "one decode after 4 tokens"),
        ([[(4, 1), (9, 1), (20, 1)]], "three decodes in one step"),
        ([[(0, 40)], [(40, 1)], [(41, 1)]], "a prompt of 40 tokens and two decodes"),
    )

    def parts(steps: list[list[tuple[int, int]]], weights_each: bool = False) -> list[tuple[float, float]]:
        found = []
        for chunks in steps:
            new = sum(n for _, n in chunks)
            read = weights * (len(chunks) if weights_each else 1) + kv * sum(c + n for c, n in chunks)
            found.append((new * flops / speed, read / bandwidth))
        return found

    for steps, where in cases:
        each = parts(steps)
        want = sum(map(max, each))
        got = least_seconds([list(chunks) for chunks in steps], weights, kv, flops, bandwidth, speed)
        traps = (
            (
                max(sum(a for a, _ in each), sum(b for _, b in each)),
                "The larger of both sums is too low: a step cannot do its arithmetic while another step waits for memory. "
                "Take the larger time of each step, then add",
            ),
            (
                sum(a + b for a, b in each),
                "You add arithmetic and memory. A step can do both at the same time, so the longer one is its floor",
            ),
            (
                sum(map(max, parts(steps, weights_each=True))),
                "You read the weights once for each sequence. All sequences of a step share one reading",
            ),
            (sum(b for _, b in each), "You count the bytes only. Reading a long prompt is limited by arithmetic"),
        )
        for value, message in traps:
            if isinstance(got, float | int) and abs(got - value) < 1e-9 and abs(value - want) > 1e-9:
                raise Wrong(f"For {where} you return {got:g}, but it is {want:g}. {message}.")
        expect_close(
            f"the floor of {where}", got, want, hint="a chunk reads the cache of its cached and its new tokens"
        )
    return "Each step pays for its arithmetic or its bytes, and the weights once"


@checker("whole-gain")
def _whole_gain(faster: Any) -> str:
    step = {"matrix products": 6.0, "attention": 3.0, "norms": 1.0}
    for part, factor in (("attention", 3.0), ("matrix products", 2.0), ("norms", float("inf")), ("attention", 1.0)):
        want = sum(step.values()) - step[part] + step[part] / factor
        gain = sum(step.values()) / want
        answer = faster(dict(step), part, factor)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Wrong(f"Return two numbers, the new time and the gain, not {answer!r}.")
        got, got_gain = answer
        where = f"with {part} {factor:g} times as fast in a step of {step}"
        if abs(got - sum(step.values()) / factor) < 1e-9 and factor > 1:
            raise Wrong(
                f"The new time {where} is {want:g} ms, not {got:g}: only that part gets faster, the others stay.",
                lambda axis, p=part, f=factor: _draw_amdahl(axis, step, p, f),
            )
        expect_close(f"the new time {where}", got, want, hint="the part takes time / factor, the others what they took")
        if abs(got_gain - want / sum(step.values())) < 1e-9 and factor > 1:
            raise Wrong(f"The gain {where} is {gain:g}, you return its inverse {got_gain:g}: divide old by new.")
        expect_close(f"the gain {where}", got_gain, gain, hint="how many times as fast the whole step is: old / new")
    return "A part that is a tenth of the time gives at most 1.11×, however fast it gets (Amdahl's law)"


def _draw_amdahl(axis: Any, step: Mapping[str, float], part: str, factor: float) -> None:
    for row, times in enumerate((step, {**step, part: step[part] / factor})):
        left = 0.0
        for (name, value), colour in zip(times.items(), plots.COLOURS, strict=False):
            axis.barh(row, value, left=left, color=colour, label=name if row == 0 else None)
            left += value
    axis.set_yticks([0, 1], ["before", "after"])
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    axis.legend()


@checker("honest-benchmark")
def _honest_benchmark(benchmark: Any) -> str:
    repeats = 200
    for kernel, launch in ((50.0, 5.0), (4.0, 10.0)):
        want = max(kernel, launch)
        device = PretendDevice(kernel, launch)
        got = benchmark(device, repeats)
        where = f"with kernels of {kernel:g} µs and {launch:g} µs a launch"
        traps = careless_times(kernel, launch, repeats)
        messages = {
            "no warm-up": "The first call compiles, and you count it. Call work() once before the clock starts",
            "clock started while the warm-up runs": "The warm-up's kernel still runs when you start the clock: "
            "synchronize before, too",
            "clock stopped after the last launch": "work() returns before the kernel has run, so you timed launches. "
            "Synchronize before you stop the clock",
            "waiting after each call": "You wait after each call, so no launch is hidden behind a kernel. The engine launches "
            "ahead: wait once, at the end",
        }
        if not isinstance(got, float | int) or isinstance(got, bool):
            raise Wrong(f"Return the microseconds of one call, not {got!r}.")
        if abs(got / repeats - want) < 0.05 * want:
            raise Wrong(f"You return {got:g} µs {where}: that is the time of all {repeats} calls. Divide by them.")
        for name, value in traps.items():
            if abs(value - want) > 0.05 * want and abs(got - value) < 0.02 * value:
                raise Wrong(f"You return {got:.1f} µs a call {where}, but it is {want:g}. {messages[name]}.")
        if device.calls < repeats:
            raise Wrong(f"You called work() {device.calls} times, but {repeats} repeats were asked for.")
        expect_close(
            f"microseconds a call {where}", got, want, tol=0.05, hint="warm up, wait, start, repeat, wait, stop"
        )
    return "Warm up, wait, start, repeat, wait, stop"
