"""How long the GPU waits for the host: torch.profiler over windows of decode steps in the middle of the bench.

A window's idle share is 1 - (time in which at least one kernel or copy runs) / (time from the first to the last of them).
Gaps longer than `--gap` microseconds are told apart: short ones lie between the kernels of one graph, long ones are waits
for the host. The profiler slows the host, so the shares are upper bounds. Without a GPU the same is computed for PyTorch's
operations on the CPU, which shows what the engine's Python costs beside them.

    python benchmarks/profile_step.py            also prints the kernels that take most of the time
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import engines
import torch
from common import record, write
from random_models import describe, model_folder, vocab_size
from throughput import bench_requests
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nanovllm import LLM, SamplingParams


class Idle(NamedTuple):
    """Microseconds of a window, and its gaps in which nothing ran, told apart by their length."""

    window: float
    short_gaps: float
    long_gaps: float

    @property
    def share(self) -> float:
        return (self.short_gaps + self.long_gaps) / self.window


def idle(intervals: Iterable[tuple[float, float]], gap: float) -> Idle:
    """Where no interval (start, end) covers the time between the first start and the last end; in their unit.

    Raises ValueError where there is no interval.
    """
    ordered = sorted(intervals)
    if not ordered:
        raise ValueError("intervals must hold at least one (start, end)")
    first = busy_until = ordered[0][0]
    short = long = 0.0
    for start, end in ordered:
        wait = start - busy_until
        if wait > gap:
            long += wait
        elif wait > 0:
            short += wait
        busy_until = max(busy_until, end)
    return Idle(busy_until - first, short, long)


def profile_steps(llm: LLM, steps: int, on_gpu: bool) -> list[tuple[str, float, float]]:
    """(name, start, end) in microseconds of what the device ran in that many steps."""
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            llm.step()
        if on_gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        # An annotation spans the kernels below it: it would hide the gaps between them.
        if event.device_type == kind and not event.is_user_annotation and event.time_range.end > event.time_range.start
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines.add_options(parser)
    parser.add_argument("--num-seqs", type=int, default=256, help="default %(default)s")
    parser.add_argument("--tokens", type=int, nargs=2, default=(100, 1024), metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--at", type=int, nargs="+", default=[100, 300, 500, 700, 900], help="steps at which windows start"
    )
    parser.add_argument("--steps", type=int, default=40, help="steps a window (default %(default)s)")
    parser.add_argument("--gap", type=float, default=10.0, help="microseconds of a long gap (default %(default)s)")
    args = parser.parse_args()
    if args.engine != "nanovllm":
        raise SystemExit(f"--engine {args.engine}: only this repository's engine can be stepped by hand")
    if (
        args.steps < 1
        or args.at != sorted(set(args.at))
        or any(b - a < args.steps for a, b in zip(args.at, args.at[1:]))
    ):
        raise SystemExit("--at must grow by at least --steps, and --steps be at least 1: windows may not overlap")

    windows: list[Idle] = []
    busy: Counter[str] = Counter()
    step_ms = []
    with (
        model_folder(args.model, seed=args.seed) as folder,
        LLM(folder, **engines.settings(args)) as llm,
    ):
        on_gpu = llm.model_runner.device.type == "cuda"
        ids = min(engines.TOKEN_IDS, vocab_size(folder))
        prompts, output_tokens = bench_requests(args.num_seqs, *args.tokens, ids, args.seed)
        warm_up = [random.Random(args.seed).randrange(ids) for _ in range(args.tokens[0])]
        llm.generate(warm_up, SamplingParams(temperature=0.6, max_tokens=8, ignore_eos=True), use_tqdm=False)
        for prompt, tokens in zip(prompts, output_tokens, strict=True):
            llm.add_request(prompt, SamplingParams(temperature=0.6, max_tokens=tokens, ignore_eos=True))
        number = 0
        while llm.has_unfinished and len(windows) < len(args.at):
            if number < args.at[len(windows)]:
                llm.step()
                number += 1
                continue
            events = profile_steps(llm, args.steps, on_gpu)
            number += args.steps
            windows.append(idle([event[1:] for event in events], args.gap))
            step_ms.append(windows[-1].window / args.steps / 1e3)
            print(
                f"step {number:5}: {step_ms[-1]:8.3f} ms a step, idle {windows[-1].share:6.1%}, "
                f"waits for the host {windows[-1].long_gaps / windows[-1].window:6.1%}",
                flush=True,
            )
            for name, start, end in events:
                busy[name] += end - start
    if not windows:
        raise SystemExit("the workload ended before the first window: lower --at, or raise --tokens")
    total = sum(busy.values())
    if on_gpu:
        print("\nshare of kernel time")
        for name, microseconds in busy.most_common(15):
            print(f"{microseconds / total:8.1%}  {name[:100]}")
    result = record(
        "gpu_idle" if on_gpu else "cpu_idle",
        metric="share of the window in which no kernel runs" if on_gpu else "share of the window outside of operations",
        samples=[window.share for window in windows],
        engine=engines.engine_name(args),
        workload={
            "model": describe(args.model),
            "sequences": args.num_seqs,
            "windows_start_at_step": args.at[: len(windows)],
            "steps_per_window": args.steps,
            "temperature": 0.6,
            "settings": engines.settings(args),
            "seed": args.seed,
        },
        waits_for_the_host=[window.long_gaps / window.window for window in windows],
        long_gap_microseconds=args.gap,
        ms_per_step=step_ms,
        kernel_time_shares={name: value / total for name, value in busy.most_common(15)} if on_gpu else {},
    )
    print(f"median idle {result['median']:.1%}  {write(result, args.out).name}")


if __name__ == "__main__":
    main()
