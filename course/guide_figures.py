"""Figures that guides quote and that nothing else computes: from recorded runs, or from the engine's own functions."""

from __future__ import annotations

import csv
import random
import statistics
from functools import cache
from typing import Any

from course import kv_cache, recorded, roofline
from course.scheduler_view import fill, reserved_slots
from nanovllm.engine.block_manager import BlockManager

GIB = 2**30

# --- torch.inference_mode, from benchmarks/inference_mode.py -----------------------------------------------------------


@cache
def _modes(model: str, code: str, tokens: int) -> dict[str, Any]:
    """One forward pass of the record: `model` "embedded" or "qwen3-0.6b", `code` "transformers" or "engine"."""
    run = recorded.load(f"inference_mode-{model}")
    (entry,) = (each for each in run["passes"] if (each["code"], each["tokens"]) == (code, tokens))
    return entry


def mode_samples(model: str, code: str, tokens: int) -> int:
    """How many samples of each mode the record holds."""
    return len(_modes(model, code, tokens)["seconds"]["inference_mode"])


def mode_ms(model: str, code: str, tokens: int, mode: str) -> float:
    """Median milliseconds of a forward pass."""
    return roofline.median_ms(_modes(model, code, tokens)["seconds"][mode])


def mode_saves(model: str, code: str, tokens: int, mode: str) -> float:
    """Per cent of the time of PyTorch's default mode on those weights that `mode` saves.

    The default mode of transformers' model is "default"; the engine's weights want no gradient, so there it is "frozen".
    """
    base = mode_ms(model, code, tokens, "default" if code == "transformers" else "frozen")
    return 100 * (1 - mode_ms(model, code, tokens, mode) / base)


def mode_kept_mib(model: str, tokens: int, mode: str) -> float:
    """MiB that a forward pass of transformers' model keeps for a backward pass, weights aside."""
    return _modes(model, "transformers", tokens)["kept_bytes"][mode] / 2**20


def all_savings(code: str, mode: str = "inference_mode") -> list[float]:
    """`mode_saves` for both models and every number of tokens, ascending."""
    runs = {model: recorded.load(f"inference_mode-{model}") for model in ("embedded", "qwen3-0.6b")}
    return sorted(
        mode_saves(model, code, entry["tokens"], mode)
        for model, run in runs.items()
        for entry in run["passes"]
        if entry["code"] == code
    )


# --- the KV cache ------------------------------------------------------------------------------------------------------


def plan(model: str, gigabytes: float, ranks: int = 1) -> kv_cache.Plan:
    """`course.kv_cache.plan` of a published Qwen3 on a card of that size, for users of 4,096 tokens."""
    return kv_cache.plan(kv_cache.QWEN3[model], gigabytes * 1e9, tokens_per_user=4096, ranks=ranks)


def seed_ratio(model: str) -> float:
    """What the seed's formula says of a block, divided by the truth."""
    config = kv_cache.QWEN3[model]
    return kv_cache.seed_block_bytes(config, block_size=1) / kv_cache.bytes_per_token(config)


# --- blocks ------------------------------------------------------------------------------------------------------------


@cache
def slots_used(block_size: int | None) -> float:
    """Per cent of the slots that hold a token, 256 sequences of 200 to 2,000 tokens: blocks, or buffers of 4,096 (None)."""
    draw = random.Random(0)
    taken = reserved_slots([draw.randint(200, 2000) for _ in range(256)], block_size or 16, max_model_len=4096)
    return 100 * taken["used"] / taken[f"blocks of {block_size}" if block_size else "one buffer each"]


def hit_of_equal_prompts(num_tokens: int) -> int:
    """Tokens that the second of two equal prompts, one after the other, finds in the cache; blocks of 16."""
    blocks = BlockManager(64, 16)
    fill(blocks, 0, list(range(num_tokens)))
    return fill(blocks, 1, list(range(num_tokens))).num_cached_tokens


def collision_chance(blocks: float, bits: int = 128) -> float:
    """An upper bound of the chance that any two of so many different blocks have the same hash."""
    return blocks**2 / 2 / 2**bits


# --- HNSW, from test-case/ and benchmarks/hnsw_peers.py ------------------------------------------------------------------


def max_m_row(vectors: str, max_m: int, ef_search: int, sampler: str = "paper") -> dict[str, float]:
    """Recall, distances a query and more, ef_construction 100; `sampler` of levels: "paper" or "seed"."""
    path = recorded.ROOT / "test-case" / "max_m_comparison_data.csv"
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["set"], row["sampler"], row["max_m"], row["ef_construction"], row["ef_search"])
            if key == (vectors, sampler, str(max_m), "100", str(ef_search)):
                return {name: float(row[name]) for name in row if name not in ("set", "sampler")}
    raise KeyError(f"no row for {vectors}, {sampler}, max_m {max_m}, ef_search {ef_search} in {path.name}")


def report_row(report: str, vectors: str, max_m: int, ef_search: int, ef_construction: int = 100) -> dict[str, float]:
    """The row of a Markdown report in test-case/ with these settings; speeds are those of the machine that wrote it."""
    columns: list[str] = []
    for line in (recorded.ROOT / "test-case" / report).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "recall@10" in cells:
            columns = cells
        elif len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            wanted = {"set": vectors, "max_m": str(max_m), "ef_search": str(ef_search)}
            wanted |= {"ef_construction": str(ef_construction)} if "ef_construction" in columns else {}
            if all(row.get(name) == value for name, value in wanted.items()):
                return {name: float(row[name]) for name in columns if name not in ("set", "setting")}
    raise KeyError(f"no row for {vectors}, max_m {max_m}, {ef_construction}, {ef_search} in {report}")


def hnsw_at(vectors: str, library: str, ef: int) -> dict[str, float]:
    """Recall@10, and the median of thousands of queries a second on one thread."""
    curve = recorded.load(f"hnsw_{vectors}-{library}")["curve"]
    (point,) = (point for point in curve if point["ef"] == ef)
    return {"recall": point["recall"], "kqps": statistics.median(point["queries_per_second"]) / 1e3}


def hnsw_build_seconds(vectors: str, library: str) -> float:
    """Median CPU seconds of building that set's index on one thread."""
    return statistics.median(recorded.load(f"hnsw_{vectors}-{library}")["build_seconds"])


def hnsw_median(name: str, which: str) -> float:
    """The median of ``hnsw_<name>-<which>.json``, in the unit that the file's ``metric`` names."""
    return recorded.load(f"hnsw_{name}-{which}").median


def hnsw_recall_differences(library: str) -> list[float]:
    """Our recall less that library's at the same ef, for every set and ef that was measured, ascending."""
    return sorted(
        ours["recall"] - theirs["recall"]
        for vectors in ("uniform", "clusters", "text", "digits", "near_duplicates")
        for ours, theirs in zip(
            recorded.load(f"hnsw_{vectors}-ours")["curve"],
            recorded.load(f"hnsw_{vectors}-{library}")["curve"],
            strict=True,
        )
    )


# --- one H100, Qwen3-0.6B's shape: notebooks/data and benchmarks/results ------------------------------------------------


def allocator_mib(action: str, which: str) -> float:
    """MiB after a step of the allocator's experiment; `which`: "allocated", "reserved" or "peak"."""
    (step,) = (step for step in recorded.load("kv_cache_allocator")["steps"] if step["action"] == action)
    return step[which]


def gpu_start(graphs: bool, tokens: int = 8192) -> dict[str, Any]:
    """A recorded start of the engine: its terms in GiB, the budget, what was in use while serving, and the blocks."""
    for start in recorded.load("kv_cache_budget")["starts"]:
        settings, terms = start["settings"], start["terms"]
        asked = settings.get("max_num_batched_tokens", 8192)
        if (bool(terms["reserved"]), asked) == (graphs, tokens):
            return {
                "budget": terms["total"] * terms["utilization"] / GIB,
                "others": (terms["used"] - terms["current"]) / GIB,
                "step": (terms["peak"] - terms["current"]) / GIB,
                "graphs": terms["reserved"] / GIB,
                "serving": start["device_in_use_serving"] / GIB,
                "blocks": start["num_blocks"],
            }
    raise ValueError(f"no recorded start with graphs={graphs} and max_num_batched_tokens={tokens}")


def planned_for_gpu() -> float:
    """Blocks of Qwen3-0.6B that the plan expects on the recorded GPU."""
    total = recorded.load("kv_cache_budget")["starts"][0]["terms"]["total"]
    return kv_cache.plan(kv_cache.QWEN3["Qwen3-0.6B"], total, tokens_per_user=4096).num_blocks


def gpu_step_ms(batch: int, how: str) -> float:
    """Milliseconds of a recorded decode step, "eager" or "replay"."""
    (row,) = (row for row in recorded.load("cuda_graphs")["steps"] if row["batch"] == batch)
    return roofline.median_ms(row[how])


def gpu_kernels(batch: int = 1) -> int:
    """Kernels of a recorded decode step."""
    (row,) = (row for row in recorded.load("cuda_graphs")["profiles"] if row["batch"] == batch)
    return len(row["replay"]["kernels"])


def gpu_pool_mib(kind: str) -> float:
    """MiB that nine graphs took, "shared": in one pool, "separate": in a pool each."""
    return recorded.load("cuda_graphs")["pool"][f"{kind}_bytes"] / 2**20


def gpu_prefill_ms(tokens: int) -> float:
    """Milliseconds of a recorded step that reads one prompt."""
    (row,) = (row for row in recorded.load("prefill_decode")["prefill"] if row["tokens"] == tokens)
    return roofline.median_ms(row["seconds"])


def gpu_median(name: str, phase: str | None = None) -> float:
    """The median of a record in benchmarks/results, or of one phase of a start."""
    run = recorded.load(name)
    return statistics.median(run["phases"][phase]) if phase else run.median


def gpu_mode_ms(tokens: int, mode: str) -> float:
    """Median milliseconds of transformers' forward pass; `mode`: "with gradients", "no_grad" or "inference_mode"."""
    return roofline.median_ms(recorded.load("prefill_decode")["transformers_modes"][str(tokens)][mode])


def gpu_mode_saves(tokens: int, mode: str) -> float:
    """Per cent of the default mode's time."""
    return 100 * (1 - gpu_mode_ms(tokens, mode) / gpu_mode_ms(tokens, "with gradients"))


def decode_us(kind: str, batch: int, kernel: str) -> float:
    """Microseconds of decode attention, blocks of 256: `kind` "equal" or "ragged", `kernel` "triton" or "flash_attn"."""
    wanted = f"decode {kind} batch {batch} block 256 {kernel}"
    (row,) = (row for row in recorded.load("kernels")["rows"] if row["kernel"] == wanted)
    return statistics.median(row["us"])


def decode_config(warps: int, stages: int, what: str) -> float:
    """The recorded median of decode attention with programs of `warps` warps and `stages` tiles in hand.

    `what`: "alone_us" or "between_us", microseconds of a call, or "bench", output tokens/s of the whole bench.
    """
    rows = recorded.load("decode_configs")["rows"]
    (row,) = (row for row in rows if (row["config"]["warps"], row["config"]["stages"]) == (warps, stages))
    return statistics.median(row[what])
