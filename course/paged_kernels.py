"""Paged decode attention in five steps, from PyTorch to the engine's own kernel: what notebook 10 runs and times.

Every step computes the same thing: q (B, H, D), one query token a sequence; a cache (num_blocks, 2, KV, block_size, D),
`[:, 0]` keys and `[:, 1]` values; block tables (B, max_blocks) and lengths (B), both int32 -> out (B, H, D). Query head
h reads KV head h // (H // KV). Lengths are 1 or more, the cache is contiguous.

Without a GPU Triton's interpreter runs the kernels: importing this module asks for it, before it imports triton.
"""

from __future__ import annotations

import inspect
import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "This chapter writes kernels in Triton, and Triton is not installed. On Linux: pip install triton, then restart "
        "the kernel. For macOS and Windows there is no such package: read the stored outputs, or run the chapter on Linux "
        "(WSL 2, a container, a hosted notebook). No GPU is needed.",
        name="triton",
    ) from error

from course import plots, recorded, roofline
from course.exercises import NotDone, Wrong, checker, expect_close, expect_equal
from course.graphs import CudaGraph
from nanovllm.kernels.paged_decode import WHOLE, DecodeConfig, decode_bytes, default_config, paged_decode

# --- a small paged cache -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One decode step: what the kernels read. Made by `make_case`, every slot that no sequence owns holds NaN."""

    q: Tensor
    cache: Tensor
    tables: Tensor
    lengths: Tensor

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def bytes(self) -> int:
        """Bytes that any kernel must move: keys and values once, queries in, outputs out."""
        heads, kv_heads = self.q.shape[1], self.cache.shape[2]
        return decode_bytes(self.lengths.tolist(), heads, kv_heads, self.q.shape[2], self.q.element_size())


def make_case(
    lengths: Sequence[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str | None = None,
) -> Case:
    """Random queries, keys and values of `lengths` tokens each, their blocks in random order with spare ones between.

    The numbers come from a CPU generator, so they are the same on every machine; they are moved to the GPU if there is one.
    """
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-length // block_size) for length in lengths]
    num_blocks = sum(needed) + 2
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.zeros((len(lengths), max(needed)), dtype=torch.int32)
    cache = torch.randn((num_blocks, 2, kv_heads, block_size, head_dim), generator=generator)
    owned = torch.zeros(num_blocks, block_size, dtype=torch.bool)
    for b, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        tables[b, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
        blocks, slots = places(tables[b], length, block_size)
        owned[blocks, slots] = True
    cache = cache.masked_fill(~owned[:, None, None, :, None], float("nan"))
    q = torch.randn((len(lengths), heads, head_dim), generator=generator)
    tensors = (q.to(dtype), cache.to(dtype), tables, torch.tensor(lengths, dtype=torch.int32))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Case(*(tensor.to(device) for tensor in tensors))


def places(table: Tensor, length: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Block and slot of each position of a sequence."""
    positions = torch.arange(length, device=table.device)
    return table[positions // block_size].long(), positions % block_size


def in_float64(case: Case) -> Tensor:
    """What every kernel must give, (B, H, D) in float64 on the CPU."""
    q, cache = case.q.double().cpu(), case.cache.double().cpu()
    tables = case.tables.cpu()
    group = q.shape[1] // cache.shape[2]
    out = torch.empty_like(q)
    for b, length in enumerate(case.lengths.tolist()):
        blocks, slots = places(tables[b], length, cache.shape[3])
        for h in range(q.shape[1]):
            keys = cache[blocks, 0, h // group, slots]
            values = cache[blocks, 1, h // group, slots]
            out[b, h] = (keys @ q[b, h] * case.scale).softmax(0) @ values
    return out


def error(out: Tensor, expected: Tensor) -> float:
    """max |out - expected| / max |expected|; infinite where a value is not finite."""
    out = out.double().cpu()
    if not out.isfinite().all():
        return float("inf")
    return ((out - expected).abs().max() / expected.abs().max()).item()


def show_source(*functions: Any) -> None:
    """Display the source of functions and kernels as a notebook shows code."""
    from IPython.display import display

    text = "\n\n".join(inspect.getsource(getattr(function, "fn", function)).rstrip() for function in functions)
    text = text.replace("  # fmt: skip", "")
    display({"text/plain": text, "text/markdown": f"```python\n{text}\n```"}, raw=True)


# --- step 0: PyTorch -----------------------------------------------------------------------------------------------


def gather(case: Case) -> Tensor:
    """Step 0: copy each sequence's keys and values, then let PyTorch attend."""
    out = torch.empty_like(case.q)
    group = case.q.shape[1] // case.cache.shape[2]
    for b, length in enumerate(case.lengths.tolist()):
        blocks, slots = places(case.tables[b], length, case.cache.shape[3])
        rows = case.cache[blocks, :, :, slots]  # (length, 2, KV, D)
        keys, values = rows.repeat_interleave(group, 2).unbind(1)  # two of (length, H, D)
        weights = (torch.einsum("hd,thd->ht", case.q[b], keys) * case.scale).softmax(-1)
        out[b] = torch.einsum("ht,thd->hd", weights, values)
    return out


# --- step 1: one program, the whole context ------------------------------------------------------------------------


@triton.jit
def whole_kernel(
    q, cache, tables, lengths, out, scale, table_stride,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, CONTEXT: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    head = tl.program_id(1)
    kv_head = head // (H // KV)
    dims = tl.arange(0, D)
    query = tl.load(q + (seq * H + head) * D + dims).to(tl.float32)

    positions = tl.arange(0, CONTEXT)  # a power of two, masked
    valid = positions < tl.load(lengths + seq)
    entries = tables + seq * table_stride + positions // BLOCK_SIZE
    blocks = tl.load(entries, mask=valid, other=0).to(tl.int64)
    rows = (blocks * 2 * KV + kv_head) * BLOCK_SIZE + positions % BLOCK_SIZE
    place = cache + rows[:, None] * D + dims[None, :]
    mask = valid[:, None]
    keys = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(place + KV * BLOCK_SIZE * D, mask=mask, other=0.0).to(tl.float32)

    scores = tl.where(valid, tl.sum(keys * query[None, :], 1) * scale, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 0))
    result = tl.sum(weights[:, None] * values, 0) / tl.sum(weights, 0)
    tl.store(out + (seq * H + head) * D + dims, result.to(out.dtype.element_ty))


def whole(case: Case) -> Tensor:
    """Step 1: one program for each (sequence, query head); it holds the whole context at once."""
    (num_seqs, heads, head_dim), (kv_heads, block_size) = case.q.shape, case.cache.shape[2:4]
    out = torch.empty_like(case.q)
    whole_kernel[(num_seqs, heads)](
        case.q, case.cache, case.tables, case.lengths, out, case.scale, case.tables.stride(0),
        H=heads, KV=kv_heads, D=head_dim, BLOCK_SIZE=block_size,
        CONTEXT=max(16, triton.next_power_of_2(case.tables.shape[1] * block_size)), num_warps=16,
    )  # fmt: skip
    return out


# --- step 2: one tile at a time ------------------------------------------------------------------------------------


@triton.jit
def online_kernel(
    q, cache, tables, lengths, out, scale, table_stride,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    head = tl.program_id(1)
    kv_head = head // (H // KV)
    dims = tl.arange(0, D)
    query = tl.load(q + (seq * H + head) * D + dims).to(tl.float32)
    length = tl.load(lengths + seq)

    top = float("-inf")  # the largest score so far
    norm = 0.0  # the sum of exp(score - top)
    acc = tl.zeros([D], tl.float32)  # the sum of exp(score - top) * value
    for first in range(0, length, TILE):
        # A tile lies in one block.
        block = tl.load(tables + seq * table_stride + first // BLOCK_SIZE).to(tl.int64)
        positions = first + tl.arange(0, TILE)
        valid = positions < length
        slots = (block * 2 * KV + kv_head) * BLOCK_SIZE + positions % BLOCK_SIZE
        place = cache + slots[:, None] * D + dims[None, :]
        mask = valid[:, None]
        keys = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        values = tl.load(place + KV * BLOCK_SIZE * D, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(valid, tl.sum(keys * query[None, :], 1) * scale, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, 0))
        rescale = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top)
        norm = norm * rescale + tl.sum(weights, 0)
        acc = acc * rescale + tl.sum(weights[:, None] * values, 0)
        top = new_top
    tl.store(out + (seq * H + head) * D + dims, (acc / norm).to(out.dtype.element_ty))


def _tile(case: Case) -> int:
    return min(case.cache.shape[3], 64)


def online(case: Case) -> Tensor:
    """Step 2: the same programs, but each walks its context tile by tile with an online softmax."""
    (num_seqs, heads, head_dim), (kv_heads, block_size) = case.q.shape, case.cache.shape[2:4]
    out = torch.empty_like(case.q)
    online_kernel[(num_seqs, heads)](
        case.q, case.cache, case.tables, case.lengths, out, case.scale, case.tables.stride(0),
        H=heads, KV=kv_heads, D=head_dim, BLOCK_SIZE=block_size, TILE=_tile(case),
    )  # fmt: skip
    return out


# --- steps 3 and 4: pack the group, split the context --------------------------------------------------------------


@triton.jit
def packed_kernel(
    q, cache, tables, lengths, out, part_out, part_lse, scale, table_stride,
    G: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    rows = tl.arange(0, ROWS)  # G query heads, padded to what tl.dot needs
    real = (rows < G)[:, None]
    dims = tl.arange(0, D)
    heads = (seq * KV + kv_head) * G + rows
    query = tl.load(q + heads[:, None] * D + dims[None, :], mask=real, other=0.0)
    length = tl.load(lengths + seq)
    share = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE  # tokens of one split

    top = tl.full([ROWS], -1.0e30, tl.float32)  # finite, for splits without tokens
    norm = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    for first in range(split * share, tl.minimum((split + 1) * share, length), TILE):
        block = tl.load(tables + seq * table_stride + first // BLOCK_SIZE).to(tl.int64)
        positions = first + tl.arange(0, TILE)
        valid = positions < length
        slots = (block * 2 * KV + kv_head) * BLOCK_SIZE + positions % BLOCK_SIZE
        place = cache + slots[:, None] * D + dims[None, :]
        mask = valid[:, None]
        keys = tl.load(place, mask=mask, other=0.0)
        values = tl.load(place + KV * BLOCK_SIZE * D, mask=mask, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, 1))
        rescale = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        norm = norm * rescale + tl.sum(weights, 1)
        products = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        acc = acc * rescale[:, None] + products
        top = new_top

    result = acc / tl.maximum(norm, 1.0e-30)[:, None]
    if SPLITS == 1:
        result = result.to(out.dtype.element_ty)
        tl.store(out + heads[:, None] * D + dims[None, :], result, mask=real)
    else:
        parts = heads * SPLITS + split
        tl.store(part_out + parts[:, None] * D + dims[None, :], result, mask=real)
        lse = top + tl.log(tl.maximum(norm, 1.0e-30))
        tl.store(part_lse + parts, lse, mask=rows < G)


@triton.jit
def merge_kernel(out, part_out, part_lse, D: tl.constexpr, SPLITS: tl.constexpr):
    head = tl.program_id(0)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, D)
    lse = tl.load(part_lse + head * SPLITS + splits)
    parts = tl.load(part_out + (head * SPLITS + splits)[:, None] * D + dims[None, :])
    weights = tl.exp(lse - tl.max(lse, 0))
    result = tl.sum(weights[:, None] * parts, 0) / tl.sum(weights, 0)
    tl.store(out + head * D + dims, result.to(out.dtype.element_ty))


def split(case: Case, splits: int = 8) -> Tensor:
    """Step 4: each (sequence, KV head) is shared by `splits` programs (a power of two); a second kernel merges them."""
    (num_seqs, heads, head_dim), (kv_heads, block_size) = case.q.shape, case.cache.shape[2:4]
    out = torch.empty_like(case.q)
    part_out = torch.empty((num_seqs, heads, splits, head_dim), dtype=torch.float32, device=case.q.device)
    part_lse = torch.empty((num_seqs, heads, splits), dtype=torch.float32, device=case.q.device)
    packed_kernel[(num_seqs, kv_heads, splits)](
        case.q, case.cache, case.tables, case.lengths, out, part_out, part_lse, case.scale, case.tables.stride(0),
        G=heads // kv_heads, KV=kv_heads, D=head_dim, BLOCK_SIZE=block_size, TILE=_tile(case),
        ROWS=max(16, triton.next_power_of_2(heads // kv_heads)), SPLITS=splits,
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(num_seqs * heads,)](out, part_out, part_lse, D=head_dim, SPLITS=splits)
    return out


def packed(case: Case) -> Tensor:
    """Step 3: one program for each (sequence, KV head); its query heads are the rows of one small matrix."""
    return split(case, splits=1)


def engine(case: Case, config: DecodeConfig | None = None) -> Tensor:
    """Step 5: the engine's own kernel, `nanovllm.kernels.paged_decode`."""
    longest = case.tables.shape[1] * case.cache.shape[3]
    return paged_decode(case.q, case.cache, case.tables, case.lengths, case.scale, longest, config=config)


def engine_config(case: Case) -> DecodeConfig:
    """The configuration that the engine's kernel takes for a case by itself."""
    num_pairs = len(case.lengths) * case.cache.shape[2]
    return default_config(case.cache.shape[4], case.cache.element_size(), num_pairs)


STEPS: dict[str, Callable[[Case], Tensor]] = {
    "gather": gather,
    "whole": whole,
    "online": online,
    "packed": packed,
    "split": split,
    "engine": engine,
}
"""The steps by name, in the order of the lesson. All but `gather` launch without asking the GPU anything."""

WHOLE_MOST = 1024
"""Tokens of a context that `whole` is tried with at most: registers hold no more."""


# --- bytes, and who waits for whom ---------------------------------------------------------------------------------


def traffic(step: str, group: int) -> int:
    """How often a step moves each key and value, if no cache on the chip helps; `group` query heads share a KV head.

    `gather` reads them and writes a copy, reads that and writes `group` repetitions, and reads those.
    """
    if step == "gather":
        return 3 + 2 * group
    return group if step in ("whole", "online") else 1


class Piece(NamedTuple):
    """A run of tiles of one sequence's KV head that one program computes: when it begins, how long it takes, and whether
    it is only a part of that head's context."""

    sequence: int
    program: int
    start: int
    tiles: int
    partial: bool


def tiles(lengths: Sequence[int], kv_heads: int, tile: int) -> list[tuple[int, int]]:
    """(sequence, number of tiles) of each (sequence, KV head)."""
    return [(b, -(-length // tile)) for b, length in enumerate(lengths) for _ in range(kv_heads)]


def deal_out(work: Sequence[tuple[int, int]], programs: int, splits: int = 1) -> list[Piece]:
    """Cut each piece of work into `splits` parts; every part goes to the program that is free first.

    So a GPU deals out a grid that is larger than what it holds at once.
    """
    free, pieces = [0] * programs, []
    for sequence, count in work:
        part = -(-count // splits)
        for first in range(0, count, part):
            program = free.index(min(free))
            pieces.append(Piece(sequence, program, free[program], min(part, count - first), part < count))
            free[program] += pieces[-1].tiles
    return pieces


def share(program: int, programs: int, total: int) -> tuple[int, int]:
    """First tile and end of a program's even share of `total` tiles."""
    return program * total // programs, (program + 1) * total // programs


def share_out(work: Sequence[tuple[int, int]], programs: int) -> list[Piece]:
    """Number all tiles through and give every program its even share, wherever that cuts."""
    pieces, begin = [], 0
    shares = [share(program, programs, sum(count for _, count in work)) for program in range(programs)]
    for sequence, count in work:
        for program, (first, end) in enumerate(shares):
            low, high = max(first, begin), min(end, begin + count)
            if low < high:
                pieces.append(Piece(sequence, program, low - first, high - low, high - low < count))
        begin += count
    return pieces


def planned(work: Sequence[tuple[int, int]], tile: int, places: int, multiprocessors: int) -> int:
    """Programs to which the engine's plan gives a share of `work`, in tiles of `tile` tokens; the others' are empty.

    As many as if each (sequence, KV head) had the mean length and were cut into pieces of WHOLE tokens, or into more
    where half of the multiprocessors would have none.
    """
    total = sum(count for _, count in work)
    pieces = max(-(-total // (len(work) * max(WHOLE // tile, 1))), multiprocessors // 2 // len(work))
    return min(places, len(work) * pieces, total)


def busiest(pieces: Sequence[Piece]) -> int:
    """When the last program is done, in tiles."""
    return max(piece.start + piece.tiles for piece in pieces)


def tokens_ahead(config: DecodeConfig) -> int:
    """Tokens whose keys and values the programs of one multiprocessor have asked for before they work on them."""
    return config.programs_per_sm * (config.stages - 1) * config.tile


def ragged_lengths(count: int, shortest: int, longest: int, seed: int = 0) -> list[int]:
    """Context lengths drawn evenly between the two, both included."""
    rng = random.Random(seed)
    return [rng.randint(shortest, longest) for _ in range(count)]


# --- online softmax, in PyTorch ------------------------------------------------------------------------------------

State = tuple[Tensor, Tensor, Tensor]
"""Largest score so far (), sum of exp(score - largest) (), sum of exp(score - largest) * value (D)."""


def start_state(head_dim: int) -> State:
    """The state before the first tile."""
    return torch.tensor(float("-inf")), torch.tensor(0.0), torch.zeros(head_dim)


def online_step(state: State, scores: Tensor, values: Tensor) -> State:
    """One tile, scores (T) and values (T, D), taken into the state (Milakov and Gimelshein, arXiv 1805.02867)."""
    top, norm, acc = state
    new_top = torch.maximum(top, scores.max())
    rescale = torch.exp(top - new_top)
    weights = torch.exp(scores - new_top)
    return new_top, norm * rescale + weights.sum(), acc * rescale + weights @ values


def merge(outs: Tensor, lses: Tensor) -> Tensor:
    """Outputs (S, D) of S parts of one context and the log-sum-exp (S) of each part's scores -> the output (D)."""
    return lses.softmax(0) @ outs


# --- time on a GPU -------------------------------------------------------------------------------------------------

QWEN3_06B = {"heads": 16, "kv_heads": 8, "head_dim": 128}
BEYOND_CACHES = 400 * 2**20
"""Bytes that are read before the same ones are read again: more than any GPU's L2 cache holds."""

_NOT_RECORDED = "no GPU here, and no recorded run yet: python benchmarks/record_paged_kernels.py writes it on a GPU"


def workloads(sequences: int = 128, longest: int = 1024, few: int = 4, very_long: int = 4096) -> dict[str, list[int]]:
    """Context lengths to time the steps with: all equal, ragged, and few but very long."""
    return {
        "equal": [longest] * sequences,
        "ragged": ragged_lengths(sequences, min(100, longest // 2), longest),
        "few and long": [very_long] * few,
    }


def time_steps(name: str, lengths: Sequence[int], rounds: int, **shape: Any) -> dict[str, Any]:
    """Seconds of one call of each step, `rounds` samples, and its error on the first few sequences; for `make_case`'s shape.

    On a GPU calls are replayed from a CUDA graph, so that Python's launches do not count. `gather` cannot be recorded, as
    it reads the lengths on the host: that is a part of what it costs.
    """
    cuda = torch.cuda.is_available()
    steps = [step for step in STEPS if step != "whole" or max(lengths) <= WHOLE_MOST]
    few = make_case(lengths[:4], **shape)
    expected = in_float64(few)
    case = make_case(lengths, **shape)
    copies = max(2, -(-BEYOND_CACHES // case.bytes)) if cuda else 1
    cases = [case, *(replace(case, cache=case.cache.clone()) for _ in range(copies - 1))]
    calls = [cases[i % copies] for i in range(max(copies, 12) if cuda else 1)]

    def work(step: str) -> Callable[[], Any]:
        def run() -> Tensor:
            return [STEPS[step](case) for case in calls][-1]

        return CudaGraph(run).replay if cuda and step != "gather" else run

    with torch.inference_mode():
        errors = {step: error(STEPS[step](few), expected) for step in steps}
        samples = roofline.seconds_each({step: work(step) for step in steps}, case.q.device, rounds)
    rows = [{"step": step, "error": errors[step], "seconds": [s / len(calls) for s in samples[step]]} for step in steps]
    return {"name": name, "lengths": list(lengths), "bytes": case.bytes, "steps": rows}


def step_runs() -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Timed workloads by run, "recorded" and, on a machine with a GPU, "here"; and a badge for each, or one that says why none."""
    runs, badges = {}, []
    try:
        run = recorded.load("paged_kernels")
        runs["recorded"], badges = run["workloads"], [run.badge]
    except FileNotFoundError:
        pass
    if torch.cuda.is_available():
        shape = {"block_size": 256, "dtype": torch.bfloat16, **QWEN3_06B}
        runs["here"] = [time_steps(name, lengths, 5, **shape) for name, lengths in workloads().items()]
        badges.append(f"measured now on {torch.cuda.get_device_name()}")
    return runs, badges or [_NOT_RECORDED]


class ConfigTimes(NamedTuple):
    """Medians of one configuration in the record: microseconds of a call, and output tokens/s of the whole bench."""

    config: DecodeConfig
    alone: float
    between: float
    bench: float


def config_times(run: recorded.Recorded) -> list[ConfigTimes]:
    """The rows of the record "decode_configs"."""
    return [
        ConfigTimes(
            DecodeConfig(**row["config"]), *(statistics.median(row[k]) for k in ("alone_us", "between_us", "bench"))
        )
        for row in run["rows"]
    ]


# --- pictures ------------------------------------------------------------------------------------------------------


def draw_cache(case: Case) -> Any:
    """The cache as a grid of blocks and slots: whose token lies where, and where nobody's does."""
    block_size, num_blocks = case.cache.shape[3], case.cache.shape[0]
    figure, axes = plots.figure(figsize=(7.6, 0.9 + 0.3 * num_blocks))
    for block in range(num_blocks):
        axes.broken_barh([(0, block_size)], (block - 0.4, 0.8), facecolors="#E4E4E0", edgecolor="white", hatch="////")
    lengths, table = case.lengths.tolist(), case.tables.tolist()
    for b, length in enumerate(lengths):
        for first in range(0, length, block_size):
            block = table[b][first // block_size]
            spans = [(slot, 1) for slot in range(min(block_size, length - first))]
            axes.broken_barh(spans, (block - 0.4, 0.8), facecolors=plots.COLOURS[b], edgecolor="white", linewidth=0.8)
            last = min(first + block_size, length) - 1
            axes.text(block_size + 0.3, block, f"{'ABCDEFG'[b]}, tokens {first} to {last}", va="center", fontsize=8)
    axes.set(xlabel="slot", ylabel="block", xlim=(0, block_size * 1.35), ylim=(num_blocks - 0.5, -0.5))
    axes.set_yticks(range(num_blocks))
    axes.set_xticks(range(0, block_size + 1, 4))
    axes.grid(visible=False)
    axes.set_title("One layer's cache: hatched slots belong to nobody and hold NaN")
    return figure


def draw_online(scores: Tensor, values: Tensor, tile: int) -> Any:
    """The running maximum, tile by tile; and the error after each tile, with and without rescaling what was summed."""
    figure, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.2))
    places = range(len(scores))
    left.plot(places, scores, "o", markersize=3, color=plots.COLOURS[6], label="scores")
    tops = [scores[: first + tile].max().item() for first in range(0, len(scores), tile) for _ in range(tile)]
    left.step(places, tops[: len(scores)], where="mid", color=plots.COLOURS[1], label="running maximum")
    left.set(xlabel="position", title=f"Scores, read {tile} at a time")
    left.legend(loc="lower right")
    for name, rescaled, colour in (("rescaled", True, plots.COLOURS[2]), ("not rescaled", False, plots.COLOURS[1])):
        state, errors = start_state(values.shape[1]), []
        for first in range(0, len(scores), tile):
            top, norm, acc = state
            state = online_step(state, scores[first : first + tile], values[first : first + tile])
            if not rescaled and first:
                state = (state[0], state[1], state[2] + acc * (1 - torch.exp(top - state[0])))
            exact = scores[: first + tile].softmax(0) @ values[: first + tile]
            errors.append((state[2] / state[1] - exact).abs().max().item())
        right.plot(range(1, len(errors) + 1), errors, marker="o", color=colour, label=f"acc {name}")
    right.set(yscale="log", xlabel="tiles read", ylabel="error of acc / norm", title="What forgetting costs")
    right.legend()
    return figure


def draw_shares(longest: int, programs: int) -> Any:
    """Which program computes which tiles of six sequences, the longest of `longest` tokens: three ways to share the work."""
    lengths = [longest, 80, 160, 48, 112, 64]
    work = tiles(lengths, kv_heads=2, tile=16)
    total = sum(count for _, count in work)
    ways = {
        "a program for each (sequence, head)": deal_out(work, programs),
        "each cut into 4": deal_out(work, programs, splits=4),
        "even shares": share_out(work, programs),
    }
    figure, axes = plots.figure(len(ways), 1, figsize=(8.4, 1.2 + len(ways) * (0.7 + 0.11 * programs)), sharex=True)
    for axis, (name, pieces) in zip(axes, ways.items(), strict=True):
        for piece in pieces:
            axis.broken_barh(
                [(piece.start, piece.tiles)],
                (piece.program - 0.42, 0.84),
                facecolors=plots.COLOURS[piece.sequence],
                edgecolor="white",
                linewidth=1,
            )
        end = busiest(pieces)
        axis.set(
            title=f"{name}: done after {end} tiles, {total / (end * programs):.0%} of the places at work, "
            f"{sum(piece.partial for piece in pieces)} partial results",
            ylim=(programs - 0.5, -0.5),
            ylabel="program",
        )
        axis.set_yticks(range(0, programs, max(1, programs // 4)))
        axis.grid(axis="y", visible=False)
    axes[-1].set_xlabel("time, in tiles")
    axes[-1].set_xlim(0, max(busiest(pieces) for pieces in ways.values()) + 0.5)
    handles = [axes[0].plot([], [], "s", color=plots.COLOURS[b])[0] for b in range(len(lengths))]
    names = [f"{'ABCDEF'[b]}, {length} tokens" for b, length in enumerate(lengths)]
    figure.legend(handles, names, loc="outside lower center", ncols=len(lengths), fontsize=8, handletextpad=0.1)
    return figure


def draw_rates(run: recorded.Recorded) -> Any:
    """Recorded TB/s of the engine's kernel and of flash-attn against the batch, beside a plain copy."""
    figure, axes = plots.figure(1, 2, figsize=(9.0, 3.4), sharey=True)
    rates = {row["kernel"]: row["bytes"] / roofline.median_ms(row["us"]) / 1e3 for row in run["rows"] if "bytes" in row}
    for axis, kind in zip(axes, ("equal", "ragged"), strict=True):
        for name, label, marker in (("triton", "our kernel", "o"), ("flash_attn", "flash-attn", "s")):
            found = [
                (batch, rates[key])
                for batch in (1, 8, 32, 128, 256)
                if (key := f"decode {kind} batch {batch} block 256 {name}") in rates
            ]
            axis.plot(*zip(*found), marker=marker, label=label)
        axis.axhline(rates["device copy, 1 GiB"], color=plots.COLOURS[6], linestyle="--", label="a copy")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lengths = "1,024 tokens each" if kind == "equal" else "100 to 1,024 tokens"
        axis.set(xlabel="sequences", title=lengths, ylim=(0, None))
    axes[0].set_ylabel("TB/s")
    axes[0].legend(loc="lower right")
    return figure


def draw_steps(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """TB/s of each step, and microseconds beside it: a panel for each workload, a colour for each run."""
    number = max(map(len, runs.values()))
    figure, axes = plots.figure(1, number, figsize=(3.4 * number, 3.4), sharey=True, squeeze=False)
    names = list(STEPS)
    for index, (label, workloads_) in enumerate(runs.items()):
        height = 0.8 / len(runs)
        for axis, load in zip(axes[0], workloads_):
            for row in load["steps"]:
                seconds = 1e-3 * roofline.median_ms(row["seconds"])
                rate, place = (
                    load["bytes"] / seconds / 1e12,
                    names.index(row["step"]) + (index - (len(runs) - 1) / 2) * height,
                )
                first = row is load["steps"][0]
                axis.barh(place, rate, height, color=plots.COLOURS[index], label=label if first else None)
                axis.text(rate, place, f" {1e6 * seconds:,.0f} µs", va="center", fontsize=8)
            for missing in sorted(set(names) - {row["step"] for row in load["steps"]}):
                axis.text(0, names.index(missing), " contexts too long for it", va="center", fontsize=8)
            axis.set(
                xlabel="TB/s", title=f"{load['name']}: {len(load['lengths'])}, up to {max(load['lengths']):,} tokens"
            )
            axis.margins(x=0.3)
            axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    if len(runs) > 1:
        axes[0, 0].legend(loc="upper right")
    return figure


def draw_configs(times: Sequence[ConfigTimes]) -> Any:
    """What the whole bench does against what a call takes, alone and between other kernels: a colour for each configuration."""
    figure, axis = plots.figure(figsize=(7.2, 3.6))
    for row, colour in zip(times, plots.COLOURS, strict=False):
        config = row.config
        axis.plot([row.alone, row.between], [row.bench, row.bench], color=colour, linewidth=1)
        axis.plot(row.alone, row.bench, "o", color=colour, markerfacecolor="white")
        axis.plot(row.between, row.bench, "o", color=colour)
        warps = "1 warp" if config.warps == 1 else f"{config.warps} warps"
        words = f"{config.programs_per_sm} programs of {warps}, {config.stages} tiles of {config.tile} in hand"
        axis.annotate(
            words, (row.between, row.bench), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    axis.plot([], [], "o", color=plots.COLOURS[6], markerfacecolor="white", label="alone")
    axis.plot([], [], "o", color=plots.COLOURS[6], label="between other kernels")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set(xlabel="µs a call (neither axis begins at 0)", ylabel="the bench, tokens/s")
    axis.set_title("Faster alone is not faster in the whole")
    axis.margins(x=0.4, y=0.2)
    axis.legend(loc="lower right")
    return figure


# --- exercises of notebook 10 --------------------------------------------------------------------------------------

_UNWRITTEN = -7777.0


@checker("gather-kernel")
def _gather_kernel(kernel: Any) -> str:
    case = make_case([37, 5], seed=3)
    num_blocks, _, kv_heads, block_size, head_dim = case.cache.shape
    length, used = 37, 3
    # A wrong address should give a wrong number and no crash: there is room around both tensors.
    room = case.cache.new_full((3 * num_blocks, *case.cache.shape[1:]), float("nan"))
    cache = room[num_blocks : 2 * num_blocks].copy_(case.cache)
    rows = 3 * num_blocks * block_size
    for head in range(kv_heads):
        pool = case.q.new_full((3 * rows, head_dim), _UNWRITTEN)
        kernel[(used,)](cache, case.tables[0], pool[rows:], length, head, kv_heads, block_size, head_dim)
        pool = pool.cpu()
        out, written = pool[rows : rows + length], pool != _UNWRITTEN
        if not written.any():
            raise NotDone("Nothing was written to out yet.")
        if written[rows + length :].any():
            raise Wrong("Rows past the length were written: the last block is not full, so mask what you store.")
        if written[:rows].any():
            raise Wrong("Rows before the beginning of out were written. Program i writes the rows from i * 16 on.")
        if not written[rows : rows + length].all():
            row = int((~written[rows : rows + length]).any(1).nonzero()[0])
            raise Wrong(f"Row {row} of out was not written. Program i writes the rows from i * 16 on.")
        blocks, slots = places(case.tables[0].cpu(), length, block_size)
        want = case.cache.cpu()[blocks, 0, head, slots]
        if not torch.equal(out, want):
            raise Wrong(_explain(out, want, case, head))
    return "Each program looked up its own block: paging costs one more load"


def _explain(out: Tensor, want: Tensor, case: Case, head: int) -> str:
    cache, table = case.cache.cpu(), case.tables[0].tolist()
    block_size = cache.shape[3]
    row = int((out != want).any(1).nonzero()[0])
    said = f"For KV head {head}, row {row} of out is not the key of position {row}."
    if out[row].isnan().any():
        return f"{said} It is NaN, so you read a slot that nobody owns: the table says in which block a position lies."
    same = (cache == out[row]).all(-1).nonzero().tolist()
    if not same:
        return (
            f"{said} It is no key at all: a block is 2 * KV * BLOCK_SIZE * D numbers, a head BLOCK_SIZE * D, a slot D."
        )
    block, part, found, slot = same[0]
    return (
        f"{said} That key lies in block {table[row // block_size]}, KV head {head}, slot {row % block_size}; your kernel read "
        f"block {block}, {'a value' if part else 'a key'} of KV head {found}, slot {slot}."
    )


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("online-step")
def _online_step(step: Callable[[State, Tensor, Tensor], State]) -> str:
    scores, values = _random(12, seed=1), _random(12, 3, seed=2)
    hint = (
        "before it m is -inf and exp(old - new) is 0, so what is left is max(s), sum exp(s - max), sum exp(s - max) v"
    )
    first = step(start_state(3), scores[:4], values[:4])
    for name, got, want in zip(("m", "n", "a"), first, online_step(start_state(3), scores[:4], values[:4])):
        expect_close(f"After one tile, {name}", got, want, tol=1e-5, hint=hint)
    hints = {
        "falling": "the largest score so far stays the largest",
        "rising": "when the maximum grows, n and a both shrink by exp(old - new)",
    }
    for words, hint in hints.items():
        order = scores.sort(descending=words == "falling")[0]
        state, wanted = start_state(3), start_state(3)
        for at in range(0, 12, 4):
            state = step(state, order[at : at + 4], values[at : at + 4])
            wanted = online_step(wanted, order[at : at + 4], values[at : at + 4])
        for name, got, want in zip(("m", "n", "a"), state, wanted):
            expect_close(f"With {words} scores, after three tiles, {name}", got, want, tol=1e-5, hint=hint)
    large = step(step(start_state(3), scores[:6] + 1000, values[:6]), scores[6:] + 1000, values[6:])
    hint = "subtract the maximum before exp: exp(1000) is infinite"
    want = (scores + 1000).softmax(0) @ values
    expect_close("With all scores larger by 1,000, a / n", large[2] / large[1], want, tol=1e-4, hint=hint)
    return "Two numbers and a vector are all that a softmax over any length has to remember"


@checker("even-shares")
def _even_shares(share_: Callable[[int, int, int], tuple[int, int]]) -> str:
    for total, programs in ((12, 4), (10, 4), (3, 5), (4096, 528), (1, 1)):
        shares = [tuple(int(tile) for tile in share_(program, programs, total)) for program in range(programs)]
        what = f"With {total} tiles and {programs} programs"
        sizes = [end - first for first, end in shares]
        begins, ends = [first for first, _ in shares], [end for _, end in shares]
        expect_equal(f"{what}, the beginning of the first share", begins[0], 0)
        expect_equal(
            f"{what}, the end of the last share",
            ends[-1],
            total,
            hint="an end is the first tile that a program does not take",
        )
        if begins[1:] != ends[:-1]:
            at = next(p for p in range(programs - 1) if ends[p] != begins[p + 1])
            raise Wrong(
                f"{what}, program {at} ends at {ends[at]} and program {at + 1} begins at {begins[at + 1]}. A share ends where "
                "the next begins: no tile twice, none left out."
            )
        if max(sizes) - min(sizes) > 1 or min(sizes) < 0:
            raise Wrong(
                f"{what}, shares have {min(sizes)} to {max(sizes)} tiles. They may differ by one: the step ends with the "
                "largest.",
                lambda axis, sizes=sizes: _draw_sizes(axis, sizes),
            )
    return "Whatever the lengths, nobody waits for more than one tile"


def _draw_sizes(axis: Any, sizes: Sequence[int]) -> None:
    axis.bar(range(len(sizes)), sizes, width=1.0, edgecolor="white", linewidth=0.3)
    axis.set(xlabel="program", ylabel="tiles", title="Your shares")
