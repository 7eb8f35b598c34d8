"""What notebook 06 shows of a GPU: a decode step launched from Python beside the same step replayed as a CUDA graph.

The model is the engine's, with random weights; the step is the course's (`course.graphs.DecodeStep`), so that both are the
same launches. Measures both for several batches, with what capturing took; profiles one step of each; compares the memory
of graphs that share a pool with that of graphs that do not; and times the engine itself with and without graphs.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, record, write
from random_models import HELP, describe, model_folder

from course import graphs, roofline
from nanovllm import LLM

DATA = ROOT / "notebooks" / "data"


def ready_step(llm: LLM, batch: int, context: int) -> graphs.DecodeStep:
    """A step of `batch` sequences that attend to `context` tokens each; their blocks hold zeros, which costs the same."""
    runner = llm.model_runner
    width = -(-context // runner.block_size)
    step = graphs.DecodeStep(runner.model, batch, width, runner.device)
    tables = [[row * width + block for block in range(width)] for row in range(batch)]
    step.fill([row % 100 for row in range(batch)], [context - 1] * batch, tables)
    return step


@torch.inference_mode()
def compare(llm: LLM, batch: int, context: int, rounds: int) -> dict[str, Any]:
    """Seconds of one step eagerly and by replay, in turn, and of the capture; whether the logits are the same."""
    device = llm.model_runner.device
    step = ready_step(llm, batch, context)
    eager = step().clone()
    roofline.synchronize(device)
    start = time.perf_counter()
    graph = graphs.capture(step, device)
    roofline.synchronize(device)
    capture = time.perf_counter() - start
    graph.replay()
    equal = bool(torch.allclose(graph.output.float(), eager.float(), atol=1e-2, rtol=1e-2))
    samples = roofline.seconds_each({"eager": step, "replay": graph.replay}, device, rounds)
    return {"batch": batch, "capture_seconds": capture, "same_logits": equal, **samples}


@torch.inference_mode()
def profile(llm: LLM, batch: int, context: int) -> dict[str, Any]:
    """Start and length in microseconds of every launch call and every kernel, of one eager step and of one replay."""
    device = llm.model_runner.device
    step = ready_step(llm, batch, context)
    graph = graphs.capture(step, device)
    found: dict[str, Any] = {"batch": batch, "context": context, "operations": len(graphs.launches(step))}
    for name, work in (("eager", step), ("replay", graph.replay)):
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        work()
        roofline.synchronize(device)
        with torch.profiler.profile(activities=activities) as profiler:
            # The first round pays for starting the profiler; the pause tells the rounds apart.
            for _ in range(2):
                work()
                roofline.synchronize(device)
                time.sleep(0.02)
        found[name] = last_round(profiler.events())
    return found


def last_round(events: Any) -> dict[str, list]:
    """The calls and kernels after the longest pause, from the first of them on."""
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    calls = [event for event in events if "Launch" in event.name and event not in on_gpu]
    if not on_gpu or not calls:
        return {"calls": [], "kernels": []}
    starts = sorted(event.time_range.start for event in calls)
    gaps = [after - before for before, after in zip(starts, starts[1:])]
    begin = starts[gaps.index(max(gaps)) + 1] if gaps else starts[0]

    def spans(chosen: list[Any]) -> list[list]:
        late = sorted((e for e in chosen if e.time_range.start >= begin), key=lambda event: event.time_range.start)
        return [
            [round(e.time_range.start - begin, 2), round(e.time_range.end - e.time_range.start, 2), e.name[:60]]
            for e in late
        ]

    return {"calls": spans(calls), "kernels": spans(on_gpu)}


@torch.inference_mode()
def pool_memory(llm: LLM, batches: list[int], context: int) -> dict[str, Any]:
    """Bytes that graphs of all `batches` take: with one pool, the largest first, and with a pool each."""
    device = llm.model_runner.device
    taken: dict[str, Any] = {"batches": batches}
    for name in ("shared", "separate"):
        steps = [ready_step(llm, batch, context) for batch in sorted(batches, reverse=True)]
        pool = torch.cuda.graph_pool_handle() if name == "shared" else None
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.mem_get_info(device)[0]
        kept = [graphs.CudaGraph(step, pool) for step in steps]
        torch.cuda.empty_cache()
        taken[f"{name}_bytes"] = before - torch.cuda.mem_get_info(device)[0]
        del kept, steps
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen3-0.6b", help=f"{HELP} (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine-batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--steps", type=int, default=32, help="decode steps in a sample of the engine")
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the results (default notebooks/data)")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    dtype = "bfloat16"
    settings = dict(
        max_model_len=2 * args.context + args.steps,
        max_num_seqs=max(*args.batches, *args.engine_batches),
        max_num_batched_tokens=16384,
        gpu_memory_utilization=0.6,
        enable_prefix_caching=False,
        dtype=dtype,
        # On a CPU only plain PyTorch can be recorded: no numba, no packed weights.
        attention_backend="auto" if cuda else "reference",
    )
    engine: dict[str, list] = {"graphs": [], "eager": []}
    more: dict[str, Any] = {}
    with model_folder(args.model) as folder:
        for mode in engine:
            start = time.perf_counter()
            llm = LLM(folder, enforce_eager=mode == "eager", **settings)
            startup = time.perf_counter() - start
            with llm:
                for batch in args.engine_batches:
                    samples = roofline.decode_seconds(llm, batch, args.context, args.steps, 3)
                    engine[mode].append({"batch": batch, "seconds": samples})
                    print(f"engine, {mode}, batch {batch}: {roofline.median_ms(samples):.3f} ms a step", flush=True)
                more[f"{mode}_startup_seconds"] = startup
                if mode == "eager":
                    if not cuda:
                        for layer in llm.model_runner.model.attention_layers():
                            layer.backend = graphs.StaticAttention()
                    compared = [compare(llm, batch, args.context, args.rounds) for batch in args.batches]
                    profiles = [profile(llm, batch, args.context) for batch in (args.batches[0], args.batches[-1])]
                    if cuda:
                        more["pool"] = pool_memory(llm, args.batches, args.context)
            gc.collect()
    for row in compared:
        eager, replay = roofline.median_ms(row["eager"]), roofline.median_ms(row["replay"])
        print(
            f"batch {row['batch']}: eager {eager:.3f} ms, replay {replay:.3f} ms, same logits {row['same_logits']}, "
            f"captured in {row['capture_seconds']:.3f} s"
        )
    for row in profiles:
        counts = {name: (len(row[name]["calls"]), len(row[name]["kernels"])) for name in ("eager", "replay")}
        print(f"batch {row['batch']}: launch calls and kernels {counts}")
    print(more)

    first = compared[0]
    result = record(
        "cuda_graphs",
        metric=f"eager time / replay time of one decode step, batch {first['batch']}",
        samples=[eager / replay for eager, replay in zip(first["eager"], first["replay"], strict=True)],
        workload={
            "model": describe(args.model),
            "dtype": dtype,
            "context": args.context,
            "steps": args.steps,
            "seed": 0,
        },
        steps=compared,
        profiles=profiles,
        engine_steps=engine,
        **more,
    )
    print(write(result, args.out).name)


if __name__ == "__main__":
    main()
