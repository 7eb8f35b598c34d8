"""What the lesson on prefill and decode needs: the engine watched, batches compared, pictures, and the checkers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from course import plots, recorded, roofline
from course.exercises import Wrong, checker, expect_close, expect_equal
from nanovllm.config import ModelConfig

# --- the engine, watched -------------------------------------------------------------------------------------------


@dataclass
class WatchedStep:
    """What one step of the engine did with one request.

    Attributes:
        cached, new: tokens that were in the KV cache before, and that this step computes.
        token_ids, positions, slots: of the new tokens. context_len: tokens to attend to, the new ones included.
        hidden: shape that the model returned. head_input: shape that the LM head got. logits: (rows, V), on the CPU.
        known, stored: tokens of the request after the step, and those whose keys and values are in the cache.
    """

    cached: int = 0
    new: int = 0
    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    context_len: int = 0
    hidden: tuple[int, ...] = ()
    head_input: tuple[int, ...] = ()
    logits: Tensor | None = None
    token: int | None = None
    known: int = 0
    stored: int = 0


def watch(llm: Any, prompt: Sequence[int], num_steps: int) -> list[WatchedStep]:
    """Run `num_steps` steps of the engine on one greedy request and write down what passes between its parts.

    The engine must launch its steps eagerly: hooks see nothing of a replayed graph.
    """
    from nanovllm import SamplingParams

    llm.async_scheduling = False  # one step at a time: on a GPU the engine would launch the next one first
    model, scheduler = llm.model_runner.model, llm.scheduler
    steps: list[WatchedStep] = []

    def at_model(_module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        token_ids, positions, metadata = args
        step = steps[-1]
        step.token_ids, step.positions = token_ids.tolist(), positions.tolist()
        step.slots, step.context_len = metadata.slot_mapping.tolist(), int(metadata.context_lens[0])
        step.hidden = tuple(output.shape)

    def at_head(_module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        steps[-1].head_input, steps[-1].logits = tuple(args[0].shape), output.detach().cpu().clone()

    hooks = [model.model.register_forward_hook(at_model), model.lm_head.register_forward_hook(at_head)]
    request = llm.add_request(list(prompt), SamplingParams(temperature=0, max_tokens=num_steps + 1, ignore_eos=True))
    (seq,) = llm.get_request(request).sequences
    schedule = scheduler.schedule

    def watched_schedule() -> Any:
        batch = schedule()
        ((_, new),) = batch.scheduled
        steps.append(WatchedStep(cached=seq.num_computed_tokens, new=new))
        return batch

    scheduler.schedule = watched_schedule
    try:
        for _ in range(num_steps):
            before = seq.num_tokens
            llm.step()
            step = steps[-1]
            step.token = seq.token_ids[-1] if seq.num_tokens > before else None
            step.known, step.stored = seq.num_tokens, seq.num_computed_tokens
    finally:
        del scheduler.schedule
        for hook in hooks:
            hook.remove()
        llm.abort(request)
        llm.take_output(request)
    return steps


def tell(steps: Sequence[WatchedStep], first: int = 0) -> None:
    """Print watched steps as the calls in them, innermost furthest to the right; `first` is the first step's number."""
    for number, step in enumerate(steps, first):
        drawn = "no token yet" if step.token is None else f"token {step.token}"
        lines = (
            (f"step {number}: LLMEngine.step", ""),
            ("  Scheduler.schedule", f"{step.new} new after {step.cached} in the cache"),
            ("  ModelRunner.execute", ""),
            ("    model", f"positions {_span(step.positions)}, slots {_span(step.slots)}, context {step.context_len}"),
            ("", f"-> hidden {step.hidden}"),
            (
                "    LM head",
                f"{step.head_input} -> logits {tuple(step.logits.shape) if step.logits is not None else ()}",
            ),
            ("    sampler", f"-> {drawn}"),
            ("  Scheduler.update", f"{step.known} tokens known, {step.stored} of them in the cache"),
        )
        print("\n".join(f"{left:<24}{right}".rstrip() for left, right in lines))


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}"


@contextmanager
def shifted_decodes(llm: Any, shift: int) -> Iterator[None]:
    """Add `shift` to the position of every decoded token, as an engine that counts wrongly would; prefills stay right."""

    def move(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        token_ids, positions, metadata = args
        return token_ids, positions + (shift if metadata.max_query_len == 1 else 0), metadata

    hook = llm.model_runner.model.model.register_forward_pre_hook(move)
    try:
        yield
    finally:
        hook.remove()


def mean_logprob(llm: Any, prompt: Sequence[int], generated: Sequence[int]) -> float:
    """Mean log probability that the model, computed in one prefill, gives the `generated` tokens after `prompt`."""
    from course.anatomy import run_engine

    ids = [*prompt, *generated]
    logprobs = run_engine(llm, ids).logits.float().log_softmax(-1)
    rows = range(len(prompt) - 1, len(ids) - 1)
    return sum(logprobs[row, ids[row + 1]].item() for row in rows) / len(generated)


# --- batches -------------------------------------------------------------------------------------------------------


def static_steps(lengths: Sequence[int], batch: int) -> int:
    """Steps of static batching: each group of `batch` requests runs until its longest is done (first token included)."""
    return sum(max(lengths[start : start + batch]) for start in range(0, len(lengths), batch))


def served_steps(llm: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Let the engine serve one request a length, all there from the start; the requests that got a token, step by step."""
    from nanovllm import SamplingParams

    llm.async_scheduling = False  # one step at a time: on a GPU the engine would launch the next one first
    prompts = roofline.random_prompts(llm, len(lengths), 4)
    ids = [
        llm.add_request(prompt, SamplingParams(temperature=0, max_tokens=length, ignore_eos=True))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    sequences = {number: llm.get_request(request).sequences[0] for number, request in enumerate(ids)}
    rows = []
    while llm.has_unfinished:
        before = {number: seq.num_tokens for number, seq in sequences.items()}
        llm.step()
        rows.append([number for number, seq in sequences.items() if seq.num_tokens > before[number]])
    for request in ids:
        llm.take_output(request)
    return rows


def steps_beside_a_prompt(llm: Any, batch: int, prompt_tokens: int, before: int = 8) -> dict[str, Any]:
    """Let `batch` requests decode, let a prompt of `prompt_tokens` arrive after `before` steps, and time every step.

    Returns:
        ``{"budget": max_num_batched_tokens, "steps": [{"seconds", "prefill", "decode"}, ...]}``, the counts in tokens.
    """
    from nanovllm import SamplingParams

    llm.async_scheduling = False  # one step at a time: on a GPU the engine would launch the next one first
    params = SamplingParams(temperature=0, max_tokens=llm.max_model_len, ignore_eos=True)
    asked = [llm.add_request(prompt, params) for prompt in roofline.random_prompts(llm, batch, 32, seed=1)]
    steps: list[dict[str, float]] = []
    arrived = False
    try:
        for _ in range(2 * before):
            llm.step()
        budget = llm.config.max_num_batched_tokens
        while len(steps) < 2 * before + prompt_tokens // (budget - batch):
            if len(steps) >= before and not arrived:
                (prompt,) = roofline.random_prompts(llm, 1, prompt_tokens, seed=2)
                asked.append(llm.add_request(prompt, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)))
                arrived = True
            start = time.perf_counter()
            stats = llm.step()
            roofline.synchronize(llm.model_runner.device)
            seconds = time.perf_counter() - start
            steps.append({"seconds": seconds, "prefill": stats.num_prefill_tokens, "decode": stats.num_decode_tokens})
    finally:
        for request in asked:
            llm.abort(request)
            llm.take_output(request)
    return {"budget": budget, "steps": steps}


def pieces_beside(llm: Any, batch: int, lengths: Sequence[int]) -> list[list[int]]:
    """Let `batch` requests decode, let prompts of `lengths` arrive together; the tokens of each that a step reads, by step."""
    from nanovllm import SamplingParams

    llm.async_scheduling = False  # one step at a time: on a GPU the engine would launch the next one first
    params = SamplingParams(temperature=0, max_tokens=llm.max_model_len, ignore_eos=True)
    asked = [llm.add_request(prompt, params) for prompt in roofline.random_prompts(llm, batch, 4, seed=1)]
    while llm.step().num_decode_tokens < batch:
        pass
    one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    prompts = [roofline.random_prompts(llm, 1, n, seed=2 + i)[0] for i, n in enumerate(lengths)]
    arrived = [llm.add_request(prompt, one) for prompt in prompts]
    sequences = [llm.get_request(request).sequences[0] for request in arrived]
    steps, read = [], [0] * len(lengths)
    try:
        while read != list(lengths):
            llm.step()
            now = [n if seq.is_finished else seq.num_computed_tokens for seq, n in zip(sequences, lengths, strict=True)]
            steps.append([after - before for before, after in zip(read, now, strict=True)])
            read = now
    finally:
        for request in asked + arrived:
            llm.abort(request)
            llm.take_output(request)
    return steps


# --- recorded runs -------------------------------------------------------------------------------------------------


def recorded_run(name: str) -> recorded.Recorded | None:
    """The recorded run of that name; None, and a line that says so, where nobody has recorded one yet."""
    try:
        return recorded.load(name)
    except FileNotFoundError:
        recorded.show_badge(f"no GPU run of '{name}' has been recorded yet")
        return None


def saved_for_backward(model: Any, num_tokens: int, mode: Any) -> int:
    """Bytes, weights aside, that a forward pass of a transformers model keeps for a backward pass that never comes."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        if tensor.data_ptr() not in weights:
            kept += tensor.nbytes
        return tensor

    ids = torch.arange(num_tokens, device=next(model.parameters()).device)[None]
    with mode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, use_cache=False)
    return kept


def print_modes(samples: Mapping[Any, Mapping[str, Sequence[float]]]) -> None:
    """Print median milliseconds of a forward pass by number of tokens and mode, and what each mode saves."""
    for num_tokens, by_mode in samples.items():
        base = roofline.median_ms(by_mode["with gradients"])
        for mode, seconds in by_mode.items():
            ms = roofline.median_ms(seconds)
            print(f"{num_tokens:>4} tokens  {mode:<16}{ms:8.2f} ms   {100 * (ms / base - 1):+6.1f} %")


# --- pictures ------------------------------------------------------------------------------------------------------


def draw_bandwidth(rates: Mapping[int, float], marks: Mapping[str, int]) -> Any:
    """Bytes a second (by the size that was read), and vertical lines at the sizes in `marks`."""
    figure, axes = plots.figure()
    axes.plot([size / 2**20 for size in rates], [rate / 1e9 for rate in rates.values()], marker="o")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="MiB read again and again", ylabel="GB/s", title="How fast memory is read here", ylim=(0, None))
    for colour, (name, size) in zip(plots.COLOURS[1:], marks.items(), strict=False):
        axes.axvline(size / 2**20, color=colour, linestyle="--", linewidth=1.2, label=name)
    axes.legend()
    return figure


def draw_roofline(
    roofs: Mapping[str, roofline.Roof], points: Mapping[str, tuple[Sequence[float], Sequence[float], str]]
) -> Any:
    """Roofs by name, and points by name: intensities, operations a second, and the name of the roof they belong to."""
    figure, axes = plots.figure(figsize=(7.0, 4.0))
    colours = dict(zip(roofs, plots.COLOURS, strict=False))
    grid = [2 ** (k / 4) for k in range(-8, 53)]
    for name, roof in roofs.items():
        axes.plot(grid, [roof.attainable(x) / 1e9 for x in grid], color=colours[name], label=f"{name}: roof")
        axes.plot([roof.ridge], [roof.flops / 1e9], "|", color=colours[name], markersize=14)
    for (name, (x, y, roof)), marker in zip(points.items(), "osD^v", strict=False):
        style = {"color": colours[roof], "markeredgecolor": "white", "markersize": 7, "linestyle": "none"}
        axes.plot(x, [value / 1e9 for value in y], marker, label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="intensity, operations a byte", ylabel="10⁹ operations a second")
    axes.legend(loc="lower right")
    return figure


def draw_decode_point(
    config: ModelConfig, itemsize: int, name: str, roof: roofline.Roof, batch: int, context: int
) -> Any:
    """One decode step on a roofline, with the least time that it takes and what the bytes are."""
    cost = roofline.decode_cost(config, batch, context, itemsize)
    seconds = roof.seconds(cost)
    point = {f"decode, batch {batch:,}, context {context:,}": ([cost.intensity], [cost.flops / seconds], name)}
    figure = draw_roofline({name: roof}, point)
    weights = roofline.weight_bytes(config, itemsize) / cost.bytes
    limit = "arithmetic" if cost.flops / roof.flops > cost.bytes / roof.bandwidth else "memory"
    figure.axes[0].set_title(
        f"{limit}-bound: {1e3 * seconds:.3g} ms a step at least, {batch / seconds:,.0f} tokens/s at most\n"
        f"intensity {cost.intensity:.3g}; {weights:.0%} of the bytes are weights"
    )
    return figure


def draw_times(rows: Sequence[tuple[str, float, float]], title: str) -> Any:
    """Bars for (label, least seconds, measured seconds), on a logarithmic scale."""
    figure, axes = plots.figure(figsize=(7.0, 0.9 + 0.32 * len(rows)))
    for index, (_, least, measured) in enumerate(rows):
        axes.plot([1e3 * least, 1e3 * measured], [index, index], color="#B8BDC4", linewidth=3, zorder=1)
        axes.plot(1e3 * least, index, "|", color=plots.COLOURS[0], markersize=12, markeredgewidth=2.5)
        axes.plot(1e3 * measured, index, "o", color=plots.COLOURS[1])
        axes.annotate(f" {measured / least:.1f}×", (1e3 * measured, index), xytext=(5, -3), textcoords="offset points")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set(xlabel="milliseconds a step: least by the roofline (bar), measured (dot)", title=title)
    return figure


def draw_batches(runs: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """For each name, (batch, seconds a step): the time that each user waits for a token, and all tokens a second."""
    figure, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.4))
    for (name, rows), marker in zip(runs.items(), "osD^", strict=False):
        batches, seconds = zip(*rows, strict=True)
        left.plot(batches, [1e3 * s for s in seconds], marker=marker, label=name)
        right.plot(batches, [b / s for b, s in rows], marker=marker, label=name)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times = [1e3 * seconds for rows in runs.values() for _, seconds in rows]
    left.set_ylim(0.6 * min(times), max(1.6 * max(times), 12 * min(times)))  # a flat curve shall look flat
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    left.set(xlabel="sequences in the batch", ylabel="ms a step", title="What one user waits for a token")
    right.set(
        xlabel="sequences in the batch", ylabel="tokens a second, all together", title="What the machine delivers"
    )
    figure.legend(*left.get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure


def draw_schedule(schedules: Mapping[str, Sequence[Sequence[int]]], num_requests: int) -> Any:
    """For each name, who got a token in each step: a row a request, a column a step."""
    figure, axes = plots.figure(len(schedules), 1, figsize=(8.0, 2.1 * len(schedules)), sharex=True, squeeze=False)
    for axis, (name, steps) in zip(axes[:, 0], schedules.items(), strict=True):
        for request in range(num_requests):
            spans = [(number, 1) for number, served in enumerate(steps) if request in served]
            colour = plots.COLOURS[request % len(plots.COLOURS)]
            axis.broken_barh(spans, (request - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.5)
        axis.set(title=f"{name}: {len(steps)} steps", ylabel="request")
        axis.set_yticks(range(num_requests))
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("step")
    return figure


def static_schedule(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Who gets a token in each step where groups of `batch` requests run until their longest is done."""
    rows = []
    for start in range(0, len(lengths), batch):
        group = range(start, min(start + batch, len(lengths)))
        for step in range(max(lengths[number] for number in group)):
            rows.append([number for number in group if step < lengths[number]])
    return rows


def draw_beside(runs: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Seconds of each step while others decode and a prompt arrives; one panel a budget, prefill steps in a colour."""
    figure, axes = plots.figure(1, len(runs), figsize=(9.0, 3.2), sharey=True, squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        for name, colour, chosen in (
            ("decodes alone", plots.COLOURS[0], False),
            ("with a piece of the prompt", plots.COLOURS[1], True),
        ):
            bars = [(i, 1e3 * s["seconds"]) for i, s in enumerate(run["steps"]) if (s["prefill"] > 0) == chosen]
            axis.bar([i for i, _ in bars], [ms for _, ms in bars], color=colour, label=name)
        longest = max(step["prefill"] for step in run["steps"])
        axis.set(title=f"at most {run['budget']:,} tokens a step (largest piece {longest:,})", xlabel="step")
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("ms between two tokens")
    axes[0][-1].legend()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def draw_pieces(shares: Mapping[str, Sequence[Sequence[int]]], decoding: int, budget: int) -> Any:
    """For each name, the tokens of every step as stacked bars: decodes below, then the pieces of each prompt."""
    figure, axes = plots.figure(1, len(shares), figsize=(9.0, 3.2), sharey=True, squeeze=False)
    for axis, (name, steps) in zip(axes[0], shares.items(), strict=True):
        numbers, below = range(1, len(steps) + 1), [0] * len(steps)
        prompts = zip(*steps, strict=True)
        rows = {"decodes": [decoding] * len(steps)} | {f"prompt {i}": row for i, row in enumerate(prompts, 1)}
        for (label, tokens), colour in zip(rows.items(), plots.COLOURS, strict=False):
            axis.bar(numbers, tokens, bottom=below, color=colour, label=label)
            below = [b + t for b, t in zip(below, tokens, strict=True)]
        axis.axhline(budget, color="#2B2B2B", linestyle="--", linewidth=1.2, label="budget")
        axis.set(title=name, xlabel="step", xticks=list(numbers), ylim=(0, 1.1 * budget))
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("tokens")
    figure.legend(*axes[0][0].get_legend_handles_labels(), ncols=5, loc="outside lower center")
    return figure


# --- exercises -----------------------------------------------------------------------------------------------------


@checker("decode-inputs")
def _decode_inputs(decode_inputs: Any) -> str:
    names = ("token", "position", "slot", "context length")
    cases = (
        # (token ids, block table, block size), all but the last token in the cache
        ([11, 12, 13, 14, 15, 16], [7, 2], 4),
        ([5, 6, 7, 8, 9], [3, 0], 4),
        ([5, 6, 7, 8], [3, 0], 4),
    )
    for token_ids, table, size in cases:
        last = len(token_ids) - 1
        want = (token_ids[-1], last, table[last // size] * size + last % size, last + 1)
        got = decode_inputs(list(token_ids), list(table), size)
        if not isinstance(got, tuple | list) or len(got) != 4:
            raise Wrong(f"Return four numbers ({', '.join(names)}), not {got!r}.")
        hints = (
            "a decode computes the token that was sampled last: its keys and values are not in the cache yet",
            "positions count from 0, so the last of n tokens is at n - 1",
            f"position {last} lies in entry {last // size} of the table, and that entry names the block",
            "the new token attends to itself as well",
        )
        for name, mine, right, hint in zip(names, got, want, hints, strict=True):
            expect_equal(f"with {len(token_ids)} tokens, blocks {table} of {size} slots, the {name}", mine, right, hint)
    return "These four numbers are all that a decode step uploads for one sequence, besides its block table"


@checker("decode-bytes")
def _decode_bytes(decode_bytes: Any) -> str:
    weights, kv = 1_192_099_840, 114_688
    for batch, context in ((64, 1000), (1, 1), (1, 1000), (256, 512)):
        got, want = decode_bytes(batch, context, weights, kv), weights + batch * context * kv
        where = f"for batch {batch} at context {context}"
        if isinstance(got, int | float):
            if batch > 1 and math.isclose(got, batch * (weights + context * kv)):
                raise Wrong(f"The weights are read {batch} times {where}; the whole batch shares one reading.")
            if batch > 1 and math.isclose(got, weights + context * kv):
                raise Wrong(f"Only one sequence's keys and values are read {where}; each of the {batch} has its own.")
            if batch > 1 and math.isclose(got, weights + batch * kv):
                raise Wrong(f"Only the new tokens' keys and values are counted {where}; attention reads all of them.")
        expect_close(f"the bytes {where}", got, want, tol=1e-9)
    return "One term is shared by the batch and one is not: that is why larger batches help, and why they stop helping"


@checker("break-even-batch")
def _break_even(break_even: Any) -> str:
    flops, weights = 1.2e9, 1.2e9
    for ridge, kv in ((300.0, 0.0), (10.3, 0.0), (300.0, 1e6), (2.5, 1e8), (300.0, 1.2e8), (299.0, 4e6)):
        room = flops - ridge * kv
        want = math.inf if room <= 0 else math.ceil(ridge * weights / room - 1e-9)
        got = break_even(ridge, flops, weights, kv)
        where = f"for a ridge of {ridge:g} and {kv / 1e6:g} MB of keys and values a sequence"
        if want == math.inf and got != math.inf:
            limit = flops / kv
            raise Wrong(
                f"You return {got:.6g} {where}. There the intensity stays below {limit:.3g} however large the batch is: "
                "return math.inf.",
                lambda axis, kv=kv, ridge=ridge: _draw_intensity(axis, flops, weights, kv, ridge),
            )
        if kv and isinstance(got, int | float) and got == math.ceil(ridge * weights / flops):
            raise Wrong(f"That is the batch {where} if keys and values were free. They are read, too.")
        expect_equal(f"the smallest batch {where}", got, want, hint="solve batch F / (W + batch K) = ridge, round up")
    return "With a short context a large batch gets there; with a long one none does, and decode stays memory-bound"


def _draw_intensity(axis: Any, flops: float, weights: float, kv: float, ridge: float) -> None:
    batches = [2**k for k in range(16)]
    axis.plot(batches, [b * flops / (weights + b * kv) for b in batches], label="intensity of a decode step")
    axis.axhline(ridge, color=plots.COLOURS[1], linestyle="--", label="ridge")
    axis.set(xscale="log", yscale="log", xlabel="batch", ylabel="operations a byte")
    axis.legend()
