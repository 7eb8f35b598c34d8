"""What notebook 07 uses: two real processes that share a layer, and what sharing costs.

The processes of `Ranks` import this module, so what they run must live here and not in a notebook: a spawned process cannot
see a notebook's functions. They get their commands as the engine's own workers do, through `SharedMemoryCommands`.
"""

from __future__ import annotations

import pickle
import signal
import statistics
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from course import plots
from course.anatomy import PUBLISHED, parameters_by_part
from course.exercises import Wrong, checker, expect_close, expect_equal
from nanovllm import SamplingParams
from nanovllm.attention import get_backend
from nanovllm.attention.base import AttentionMetadata
from nanovllm.config import ModelConfig
from nanovllm.engine import tensor_parallel as engine
from nanovllm.engine.input_batch import prepare_inputs
from nanovllm.engine.scheduler import Batch, ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.loader import load_model
from nanovllm.utils.memory import kv_bytes_per_token

TIMEOUT = timedelta(minutes=2)
PIECE_BYTES = engine.SEGMENT_BYTES - engine._HEADER.size
"""Bytes of a message that one filling of the shared segment holds."""


@dataclass(frozen=True)
class CountedGroup(TensorParallel):
    """A rank's place in the group, which also writes down every collective that its layers ask for.

    Attributes:
        calls: kind and bytes of each collective so far.
        skip: number of an all-reduce to leave out (the first is 0), to see what happens; None leaves out none.
    """

    calls: list[tuple[str, int]] = field(default_factory=list)
    skip: int | None = None

    def all_reduce(self, x: Tensor) -> Tensor:
        self.calls.append(("all-reduce", x.nbytes))
        if self.skip == sum(kind == "all-reduce" for kind, _ in self.calls) - 1:
            return x
        return super().all_reduce(x)

    def all_gather_last(self, x: Tensor) -> Tensor:
        self.calls.append(("all-gather", x.nbytes))
        return super().all_gather_last(x)


# --- processes -----------------------------------------------------------------------------------------------------


class Ranks:
    """Processes with one thread each, joined in a gloo group, that run functions of this module all at once.

    Raises:
        RuntimeError: a process ended or raised; the message says what.
    """

    def __init__(self, size: int = 2):
        context = get_context("spawn")
        self.size = size
        self._store = dist.TCPStore(engine.LOOPBACK, 0, is_master=True, wait_for_workers=False)
        self._commands = engine.SharedMemoryCommands(context, size)
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        self._answers = [receive for receive, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, size, self._store.port, self._commands, send), daemon=True)
            for rank, (_, send) in enumerate(pipes)
        ]
        for process, (_, send) in zip(self._processes, pipes, strict=True):
            process.start()
            send.close()  # the process has its own end: when it goes, the pipe breaks
        # Also where the object is dropped, as when a notebook's cell runs twice, or the program ends.
        self._release = weakref.finalize(self, _end, self._processes, self._answers, self._commands)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run ``function(tp, *args)`` on every rank, `tp` being its `CountedGroup`; return the results by rank."""
        self._commands.send(engine.pack("run", function, args), self._check)
        found = [self._receive(rank) for rank in range(self.size)]
        for rank, (failed, result) in enumerate(found):
            if failed:
                raise RuntimeError(f"rank {rank} raised an error:\n{result}")
        return [result for _, result in found]

    def close(self) -> None:
        """End the processes and give back what they shared. A second call does nothing."""
        self._release()
        self._store = None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, rank: int) -> tuple[bool, Any]:
        try:
            return pickle.loads(self._answers[rank].recv_bytes())
        except EOFError:
            self._processes[rank].join(engine.GRACE_SECONDS)
            raise RuntimeError(f"rank {rank} ended with exit code {self._processes[rank].exitcode}.") from None

    def _check(self) -> None:
        for rank, process in enumerate(self._processes):
            if process.exitcode is not None:
                raise RuntimeError(f"rank {rank} ended with exit code {process.exitcode}.")


def _end(processes: list, answers: list, commands: engine.SharedMemoryCommands) -> None:
    for process in processes:
        process.kill()
        process.join()
    for answer in answers:
        answer.close()
    commands.close()


def _serve(rank: int, size: int, port: int, commands: engine.SharedMemoryCommands, answers: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=engine._end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    store = dist.TCPStore(engine.LOOPBACK, port, wait_for_workers=False)
    group = engine.make_group(store, rank, size, torch.device("cpu"), local=True, timeout=TIMEOUT)
    while True:
        _, (function, args) = pickle.loads(commands.receive(rank + 1))
        try:
            with torch.inference_mode():
                answer = (False, function(CountedGroup(rank, size, group), *args))
        except Exception:
            answer = (True, traceback.format_exc())
        answers.send_bytes(pickle.dumps(answer))


def run_alone(function: Callable[..., Any], *args: Any) -> list[Any]:
    """The same as ``Ranks(1).run``, in this process."""
    with torch.inference_mode():
        return [function(CountedGroup(), *args)]


def message_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Bytes of the command that `Ranks.run` sends."""
    return len(engine.pack("run", function, args))


def step_message_bytes(num_sequences: int, context: int, block_size: int = 16) -> int:
    """Bytes of what rank 0 sends for the forward pass of a step in which so many sequences decode at that context length."""
    scheduled = []
    for seq_id in range(num_sequences):
        seq = Sequence(seq_id, [0] * context, SamplingParams())
        seq.num_computed_tokens = context - 1
        seq.block_table = [0] * -(-context // block_size)
        scheduled.append(ScheduledSequence(seq, 1))
    inputs = prepare_inputs(Batch(scheduled, num_sequences), block_size, torch.device("cpu"))
    return len(engine.pack("forward_shard", inputs))


# --- what the processes run ----------------------------------------------------------------------------------------


def column_shard(weight: Tensor, rank: int, size: int) -> Tensor:
    """weight (out, in) -> this rank's outputs (out / size, in): rows, since weights are stored as (out, in)."""
    return weight.chunk(size, dim=0)[rank]


def row_shard(weight: Tensor, rank: int, size: int) -> Tensor:
    """weight (out, in) -> this rank's inputs (out, in / size)."""
    return weight.chunk(size, dim=1)[rank]


def parallel_mlp(tp: CountedGroup, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, list]:
    """x (T, hidden) -> this rank's partial sum, the whole result (T, hidden), and the collectives that it took."""
    gate, up = column_shard(gate, tp.rank, tp.size), column_shard(up, tp.rank, tp.size)
    hidden = F.silu(x @ gate.T) * (x @ up.T)  # (T, intermediate / size): needs nothing from the other ranks
    partial = hidden @ row_shard(down, tp.rank, tp.size).T  # (T, hidden): the sum over this rank's inputs
    return partial.clone(), tp.all_reduce(partial), tp.calls


def parallel_lookup(tp: CountedGroup, token_ids: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """token_ids (T), table (V, hidden) -> the rows that this rank knows, zeros elsewhere, and all rows (T, hidden)."""
    rows = table.shape[0] // tp.size
    found = lookup(token_ids, table[tp.rank * rows : (tp.rank + 1) * rows], tp.rank * rows)
    return found.clone(), tp.all_reduce(found)


def lookup(token_ids: Tensor, table: Tensor, first: int) -> Tensor:
    """token_ids (T), rows `first`, `first` + 1, ... of a table -> their rows (T, hidden), zeros for ids held elsewhere."""
    local = token_ids - first
    mine = (local >= 0) & (local < len(table))
    return table[local.clamp(0, len(table) - 1)] * mine[:, None]


def parallel_logits(tp: CountedGroup, hidden: Tensor, table: Tensor) -> Tensor:
    """hidden (B, hidden), table (V, hidden) -> logits (B, V), whole on every rank."""
    return tp.all_gather_last(hidden @ column_shard(table, tp.rank, tp.size).T)


def parallel_model(tp: CountedGroup, folder: Path, token_ids: list[int], skip: int | None = None) -> dict[str, Any]:
    """The engine's model on this rank's share of the weights, over one prompt.

    Returns: logits (T, V), the collectives, and how many parameters and KV heads this rank holds.
    """
    tp = CountedGroup(tp.rank, tp.size, tp.group, skip=skip)
    config = ModelConfig.from_folder(folder)
    model = Qwen3ForCausalLM(config, get_backend("reference"), tp, max_positions=len(token_ids)).eval()
    load_model(model, folder)
    block_size = 16
    num_blocks = -(-len(token_ids) // block_size)
    for layer in model.attention_layers():
        layer.kv_cache = torch.zeros(num_blocks, 2, layer.num_kv_heads, block_size, layer.head_dim)

    def index(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    length = len(token_ids)
    metadata = AttentionMetadata(
        query_start=index([0, length]),
        context_lens=index([length]),
        block_tables=index(range(num_blocks)).unsqueeze(0),
        slot_mapping=index(range(length)),
        num_decodes=0,
        max_query_len=length,
        max_context_len=length,
    )
    hidden = model(torch.tensor(token_ids), torch.arange(length), metadata)
    return {
        "logits": model.compute_logits(hidden),
        "calls": tp.calls,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "kv_heads": model.attention_layers()[0].num_kv_heads,
    }


def checksum(tp: CountedGroup, message: bytes) -> tuple[int, int]:
    """What a rank received: the number of bytes, and their sum."""
    return len(message), sum(message)


def time_all_reduce(tp: CountedGroup, sizes: list[int], repeats: int = 40) -> list[float]:
    """Median seconds of an all-reduce of each number of bytes, after a warm-up."""
    medians = []
    for size in [sizes[0], *sizes]:  # the first round is the warm-up
        x = torch.zeros(max(1, size // 4))
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            tp.all_reduce(x)
            seconds.append(time.perf_counter() - began)
        medians.append(statistics.median(seconds))
    return medians[1:]


# --- how much each rank holds --------------------------------------------------------------------------------------


def share(config: ModelConfig, size: int, itemsize: int = 2) -> tuple[int, int]:
    """Bytes that one of `size` ranks holds: of the weights, and of the KV cache for one token.

    Raises:
        ValueError: the engine cannot share this model between `size` ranks; says why.
    """
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config, get_backend("reference"), TensorParallel(0, size), max_positions=1)
    weights = itemsize * sum(parameter.numel() for parameter in model.parameters())
    attention = model.attention_layers()[0]
    return weights, kv_bytes_per_token(config.num_hidden_layers, attention.num_kv_heads, config.head_dim, itemsize)


def decode_step_seconds(llm: Any, batch: int = 8, steps: int = 30) -> float:
    """Median seconds of a step in which `batch` sequences decode."""
    params = SamplingParams(temperature=0, max_tokens=steps + 6, ignore_eos=True)
    ids = [llm.add_request([5 + index, 17, 29], params) for index in range(batch)]
    seconds = []
    while llm.has_unfinished:
        stats = llm.step()
        if stats.num_decode_tokens == batch:
            seconds.append(stats.seconds)
    for each in ids:
        llm.take_output(each)
    return statistics.median(seconds[5:])


# --- the cost model ------------------------------------------------------------------------------------------------


def num_collectives(config: ModelConfig) -> int:
    """Collectives of a step: two sums a layer, one for the embedding, and one after the LM head.

    Whose kernel sums does not change their number. The last one gathers the logits, or takes the maximum of what the ranks
    have drawn from theirs. Where rank 0 draws, it broadcasts the tokens as well: once a step, and not among these.
    """
    return 2 * config.num_hidden_layers + 2


def read_bytes(config: ModelConfig, itemsize: int = 2) -> int:
    """Weights that a decode step reads over all ranks: everything but the embedding's table, of which it reads a few rows."""
    parts = parameters_by_part(config)
    table = config.vocab_size * config.hidden_size
    return itemsize * (sum(parts.values()) - parts["embedding"] - parts["LM head"] + table)


def step_parts(config: ModelConfig, size: int, bandwidth: float, fixed: float, collective: float) -> dict[str, float]:
    """The cost model: seconds of a decode step at short contexts, by part.

    Args:
        size: ranks.
        bandwidth: bytes a second that one rank reads.
        fixed: seconds of a step that more ranks do not shorten, such as launching kernels one by one.
        collective: seconds of one small all-reduce.
    """
    return {
        "fixed": fixed,
        "weights": read_bytes(config) / size / bandwidth,
        "collectives": num_collectives(config) * collective if size > 1 else 0.0,
    }


def break_even(config: ModelConfig, size: int, bandwidth: float) -> float:
    """Seconds that one collective may take at most for `size` ranks to be no slower than one."""
    saved = read_bytes(config) / bandwidth * (1 - 1 / size)
    return saved / num_collectives(config)


def recorded_parts(run: Any, config: ModelConfig) -> dict[str, dict[str, float]]:
    """Milliseconds of a recorded run's median steps, "1 GPU" and "2 GPUs", by the cost model's parts and the KV cache.

    Only the reading of the weights and of the prompts' KV cache is halved, and all the rest of one GPU's step is "fixed".
    What two GPUs take on top is then the least that collectives and waiting cost: whatever else is halved in truth, they
    cost more. Where two GPUs take less than that, part of the rest was halved as well: then it is "fixed" that is smaller,
    and the least is 0.
    """
    one, two, work = run["median_of_one_process"], run.median, run["workload"]
    a_millisecond = BYTES_A_SECOND[run["device"]["name"]] / 1e3
    reading = read_bytes(config) / a_millisecond
    cached = kv_read_bytes(config, work["batch"], work["prompt_tokens"]) / a_millisecond
    fixed = one - reading - cached
    rest = two - (reading + cached) / 2
    shared = min(fixed, rest)
    return {
        "1 GPU": {"fixed": fixed, "weights": reading, "KV cache": cached, "collectives": 0.0},
        "2 GPUs": {"fixed": shared, "weights": reading / 2, "KV cache": cached / 2, "collectives": rest - shared},
    }


def kv_read_bytes(config: ModelConfig, batch: int, context: int, itemsize: int = 2) -> int:
    """KV cache that a decode step reads over all ranks: each of `batch` sequences looks at `context` tokens."""
    heads, layers = config.num_key_value_heads, config.num_hidden_layers
    return batch * context * kv_bytes_per_token(layers, heads, config.head_dim, itemsize)


def collective_us(run: Any, config: ModelConfig) -> dict[str, float]:
    """Microseconds of each collective of a recorded run on two GPUs, with the waiting around it.

    A kernel that does more than the sum counts with what it takes longer than the same without the sum on one GPU.

    Returns: "least", were nothing but the bytes read halved (`recorded_parts`); "most", were all of one GPU's step halved;
    "goal", what `GOAL` would leave for each, were all halved.
    """
    half = run["median_of_one_process"] / 2
    milliseconds = {
        "least": recorded_parts(run, config)["2 GPUs"]["collectives"],
        "most": run.median - half,
        "goal": run["median_of_one_process"] / GOAL - half,
    }
    return {name: each / num_collectives(config) * 1e3 for name, each in milliseconds.items()}


def times_as_fast(run: Any) -> float:
    """One GPU's median step over two GPUs', cut after two digits and not rounded up."""
    return int(100 * run["median_of_one_process"] / run.median) / 100


# --- pictures ------------------------------------------------------------------------------------------------------

PART_COLOURS = dict(zip(("fixed", "weights", "KV cache", "collectives"), (plots.COLOURS[i] for i in (6, 0, 2, 1))))
PART_NAMES = {
    "fixed": "all else",
    "weights": "reading weights",
    "KV cache": "reading the KV cache",
    "collectives": "collectives and waiting",
}
BYTES_A_SECOND = {"NVIDIA H100 80GB HBM3": 3.08e12, "NVIDIA H200": 4.8e12}
"""What a GPU reads a second: the H100 as measured (benchmarks/peers.json), the H200 by its data sheet."""
H100_BYTES_A_SECOND = BYTES_A_SECOND["NVIDIA H100 80GB HBM3"]
GOAL = 1.7
"""Times as fast as one GPU that two were to be."""


def draw_split() -> Any:
    """An MLP on two ranks: which part of each matrix a rank holds, and where the one all-reduce is."""
    from matplotlib.patches import Rectangle

    figure, axes = plots.figure(figsize=(10.0, 3.5))

    def matrix(x: float, y: float, width: float, height: float, cut: str, title: str, size: str) -> None:
        for rank in (0, 1):
            half = (x + rank * width / 2, y, width / 2, height) if cut == "columns" else (x, y, width, height)
            if cut == "rows":
                half = (x, y + (1 - rank) * height / 2, width, height / 2)
            style = {"facecolor": plots.COLOURS[rank], "alpha": 0.55, "edgecolor": "white", "linewidth": 1.5}
            if cut == "none":
                style |= {"facecolor": "#C9CDD2", "alpha": 1.0}
            axes.add_patch(Rectangle(half[:2], half[2], half[3], **style))
            if cut != "none":
                middle = (half[0] + half[2] / 2, half[1] + half[3] / 2)
                axes.text(*middle, f"rank {rank}", ha="center", va="center", fontsize=9)
        axes.text(x + width / 2, y + height + 0.12, title, ha="center", fontsize=10)
        axes.text(x + width / 2, y - 0.12, size, ha="center", va="top", fontsize=8.5, color="#5A5F66")

    def sign(x: float, text: str) -> None:
        axes.text(x, 1.6, text, ha="center", va="center", fontsize=11)

    matrix(0.0, 1.3, 1.0, 0.6, "none", "x", "T × hidden")
    sign(1.25, "×")
    matrix(1.5, 0.9, 2.0, 1.4, "columns", "gateᵀ and upᵀ", "hidden × intermediate")
    sign(4.0, "silu,\nproduct\n→")
    matrix(4.5, 1.3, 2.0, 0.6, "columns", "hidden values", "T × intermediate")
    sign(6.75, "×")
    matrix(7.0, 0.5, 1.0, 2.2, "rows", "downᵀ", "intermediate × hidden")
    sign(8.8, "→ all-reduce →")
    matrix(9.6, 1.3, 1.0, 0.6, "none", "y", "T × hidden")
    axes.text(2.5, 0.25, "column parallel", ha="center", fontsize=9, style="italic")
    axes.text(7.5, 0.0, "row parallel", ha="center", fontsize=9, style="italic")
    axes.set(xlim=(-0.2, 10.8), ylim=(-0.15, 3.1), aspect="equal")
    axes.axis("off")
    return figure


def draw_cost(model: str, collective_us: float, fixed_ms: float, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Any:
    """The cost model as stacked bars, one for each number of ranks, on an H100's bandwidth."""
    figure, axes = plots.figure(figsize=(7.4, 3.6))
    config = PUBLISHED[model]
    totals = []
    for row, size in enumerate(sizes):
        parts = step_parts(config, size, H100_BYTES_A_SECOND, fixed_ms / 1e3, collective_us / 1e6)
        left = 0.0
        for part, seconds in parts.items():
            axes.barh(row, seconds * 1e3, left=left, color=PART_COLOURS[part], label=part if row == 0 else None)
            left += seconds * 1e3
        totals.append(left)
    for row, total in enumerate(totals):
        note = f" {total:.2f} ms" + (f", {totals[0] / total:.2f} ×" if row else "")
        axes.text(total, row, note, va="center", fontsize=9)
    axes.set_yticks(range(len(sizes)), [f"{size} rank{'s' if size > 1 else ''}" for size in sizes])
    axes.invert_yaxis()
    limit = break_even(config, 2, H100_BYTES_A_SECOND) * 1e6
    axes.set(
        xlim=(0, 1.3 * max(totals)),
        xlabel="milliseconds a decode step (model, not measured)",
        title=f"{model}, {collective_us:g} µs a collective; two ranks pay below {limit:.1f} µs",
    )
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_recorded(runs: dict[str, Any]) -> Any:
    """Every recorded step of each run, one process and two, with medians."""
    figure, axes = plots.figure(1, len(runs), figsize=(9.6, 3.2))
    for axis, (title, run) in zip(axes, runs.items(), strict=True):
        for row, (label, samples) in enumerate((("1 GPU", run["samples_of_one_process"]), ("2 GPUs", run["samples"]))):
            heights = [row + 0.25 * ((7 * i) % 11 / 10 - 0.5) for i in range(len(samples))]
            axis.plot(samples, heights, "o", markersize=4, alpha=0.5, color=plots.COLOURS[row])
            median = statistics.median(samples)
            axis.plot([median] * 2, [row - 0.3, row + 0.3], color="#2B2B2B", linewidth=2)
            axis.text(median, row - 0.34, f"{label}: {median:.1f} ms", ha="center", va="bottom", fontsize=9)
        axis.set(
            xlim=(0, 1.16 * axis.dataLim.xmax), ylim=(1.5, -0.65), yticks=[], xlabel="ms a decode step", title=title
        )
    return figure


def draw_recorded_parts(runs: dict[str, Any], config: ModelConfig) -> Any:
    """`recorded_parts` of each run as stacked bars, two runs a row, and where the goal for two GPUs is.

    Runs below each other have the same axis.
    """
    rows = -(-len(runs) // 2)
    figure, axes = plots.figure(rows, 2, figsize=(9.6, 0.6 + 2.3 * rows), sharex="col", squeeze=False)
    for number, (title, run) in enumerate(runs.items()):
        axis = axes[number // 2, number % 2]
        parts = recorded_parts(run, config)
        widest = max(sum(each.values()) for each in parts.values())
        for row, each in enumerate(parts.values()):
            left = 0.0
            for part, milliseconds in each.items():
                axis.barh(
                    row, milliseconds, left=left, color=PART_COLOURS[part], label=None if row else PART_NAMES[part]
                )
                if milliseconds > widest / 20:
                    where = {"ha": "center", "va": "center", "color": "white", "fontsize": 9}
                    where["bbox"] = {
                        "facecolor": PART_COLOURS[part],
                        "edgecolor": "none",
                        "pad": 1,
                    }  # over the goal's line
                    axis.text(left + milliseconds / 2, row, f"{milliseconds:.1f}", **where)
                left += milliseconds
        goal = run["median_of_one_process"] / GOAL
        axis.axvline(goal, color="#2B2B2B", linestyle="--", linewidth=1.5, label=f"{GOAL} times as fast as 1 GPU")
        axis.set_yticks(range(len(parts)), list(parts))
        axis.invert_yaxis()
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
    for axis in axes[-1]:
        axis.set(xlim=(0, 1.04 * axis.get_xlim()[1]), xlabel="ms a decode step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def draw_all_reduce(sizes: list[int], seconds: list[float]) -> Any:
    """Seconds of an all-reduce against its bytes, on logarithmic axes."""
    figure, axes = plots.figure(figsize=(6.4, 3.2))
    axes.plot(sizes, [each * 1e6 for each in seconds], marker="o")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size // 1024} KiB" if size < 2**20 else f"{size // 2**20} MiB" for size in sizes])
    low, high = axes.get_ylim()
    axes.set_yticks(ticks := [n * 10**e for e in range(6) for n in (1, 2, 5) if low <= n * 10**e <= high], ticks)
    axes.minorticks_off()
    axes.set(xlabel="bytes", ylabel="microseconds", title="All-reduce between two processes of this machine (gloo)")
    return figure


# --- exercises of notebook 07 --------------------------------------------------------------------------------------


@checker("rank-rows")
def _rank_rows(rows: Callable[[int, int, int, int, int], list[int]]) -> str:
    from nanovllm.layers.linear import QKVParallelLinear

    cases = [
        (4, 2, 2, "q is rows 0 to 7, k 8 to 11, v 12 to 15: each rank takes its heads from each of the three parts"),
        (8, 4, 2, "cut q, k and v one by one, and join this rank's parts"),
        (8, 4, 4, "four ranks: two query heads and one KV head each"),
        (8, 2, 4, "more ranks than KV heads: ranks 0 and 1 hold the same KV head, ranks 2 and 3 the other"),
        (8, 1, 4, "with one KV head every rank holds it"),
    ]
    head_dim = 2
    for heads, kv_heads, size, hint in cases:
        total = (heads + 2 * kv_heads) * head_dim
        labels = torch.arange(total, dtype=torch.float32)[:, None]  # every row carries its own number
        q, k, v = labels.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        for rank in range(size):
            layer = QKVParallelLinear(1, heads, kv_heads, head_dim, bias=False, tp=TensorParallel(rank, size))
            for shard, part in zip("qkv", (q, k, v), strict=True):
                layer.load_shard(layer.weight, part, shard)
            want = [int(value) for value in layer.weight[:, 0]]
            got = list(rows(heads, kv_heads, head_dim, rank, size))
            what = f"{heads} query heads, {kv_heads} KV heads of {head_dim}, rank {rank} of {size}: the rows"
            even = -(-total // size)
            if got != want and got == list(range(rank * even, min(total, (rank + 1) * even))):
                raise Wrong(
                    f"You cut the packed matrix into {size} equal pieces. Of {heads} query and {kv_heads} KV heads rank 0 "
                    "would get mostly queries and the last rank all the values."
                )
            expect_equal(what, got, want, hint)
    return "These are the rows that the engine's own layer loads, replicated KV heads included"


@checker("local-lookup")
def _local_lookup(local_lookup: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(12, 3, generator=generator)
    token_ids = torch.tensor([0, 7, 5, 11, 6, 7])
    parts = [local_lookup(token_ids.clone(), table[first : first + 6].clone(), first) for first in (0, 6)]
    for part, first in zip(parts, (0, 6), strict=True):
        mine = (token_ids >= first) & (token_ids < first + 6)
        if part.shape == (6, 3) and not torch.equal(part[~mine], torch.zeros_like(part[~mine])):
            raise Wrong(
                f"The rank with rows {first} to {first + 5} returns numbers for ids that it does not hold, "
                f"{token_ids[~mine].tolist()}. The all-reduce would add them to the right rows: they must be 0."
            )
        want = lookup(token_ids, table[first : first + 6], first)
        hint = f"row {first} of the whole table is row 0 of this rank's part"
        expect_close(f"for the rank with rows {first} to {first + 5} the result", part, want, 1e-6, hint)
    expect_close("the sum over both ranks", parts[0] + parts[1], table[token_ids])
    return "The parts add up to the whole table's rows: one all-reduce, and no rank ever held the table"


@checker("break-even")
def _break_even(largest: Callable[[float, int, int], float]) -> str:
    got = largest(8e-3, 2, 36)
    known = {
        8e-3 / 74: "With 2 ranks each still reads half of the weights: only 4 of the 8 ms are saved.",
        4e-3 / 36: "There are two all-reduces in a layer: one after attention, one after the MLP.",
        4e-3 / 38: "There are two all-reduces in a layer: one after attention, one after the MLP.",
        4e-3 / 72: "Nearly: the embedding needs an all-reduce as well, and the logits an all-gather or a maximum.",
        4e-3 / 73: "Nearly: the embedding needs an all-reduce as well, and the logits an all-gather or a maximum.",
    }
    for value, message in known.items():
        if isinstance(got, float) and abs(got - value) < 1e-9:
            raise Wrong(message)
    expect_close("for 8 ms of reading, 2 ranks and 36 layers the limit in seconds", got, 4e-3 / 74, 1e-9)
    expect_close("for 8 ms, 8 ranks and 36 layers the limit", largest(8e-3, 8, 36), 7e-3 / 74, 1e-9)
    return (
        "Eight ranks may take 1.75 times as long for a collective as two, and no number of ranks may take twice as long"
    )
