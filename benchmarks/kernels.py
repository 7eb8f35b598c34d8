"""Check every kernel against float64 PyTorch at real shapes on a GPU, then time it next to its peers.

    python -m benchmarks.kernels                 correctness, then timings (about two minutes)
    python -m benchmarks.kernels --only check    correctness alone
    python -m benchmarks.kernels --sweep 60      also tries decode configurations, for at most 60 seconds

Timings are CUDA-graph replays that walk through enough copies of the KV cache to defeat the L2 cache. Bytes are those
that the operation must move (see each kernel's head), so TB/s can be held against the device copy in the same table.
Exit status 1 if a kernel is wrong or fails.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import common

sys.path.insert(0, str(common.ROOT / "tests" / "nanovllm" / "attention"))

from oracle import attend, random_case, relative_error

from nanovllm.attention import AttentionMetadata, get_backend
from nanovllm.kernels import paged_decode as decode_module
from nanovllm.kernels import ragged_prefill as prefill_module
from nanovllm.kernels.paged_decode import DecodeConfig, decode_bytes, paged_decode, plan_decode
from nanovllm.kernels.ragged_prefill import PrefillConfig, prefill_flops, ragged_prefill
from nanovllm.kernels.rms_norm import add_rms_norm, rms_norm
from nanovllm.kernels.rope_qknorm_store import rope_qknorm_store
from nanovllm.kernels.sample import sample
from nanovllm.kernels.silu_mul import silu_mul
from nanovllm.kernels.store_kv import store_kv
from nanovllm.layers import sampler
from nanovllm.layers.rotary import RotaryEmbedding, apply_rotary

Q_HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128  # Qwen3-0.6B
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ROTATE_BYTES = 400 * 2**20
failures: list[str] = []


def attempt(label: str, function: Callable[..., str], *args, **kwargs) -> None:
    """Runs one variant and prints its line; an error is reported with its label and the run goes on."""
    try:
        line = function(*args, **kwargs)
        torch.cuda.synchronize()
        print(f"  {label:<58} {line}", flush=True)
    except Exception as error:
        failures.append(label)
        message = " ".join(str(error).split())[:300]
        print(f"  {label:<58} FAILED {type(error).__name__}: {message}", flush=True)
        if "CUDA error" in message or "illegal memory" in message:
            traceback.print_exc()
            raise SystemExit("the device is lost after this error; nothing more can run") from error


def verdict(error: float, tolerance: float) -> str:
    """One line; raises where the error is NaN or above the tolerance."""
    if not error <= tolerance:
        raise ValueError(f"relative error {error:.2e}, allowed {tolerance:.0e}")
    return f"error {error:.1e}"


# --- correctness ---


def check_backend(name: str, lengths: list[tuple[int, int]], **shape) -> str:
    case = random_case(lengths, device="cuda", **shape)
    if name == "flash_attn":
        case.kv_cache.nan_to_num_(0.0)
    backend = get_backend(name)
    dtype = case.q.dtype
    backend.check(block_size=case.kv_cache.shape[3], head_dim=case.q.shape[2], dtype=dtype, device=torch.device("cuda"))
    expected, cache = case.expected()
    out = backend(case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    if not torch.equal(case.kv_cache.nan_to_num(7.0), cache.nan_to_num(7.0)):
        raise ValueError("the cache differs from one written token by token")
    return verdict(relative_error(out, expected), TOLERANCE[dtype])


def check_graph(backend_name: str) -> str:
    """A decode step captured on padding rows must serve other lengths, tables and slots written into its inputs."""
    cases = [
        random_case([(1, 1 + (37 * i * seed) % 900) for i in range(20)], kv_heads=8, head_dim=128, block_size=256,
                    dtype=torch.bfloat16, padding=12, seed=seed, device="cuda")
        for seed in (1, 2)
    ]  # fmt: skip
    backend = get_backend(backend_name)
    width = max(case.metadata.block_tables.shape[1] for case in cases)
    blocks = max(case.kv_cache.shape[0] for case in cases)
    q, k, v = (torch.zeros_like(x) for x in (cases[0].q, cases[0].k, cases[0].v))
    cache = cases[0].kv_cache.new_zeros((blocks, *cases[0].kv_cache.shape[1:]))
    static = AttentionMetadata(
        query_start=cases[0].metadata.query_start,
        context_lens=torch.zeros(32, dtype=torch.int32, device="cuda"),
        block_tables=torch.zeros((32, width), dtype=torch.int32, device="cuda"),
        slot_mapping=torch.full((32,), -1, dtype=torch.int32, device="cuda"),
        num_decodes=32,
        max_query_len=1,
        max_context_len=4096,
    )

    def step() -> torch.Tensor:
        static.decode_plan = None  # the lengths change in place
        return backend(q, k, v, cache, static, cases[0].scale)

    graph = Graph(step)
    worst = 0.0
    for case in cases:
        meta = case.metadata
        for target, source in ((q, case.q), (k, case.k), (v, case.v), (static.context_lens, meta.context_lens),
                               (static.slot_mapping, meta.slot_mapping)):  # fmt: skip
            target.copy_(source)
        static.block_tables.zero_()[:, : meta.block_tables.shape[1]] = meta.block_tables
        cache.zero_()[: case.kv_cache.shape[0]] = case.kv_cache.nan_to_num(0.0)
        graph.replay()
        expected, _ = case.expected()
        worst = max(worst, relative_error(graph.output[:20], expected[:20]))
    return verdict(worst, TOLERANCE[torch.bfloat16])


def check_all(backends: list[str]) -> None:
    print("correctness: relative error against float64")
    mixed = [(1, 1), (1, 100), (1, 1024), (1, 777), (300, 300), (64, 900), (2, 2), (17, 513), (129, 129)]
    ragged = [(1, n) for n in ragged_contexts(128)]
    for name in backends:
        dtypes = [torch.bfloat16, torch.float16] + ([torch.float32] if name == "triton" else [])
        block_sizes = (16, 32, 64, 128, 256) if name == "triton" else (256,)
        for dtype in dtypes:
            for block_size in block_sizes:
                shape = {"kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "block_size": block_size, "dtype": dtype}
                label = f"{name} {str(dtype)[6:]} block {block_size}"
                attempt(f"{label} mixed step", check_backend, name, mixed, padding=3, **shape)
                if block_size in (16, 256):
                    attempt(f"{label} 128 ragged decodes", check_backend, name, ragged, **shape)
        shape = {"block_size": 256, "dtype": torch.bfloat16}
        for head_dim in (16, 32, 64, 256) if name == "triton" else (32, 64):
            label = f"{name} head_dim {head_dim}"
            attempt(label, check_backend, name, mixed, kv_heads=4, head_dim=head_dim, **shape)
        for group in (1, 3, 4, 5, 6, 7, 8):
            label = f"{name} group {group}"
            attempt(label, check_backend, name, mixed, kv_heads=2, group=group, head_dim=128, **shape)
        attempt(f"{name} one sequence of 5000", check_backend, name, [(1, 5000)], kv_heads=8, head_dim=128, **shape)
        many = [(1, 1 + i % 90) for i in range(600)]
        attempt(f"{name} 600 decodes", check_backend, name, many, kv_heads=2, head_dim=64, **shape)
        attempt(f"{name} CUDA graph, lengths changed after capture", check_graph, name)


# --- timing ---


class Graph:
    """A captured function: replay() runs it, output holds what it returned."""

    def __init__(self, function: Callable[[], object]):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function()

    def replay(self) -> None:
        self.graph.replay()


def time_calls(functions: list[Callable[[], object]], samples: int = 20, calls: int = 12) -> list[float]:
    """Microseconds of one call, one sample a graph replay of `calls` calls that take the functions in turn."""
    for function in functions:
        function()

    def run() -> None:
        for i in range(max(calls, len(functions))):
            functions[i % len(functions)]()

    graph = Graph(run)
    times = []
    for i in range(samples + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(1000 * start.elapsed_time(end) / max(calls, len(functions)))
    return times


def ragged_contexts(count: int, seed: int = 0) -> list[int]:
    """Context lengths of 100 to 1,024 tokens."""
    rng = random.Random(seed)
    return [rng.randint(100, 1024) for _ in range(count)]


class DecodeWorkload:
    """Decode attention of given contexts over as many copies of the cache as make the L2 useless."""

    def __init__(self, contexts: list[int], block_size: int, dtype: torch.dtype = torch.bfloat16):
        self.contexts = contexts
        self.bytes = decode_bytes(contexts, Q_HEADS, KV_HEADS, HEAD_DIM, dtype.itemsize)
        copies = max(2, -(-ROTATE_BYTES // self.bytes))
        needed = [-(-n // block_size) for n in contexts]
        order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(0)).to(torch.int32)
        tables = torch.zeros((len(contexts), max(needed)), dtype=torch.int32)
        start = 0
        for row, count in enumerate(needed):
            tables[row, :count] = order[start : start + count]
            start += count
        self.tables = tables.cuda()
        self.lens = torch.tensor(contexts, dtype=torch.int32, device="cuda")
        self.q = torch.randn((len(contexts), Q_HEADS, HEAD_DIM), dtype=dtype, device="cuda")
        shape = (sum(needed), 2, KV_HEADS, block_size, HEAD_DIM)
        self.caches = [torch.randn(shape, dtype=dtype, device="cuda") for _ in range(copies)]
        self.scale = HEAD_DIM**-0.5

    def ours(self, config: DecodeConfig | None = None, bound: int = 4096) -> list[Callable[[], object]]:
        """As the layers of a step: the plan and the counters are made once for all."""
        args = (self.tables, self.lens, self.scale, bound)
        once = {
            "config": config,
            "plan": plan_decode(self.lens, self.caches[0], bound, config),
            "counters": torch.zeros(len(self.contexts) * KV_HEADS, dtype=torch.int32, device="cuda"),
        }
        return [partial(paged_decode, self.q, cache, *args, **once) for cache in self.caches]

    def calls(self, engine: str) -> list[Callable[[], object]]:
        """One call for each copy of the cache."""
        if engine == "triton":
            return self.ours()
        from flash_attn import flash_attn_with_kvcache

        inputs = {"cache_seqlens": self.lens, "block_table": self.tables, "softmax_scale": self.scale, "causal": True}
        views = [(cache[:, 0].transpose(1, 2), cache[:, 1].transpose(1, 2)) for cache in self.caches]
        return [partial(flash_attn_with_kvcache, self.q.unsqueeze(1), k, v, **inputs) for k, v in views]

    def error(self, out: torch.Tensor) -> float:
        """Relative error of an output for the first cache."""
        meta = AttentionMetadata(
            torch.arange(len(self.contexts) + 1, device="cuda", dtype=torch.int32), self.lens, self.tables,
            self.lens, len(self.contexts), 1, max(self.contexts),
        )  # fmt: skip
        return relative_error(out, attend(self.q, self.caches[0], meta, self.scale))


def report(times: list[float], num_bytes: int) -> str:
    median = statistics.median(times)
    return f"{median:9.1f} us   {num_bytes / median / 1e6:6.3f} TB/s"


def time_bytes(rows: list[dict], label: str, functions: list[Callable[[], object]], num_bytes: int) -> str:
    times = time_calls(functions)
    rows.append({"kernel": label, "bytes": num_bytes, "us": times})
    return report(times, num_bytes)


def time_copy(rows: list[dict]) -> None:
    source = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    label = "device copy, 1 GiB"
    attempt(label, time_bytes, rows, label, [lambda: target.copy_(source)], 2 * 2**30)


def time_load(rows: list[dict], label: str, load: DecodeWorkload, engine: str) -> str:
    return time_bytes(rows, label, load.calls(engine), load.bytes)


def time_decode(rows: list[dict], engines: list[str], out: Path) -> None:
    for kind in ("equal", "ragged"):
        for batch, block_size in ((1, 256), (8, 256), (32, 256), (128, 256), (128, 16), (256, 256)):
            load = DecodeWorkload([1024] * batch if kind == "equal" else ragged_contexts(batch), block_size)
            for engine in engines:
                if engine == "flash_attn" and block_size % 256:
                    continue
                label = f"decode {kind} batch {batch} block {block_size} {engine}"
                done = len(rows)
                attempt(label, time_load, rows, label, load, engine)
                if (batch, block_size) == (128, 256) and len(rows) > done:
                    name = "decode_attention" + ("_ragged" if kind == "ragged" else "")
                    shape = {"contexts": load.contexts, "block_size": block_size, "dtype": "bfloat16", "seed": 0}
                    shape |= {"q_heads": Q_HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "bytes": load.bytes}
                    rates = [load.bytes / t / 1e6 for t in rows[-1]["us"]]
                    common.write(common.record(name, metric="TB/s", samples=rates, workload=shape, engine=engine), out)
            del load
            torch.cuda.empty_cache()


def time_flops(rows: list[dict], label: str, function: Callable[[], object], flops: int) -> str:
    times = time_calls([function], samples=10, calls=4)
    rows.append({"kernel": label, "flops": flops, "us": times})
    median = statistics.median(times)
    return f"{median:9.1f} us   {flops / median / 1e6:6.1f} TFLOP/s"


def prefill_case(lengths: list[tuple[int, int]]) -> tuple:
    """A step with its tokens stored, and its floating-point operations."""
    shape = {"kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "block_size": 256, "dtype": torch.bfloat16}
    case = random_case(lengths, device="cuda", **shape)
    case.kv_cache.nan_to_num_(0.0)
    store_kv(case.k, case.v, case.kv_cache, case.metadata.slot_mapping)
    return case, prefill_flops([n for n, _ in lengths], [c for _, c in lengths], Q_HEADS, HEAD_DIM)


def ours_prefill(case, config: PrefillConfig | None = None) -> torch.Tensor:
    meta = case.metadata
    args = (case.q, case.kv_cache, meta.block_tables, meta.query_start, meta.context_lens, case.scale)
    return ragged_prefill(*args, config=config)


def time_prefill(rows: list[dict], engines: list[str]) -> None:
    ragged = [(n, n) for n in ragged_contexts(28)]
    for title, lengths in (("16 x 1024", [(1024, 1024)] * 16), ("28 ragged", ragged), ("2048 at 6144", [(2048, 8192)])):
        case, flops = prefill_case(lengths)
        for engine in engines:
            label = f"prefill {title} {engine}"
            if engine == "triton":
                attempt(label, time_flops, rows, label, partial(ours_prefill, case), flops)
            else:
                args = (case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
                label += " (stores k and v too)"
                attempt(label, time_flops, rows, label, partial(get_backend(engine), *args), flops)


class Small:
    """Inputs of the kernels around attention, T tokens of Qwen3-0.6B; the large ones in copies, to defeat the L2."""

    hidden, intermediate, vocab_size, max_positions, eps = 1024, 3072, 151_936, 4096, 1e-6

    def __init__(self, tokens: int, dtype: torch.dtype = torch.bfloat16):
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=dtype, device="cuda")

        self.tokens = tokens
        self.copies = max(2, min(64, ROTATE_BYTES // (tokens * self.hidden * 8)))
        self.x, self.residual = ([random(tokens, self.hidden) for _ in range(self.copies)] for _ in range(2))
        self.weight, self.q_weight, self.k_weight = random(self.hidden), random(HEAD_DIM), random(HEAD_DIM)
        self.gate_up = [random(tokens, 2 * self.intermediate) for _ in range(self.copies)]
        self.qkv = [random(tokens, Q_HEADS + 2 * KV_HEADS, HEAD_DIM) for _ in range(self.copies)]
        self.positions = torch.randint(0, self.max_positions, (tokens,), device="cuda")
        self.rotary = RotaryEmbedding(HEAD_DIM, 1e6, self.max_positions).cuda()
        blocks = -(-tokens // 256) + 16
        self.cache = torch.zeros((blocks, 2, KV_HEADS, 256, HEAD_DIM), dtype=dtype, device="cuda")
        self.slots = torch.randperm(blocks * 256, device="cuda")[:tokens].to(torch.int32)
        rows = min(tokens, 256)
        self.logits = [random(rows, self.vocab_size) for _ in range(max(2, 512 // rows if rows > 8 else 32))]
        self.temperatures = torch.full((rows,), 0.6, device="cuda")
        self.seeds = torch.randint(0, 2**62, (rows,), device="cuda")
        self.draw_positions = torch.randint(0, 4096, (rows,), device="cuda")

    def rope(self, qkv: torch.Tensor) -> torch.Tensor:
        weights = (self.q_weight, self.k_weight)
        return rope_qknorm_store(qkv, self.positions, self.rotary.table, *weights, self.eps, self.cache, self.slots)

    def unfused_rope(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = qkv.split([Q_HEADS, KV_HEADS, KV_HEADS], dim=1)
        cos, sin = self.rotary.lookup(self.positions, qkv.dtype)
        norm = torch.nn.functional.rms_norm
        q = apply_rotary(norm(q, (HEAD_DIM,), self.q_weight.to(q.dtype), self.eps), cos, sin)
        k = apply_rotary(norm(k, (HEAD_DIM,), self.k_weight.to(k.dtype), self.eps), cos, sin)
        return q, k, v

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        return sample(logits, self.temperatures, self.seeds, self.draw_positions)

    def unfused_draw(self, logits: torch.Tensor) -> torch.Tensor:
        batch = sampler.SamplingBatch(self.temperatures, self.seeds, self.draw_positions)
        return sampler.sample(logits, batch)


def unfused_add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(residual.add_(x), weight.shape, weight, eps)


def unfused_silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def check_norms(small: Small) -> str:
    x, residual, weight = small.x[0], small.residual[0].clone(), small.weight
    expected = torch.nn.functional.rms_norm(x.double(), weight.shape, weight.double(), small.eps)
    plain = relative_error(rms_norm(x, weight, small.eps), expected)
    total = x + residual
    expected = torch.nn.functional.rms_norm(total.double(), weight.shape, weight.double(), small.eps)
    fused = relative_error(add_rms_norm(x, residual, weight, small.eps), expected)
    if not torch.equal(residual, total):
        raise ValueError("the residual differs from x + residual")
    return verdict(max(plain, fused), 5e-3)


def check_rope(small: Small) -> str:
    q = small.rope(small.qkv[0])
    blocks, offsets = small.slots.long() // 256, small.slots.long() % 256
    expected = small.unfused_rope(small.qkv[0].double())
    found = (q, small.cache[blocks, 0, :, offsets], small.cache[blocks, 1, :, offsets])
    return verdict(max(relative_error(a, b) for a, b in zip(found, expected)), 5e-3)


def check_sample(small: Small) -> str:
    """Tokens may differ from the PyTorch sampler's only where a last-bit difference of a logarithm decides."""
    same = (small.draw(small.logits[0]) == small.unfused_draw(small.logits[0])).float().mean().item()
    if same < 0.99:
        raise ValueError(f"only {same:.1%} of the tokens equal the PyTorch sampler's")
    return f"{same:.1%} of the tokens equal the PyTorch sampler's"


def check_small() -> None:
    for tokens in (1, 128, 1000):
        small = Small(tokens)
        attempt(f"rms_norm, add_rms_norm {tokens} tokens", check_norms, small)
        attempt(f"rope_qknorm_store {tokens} tokens", check_rope, small)
        gate_up = small.gate_up[0]
        attempt(f"silu_mul {tokens} tokens", lambda x: verdict(
            relative_error(silu_mul(x), unfused_silu_mul(x.double())), 5e-3), gate_up)  # fmt: skip
        attempt(f"sample {small.logits[0].shape[0]} rows", check_sample, small)


def time_small(rows: list[dict]) -> None:
    """The kernels around attention, each next to the PyTorch operations that it replaces."""
    for tokens in (1, 128, 8192):
        small = Small(tokens)
        heads = Q_HEADS + 2 * KV_HEADS
        norm_args = (small.weight, small.eps)
        pairs = list(zip(small.x, small.residual))
        store_args = [(qkv[:, Q_HEADS : Q_HEADS + KV_HEADS], qkv[:, Q_HEADS + KV_HEADS :]) for qkv in small.qkv]
        draw_rows = small.logits[0].shape[0]
        variants = [
            ("rms_norm", 4 * tokens * small.hidden, [partial(rms_norm, x, *norm_args) for x in small.x]),
            ("add_rms_norm", 8 * tokens * small.hidden, [partial(add_rms_norm, *pair, *norm_args) for pair in pairs]),
            ("add_rms_norm in PyTorch", 8 * tokens * small.hidden,
             [partial(unfused_add_norm, *pair, *norm_args) for pair in pairs]),
            ("silu_mul", 6 * tokens * small.intermediate, [partial(silu_mul, x) for x in small.gate_up]),
            ("silu_mul in PyTorch", 6 * tokens * small.intermediate,
             [partial(unfused_silu_mul, x) for x in small.gate_up]),
            ("store_kv", 8 * tokens * KV_HEADS * HEAD_DIM + 4 * tokens,
             [partial(store_kv, *pair, small.cache, small.slots) for pair in store_args]),
            ("rope_qknorm_store", tokens * (4 * heads * HEAD_DIM + 4 * HEAD_DIM + 12),
             [partial(small.rope, x) for x in small.qkv]),
            ("rope, qk-norm in PyTorch, no store", tokens * (4 * heads * HEAD_DIM + 4 * HEAD_DIM + 12),
             [partial(small.unfused_rope, x) for x in small.qkv]),
        ]  # fmt: skip
        if tokens <= 256:
            num_bytes = 2 * draw_rows * small.vocab_size
            variants += [
                ("sample", num_bytes, [partial(small.draw, x) for x in small.logits]),
                ("sample in PyTorch", num_bytes, [partial(small.unfused_draw, x) for x in small.logits[:2]]),
            ]
        for name, num_bytes, functions in variants:
            label = f"{name} {tokens} tokens"
            attempt(label, time_bytes, rows, label, functions, num_bytes)
        del small, variants, pairs, store_args
        torch.cuda.empty_cache()


DECODE_SWEEP = [
    DecodeConfig(tile, programs, warps, stages)
    for tile, warps, stages, counts in (
        (64, 4, 3, (3, 6, 12)), (64, 4, 2, (3, 6, 12)), (64, 4, 4, (2, 4, 8)), (32, 4, 3, (5, 4, 10)),
        (32, 4, 4, (4, 8)), (32, 2, 3, (6, 5, 12)), (32, 2, 2, (6, 12)), (64, 8, 3, (2, 3, 6)), (128, 8, 2, (2, 3, 6)),
        (128, 8, 3, (1, 2, 4)), (16, 1, 2, (12, 24)), (16, 1, 3, (12, 24)), (32, 1, 2, (10, 20)), (32, 1, 3, (5, 10)),
        (64, 2, 2, (4, 8)), (64, 2, 3, (3, 6)), (16, 2, 4, (8, 12)), (32, 2, 4, (4, 8)),
    )
    for programs in counts
]  # fmt: skip
PREFILL_SWEEP = [
    PrefillConfig(rows, tile, warps, stages)
    for rows, tile, warps in ((128, 64, 8), (128, 64, 4), (128, 128, 8), (64, 64, 4), (64, 128, 4))
    for stages in (2, 3)
]


def sweep_one(rows: list[dict], loads: dict[str, DecodeWorkload], config: DecodeConfig, ranked: list) -> str:
    rates = {}
    for kind, load in loads.items():
        verdict(load.error(load.ours(config)[0]()), TOLERANCE[torch.bfloat16])
        times = time_calls(load.ours(config), samples=8)
        rows.append({"kernel": f"sweep decode {kind}", "config": config._asdict(), "bytes": load.bytes, "us": times})
        rates[kind] = load.bytes / statistics.median(times) / 1e6
    ranked.append((rates["ragged"], rates["equal"], config))
    return f"ragged {rates['ragged']:.3f} equal {rates['equal']:.3f} TB/s"


def sweep_decode(rows: list[dict], seconds: float, block_size: int) -> None:
    """Times the decode configurations on equal and ragged contexts until the time is up, and ranks them."""
    deadline = time.monotonic() + seconds
    contexts = {"equal": [1024] * 128, "ragged": ragged_contexts(128)}
    loads = {kind: DecodeWorkload(lengths, block_size) for kind, lengths in contexts.items()}
    ranked: list[tuple[float, float, DecodeConfig]] = []
    for number, config in enumerate(DECODE_SWEEP):
        if time.monotonic() > deadline:
            print(f"  decode sweep, block {block_size}, stopped after {number} of {len(DECODE_SWEEP)} configurations")
            break
        attempt(f"block {block_size} {tuple(config)}", sweep_one, rows, loads, config, ranked)
    print(f"best decode configurations, block {block_size}: (tile, programs_per_sm, warps, stages)")
    for ragged, equal, config in sorted(ranked, reverse=True)[:8]:
        print(f"  ragged {ragged:6.3f}  equal {equal:6.3f}  {tuple(config)}")


def sweep_prefill(rows: list[dict], seconds: float) -> None:
    """Times the prefill configurations until the time is up."""
    deadline = time.monotonic() + seconds
    case, flops = prefill_case([(1024, 1024)] * 16)
    for config in PREFILL_SWEEP:
        if time.monotonic() < deadline:
            label = f"sweep prefill (rows, tile, warps, stages) {tuple(config)}"
            attempt(label, time_flops, rows, label, partial(ours_prefill, case, config), flops)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=["check", "time"], help="one of the two parts; both by default")
    parser.add_argument("--sweep", type=float, default=0, metavar="SECONDS", help="time for trying configurations")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    torch.manual_seed(0)
    began = time.monotonic()
    engines = ["triton"]
    try:
        import flash_attn  # noqa: F401

        engines.append("flash_attn")
    except ImportError as error:
        print(f"flash_attn is left out: {error}")
    print(f"{common.device_info()} {common.versions()}")
    if args.only != "time":
        check_all(engines)
        check_small()
        print(f"correctness took {time.monotonic() - began:.0f} s, {len(failures)} failed: {failures}")
    rows: list[dict] = []
    if args.only != "check":
        print("time: median of graph replays, bytes that must move")
        time_copy(rows)
        time_decode(rows, engines, args.out)
        time_prefill(rows, engines)
        time_small(rows)
        if args.sweep:
            sweep_decode(rows, args.sweep * 0.5, 256)
            sweep_decode(rows, args.sweep * 0.3, 16)
            sweep_prefill(rows, args.sweep * 0.2)
        defaults = {"decode": decode_module.CONFIGS[256]._asdict(), "prefill": prefill_module.CONFIGS[256]._asdict()}
        copy = [rows[0]["bytes"] / t / 1e6 for t in rows[0]["us"]]
        result = common.record("kernels", metric="TB/s of a device copy", samples=copy, workload=defaults, rows=rows)
        print(f"wrote {common.write(result, args.out)}")
    print(f"{time.monotonic() - began:.0f} s, {len(failures)} failed: {failures}")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
