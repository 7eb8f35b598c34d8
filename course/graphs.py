"""CUDA graphs to take apart: a real one where there is a GPU, elsewhere a stand-in with the same rules.

The stand-in (`CpuGraph`) writes down every operation of a step with the very tensors that it read and wrote, and replays
the list: same addresses, Python not asked again, host values frozen, and no reading of a tensor on the host meanwhile.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from course import plots
from course.exercises import Wrong, checker, expect_close, expect_equal
from nanovllm.attention import AttentionMetadata

Step = Callable[[], Tensor]


class CaptureError(RuntimeError):
    """A step did during capture what no graph can hold."""


# --- recording and replaying ---------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """One recorded operation: the function, the arguments it read, the tensors it wrote (those of the capture)."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """The operation's name in PyTorch, such as ``mm``."""
        return self.function.overloadpacket.__name__


def _host_read(name: str, args: Sequence[Any]) -> str | None:
    """Why the host would have to wait for a value of this operation's arguments, if so."""
    if name == "_local_scalar_dense":
        return "a number was read on the host"
    masks = name in ("index", "index_put", "index_put_") and any(
        isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
    )
    # One number written at a mask's places needs no count of them.
    if name == "nonzero" or (masks and not (len(args) > 2 and args[2].numel() == 1)):
        return "a shape depends on values"
    return None


class _Recorder(TorchDispatchMode):
    """Runs operations as usual and appends those that compute something; a view computes nothing."""

    def __init__(self, launches: list[Launch], strict: bool) -> None:
        super().__init__()
        self.launches = launches
        self.strict = strict

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        problem = _host_read(name, args) if self.strict else None
        if problem:
            raise CaptureError(
                f"{name}: {problem}, but a recording has no values yet. "
                "On a GPU the capture fails here: operation not permitted when stream is capturing."
            )
        result = function(*args, **kwargs)
        outputs = tuple(part for part in _flat(result) if isinstance(part, Tensor))
        if outputs and not _is_view(function, outputs, args):
            self.launches.append(Launch(function, args, kwargs, outputs))
        return result


class CpuGraph:
    """A recording of a step on any device, kept in a Python list.

    Attributes:
        launches: what was recorded, in order.
        output: the tensor that the step returned; every replay writes it anew.
    """

    def __init__(self, step: Step) -> None:
        self.launches: list[Launch] = []
        with torch.no_grad(), _Recorder(self.launches, strict=True):
            self.output = step()

    @torch.no_grad()
    def replay(self) -> None:
        """Run the recorded operations again, on the recorded tensors."""
        for function, args, kwargs, outputs in self.launches:
            for made, place in zip(_flat(function(*args, **kwargs)), outputs, strict=False):
                if made is not place:
                    place.copy_(made)


class CudaGraph:
    """The same recording made by CUDA.

    Attributes:
        output: the tensor that the step returned; every replay writes it anew.
    """

    def __init__(self, step: Step, pool: Any = None) -> None:
        with torch.no_grad():
            # Lazy set-up (libraries, compiled kernels) must be over, and may not happen on the capturing stream.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, pool=pool):
                    self.output = step()
            except RuntimeError as error:
                raise CaptureError(str(error).splitlines()[0]) from error

    def replay(self) -> None:
        """Launch the whole recording with one call."""
        self.graph.replay()


def capture(step: Step, device: torch.device | str) -> CpuGraph | CudaGraph:
    """Record `step`, a function without arguments that returns one tensor, for `device`.

    Raises:
        CaptureError: the step read a value on the host while it was recorded.
    """
    return CudaGraph(step) if torch.device(device).type == "cuda" else CpuGraph(step)


@torch.no_grad()
def launches(step: Step) -> list[str]:
    """The names of PyTorch's operations in `step` that launch work, in order; views are not among them."""
    found: list[Launch] = []
    with _Recorder(found, strict=False):
        step()
    return [launch.name for launch in found]


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _is_view(function: Any, outputs: Sequence[Tensor], args: Sequence[Any]) -> bool:
    """Whether the outputs are only other ways to look at an argument, which nothing has written."""
    if function._schema.is_mutable:
        return False
    storages = {part.untyped_storage().data_ptr() for arg in args for part in _flat(arg) if isinstance(part, Tensor)}
    return all(output.untyped_storage().data_ptr() in storages for output in outputs)


# --- a decode step of the engine's model ---------------------------------------------------------------------------


class StaticAttention:
    """Attention for decode steps, of plain PyTorch operations whose shapes do not depend on values.

    Slot -1, which means "write nowhere", falls into the last slot of the last block, as negative indices do in Python:
    no block table may hold that block.
    """

    name = "static"
    supports_cuda_graphs = True
    fused = False

    def fuses(self, qkv: Tensor) -> bool:
        """Never: every operation is a launch of its own here."""
        return False

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """q (B, H, D), k and v (B, KV, D), kv_cache (num_blocks, 2, KV, block_size, D) -> (B, H, D)."""
        block_size = kv_cache.shape[3]
        slots = metadata.slot_mapping.long()
        blocks = slots.div(block_size, rounding_mode="floor")
        for kind, new in enumerate((k, v)):
            kv_cache[:, kind].transpose(1, 2).index_put_((blocks, slots % block_size), new)
        gathered = kv_cache[metadata.block_tables.long()].permute(2, 0, 3, 1, 4, 5)  # (2, B, KV, N, block_size, D)
        keys, values = gathered.flatten(3, 4)
        # A padding row has context length 0; one slot keeps its softmax finite, and nobody reads the result.
        seen = torch.arange(keys.shape[2], device=q.device) < metadata.context_lens.clamp(min=1)[:, None]
        rows = q.view(len(q), keys.shape[1], -1, q.shape[-1])  # the query heads of one KV head side by side
        scores = (rows @ keys.transpose(-1, -2) * scale).masked_fill(~seen[:, None, None], float("-inf"))
        return (scores.softmax(-1) @ values).reshape(q.shape)


class DecodeStep:
    """A decode step with static inputs: every call reads the same tensors, of which `size` rows are in use.

    Args:
        model: the engine's model, its KV caches in place.
        size: sequences in the batch.
        max_blocks: width of a block table.
        device: where the model is.

    Attributes:
        token_ids, positions: (size) int64. slot_mapping, context_lens: (size) int32. block_tables: (size, max_blocks)
            int32. As in `nanovllm.attention.AttentionMetadata`.
    """

    def __init__(self, model: Any, size: int, max_blocks: int, device: torch.device | str) -> None:
        self.model = model
        self.token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.positions = torch.zeros(size, dtype=torch.int64, device=device)
        self.slot_mapping = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.context_lens = torch.zeros(size, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(size, max_blocks, dtype=torch.int32, device=device)
        self._rows = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._size = size

    def __call__(self) -> Tensor:
        """Logits (size, vocab_size) of whatever the inputs hold."""
        block_size = self.model.attention_layers()[0].kv_cache.shape[3]
        metadata = AttentionMetadata(
            query_start=self._rows,
            context_lens=self.context_lens,
            block_tables=self.block_tables,
            slot_mapping=self.slot_mapping,
            num_decodes=self._size,
            max_query_len=1,
            max_context_len=self.block_tables.shape[1] * block_size,
        )
        return self.model.compute_logits(self.model(self.token_ids, self.positions, metadata))

    def fill(self, token_ids: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]) -> None:
        """Write one row a sequence: its token, the token's position, its blocks. The other rows become padding."""
        block_size = self.model.attention_layers()[0].kv_cache.shape[3]
        slots = [
            table[p // block_size] * block_size + p % block_size for p, table in zip(positions, tables, strict=True)
        ]
        rows = len(token_ids)
        padding = self._size - rows

        def put(target: Tensor, values: Sequence[Any]) -> None:
            target.copy_(torch.tensor(values, dtype=target.dtype))

        put(self.token_ids, [*token_ids, *[0] * padding])
        put(self.positions, [*positions, *[0] * padding])
        put(self.slot_mapping, [*slots, *[-1] * padding])
        put(self.context_lens, [*(p + 1 for p in positions), *[0] * padding])
        width = self.block_tables.shape[1]
        put(self.block_tables, [[*table, *[0] * (width - len(table))] for table in [*tables, *[[]] * padding]])


def static_model(llm: Any, num_blocks: int, block_size: int) -> Any:
    """The model inside `llm` once more, in float64, with `StaticAttention` and a KV cache of its own.

    float64 so that every operation is PyTorch's own (the engine has faster paths for float32 on a CPU, which a recorder
    does not see), and so that a wrong result is a mistake and not rounding. The last block is a waste bin, see
    `StaticAttention`.
    """
    original = llm.model_runner.model
    # The engine's own cache stays where it is: it may fill the GPU.
    memo = {id(layer.kv_cache): None for layer in original.attention_layers()}
    model = copy.deepcopy(original, memo).double()
    for module in model.modules():
        if hasattr(module, "fused"):
            module.fused = False  # on a GPU the engine's model runs Triton kernels, which compute in float32
    for layer in model.attention_layers():
        layer.backend = StaticAttention()
        shape = (num_blocks + 1, 2, layer.num_kv_heads, block_size, layer.head_dim)
        layer.kv_cache = torch.zeros(shape, dtype=torch.float64, device=llm.model_runner.device)
    return model


def generate(
    run: Callable[[], Tensor], step: DecodeStep, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """Greedy tokens of `prompts` by decode steps alone: a prompt, too, is read token by token.

    `run` computes the step on its static inputs and returns logits: the step itself, or a replay. Sequence i uses the
    blocks from i * width on, where width is that of the step's block tables.
    """
    width = step.block_tables.shape[1]
    tables = [list(range(row * width, (row + 1) * width)) for row in range(len(prompts))]
    known = [list(prompt) for prompt in prompts]
    for position in range(max(map(len, prompts)) + num_tokens - 1):
        running = [row for row, ids in enumerate(known) if position < len(prompts[row]) + num_tokens - 1]
        step.fill(
            [known[row][position] for row in running], [position] * len(running), [tables[row] for row in running]
        )
        drawn = run()[: len(running)].argmax(-1).tolist()
        for row, token in zip(running, drawn, strict=True):
            if position == len(known[row]) - 1:
                known[row].append(token)
    return [ids[len(prompt) :] for ids, prompt in zip(known, prompts, strict=True)]


def kept_bytes(graph: CpuGraph) -> int:
    """Bytes of all tensors that a recording writes and nothing outside it owns: each storage once."""
    storages = {}
    for launch in graph.launches:
        if not launch.function._schema.is_mutable:
            for output in launch.outputs:
                storages[output.untyped_storage().data_ptr()] = output.untyped_storage().nbytes()
    return sum(storages.values())


# --- time ----------------------------------------------------------------------------------------------------------


def timeline(kernels: Sequence[float], launch: float, gap: float = 0.0) -> list[tuple[float, float, float]]:
    """When each kernel's launch call ends, when it starts and when it ends, in the unit of the arguments.

    The host calls one launch after the other, each takes `launch`; the device runs kernels in order, each `gap` after the
    one before at the earliest and never before its launch is done.
    """
    rows, free = [], 0.0
    for index, kernel in enumerate(kernels):
        called = (index + 1) * launch
        start = max(called, free + (gap if index else 0.0))
        free = start + kernel
        rows.append((called, start, free))
    return rows


def replayed(kernels: Sequence[float], launch: float, gap: float = 0.0) -> list[tuple[float, float, float]]:
    """The same kernels in a graph: one call launches all."""
    return [(launch, start + launch, end + launch) for _, start, end in timeline(kernels, 0.0, gap)]


def operation_seconds(sizes: Sequence[int], device: torch.device, repeats: int = 200) -> dict[int, float]:
    """Seconds of one ``x + x`` of float32 by the number of elements: the best of five rows of many in one go."""
    from course import roofline

    found = {}
    with torch.inference_mode():
        for size in sizes:
            x = torch.ones(size, device=device)
            out = torch.empty_like(x)
            count = max(3, min(repeats, 2**24 // size))

            def work(x: Tensor = x, out: Tensor = out, count: int = count) -> None:
                for _ in range(count):
                    torch.add(x, x, out=out)

            found[size] = min(roofline.seconds_each({0: work}, device, 5)[0]) / count
    return found


# --- pictures ------------------------------------------------------------------------------------------------------


def draw_timelines(rows: Mapping[str, Sequence[tuple[float, float, float]]], unit: str = "µs") -> Any:
    """For each name two lanes: the host's launch calls and the device's kernels."""
    figure, axes = plots.figure(len(rows), 1, figsize=(8.4, 0.7 + 1.35 * len(rows)), sharex=True, squeeze=False)
    for axis, (name, spans) in zip(axes[:, 0], rows.items(), strict=True):
        calls = sorted({called for called, _, _ in spans})
        host = [(before, called - before) for before, called in zip([0.0, *calls], calls)]
        axis.broken_barh(host, (0.55, 0.4), facecolors=plots.COLOURS[1], edgecolor="white", linewidth=0.4)
        device = [(start, end - start) for _, start, end in spans]
        axis.broken_barh(device, (0.05, 0.4), facecolors=plots.COLOURS[0], edgecolor="white", linewidth=0.4)
        end = spans[-1][2]
        busy = sum(length for _, length in device) / end
        axis.set(title=f"{name}: {end:,.0f} {unit}, the device works for {busy:.0%} of the time", ylim=(0, 1))
        axis.set_yticks([0.25, 0.75], ["device", "host"])
        axis.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel(unit)
    return figure


def draw_model_timeline(kernel: float, launch: float, number: int = 40) -> Any:
    """Timelines of `number` equal kernels, launched one by one and as a graph; times in microseconds."""
    kernels = [kernel] * number
    return draw_timelines({"one by one": timeline(kernels, launch), "as a graph": replayed(kernels, launch)})


def covered(spans: Sequence[Sequence[Any]]) -> float:
    """The time in which at least one of the spans (start, length, ...) runs; a kernel that starts early overlaps the one before."""
    total, reached = 0.0, float("-inf")
    for start, length, *_ in sorted(spans, key=lambda span: span[0]):
        total += max(0.0, start + length - max(start, reached))
        reached = max(reached, start + length)
    return total


def draw_profile(profile: Mapping[str, Any], microseconds: float) -> Any:
    """The first microseconds of a recorded step: launch calls and kernels, eagerly and replayed."""
    figure, axes = plots.figure(2, 1, figsize=(8.4, 3.4), sharex=True)
    for axis, (name, title) in zip(axes, (("eager", "launched one by one"), ("replay", "as a graph")), strict=True):
        for height, key, colour in ((0.55, "calls", plots.COLOURS[1]), (0.05, "kernels", plots.COLOURS[0])):
            spans = [(start, length) for start, length, _ in profile[name][key] if start < microseconds]
            axis.broken_barh(spans, (height, 0.4), facecolors=colour, edgecolor="white", linewidth=0.2)
        kernels = profile[name]["kernels"]
        end = kernels[-1][0] + kernels[-1][1]
        calls = len(profile[name]["calls"])
        axis.set(
            title=f"{title}: {calls} call{'s' if calls > 1 else ''}, {len(kernels)} kernels, {end / 1e3:.2f} ms, "
            f"a kernel runs in {covered(kernels) / 1e3:.2f} of them",
            ylim=(0, 1),
            xlim=(0, microseconds),
        )
        axis.set_yticks([0.25, 0.75], ["GPU", "host"])
        axis.grid(axis="y", visible=False)
    axes[-1].set_xlabel(f"the first {microseconds:,.0f} µs of a step (a profiler makes every call slower)")
    return figure


def draw_operations(seconds: Mapping[int, float], device: str) -> Any:
    """Microseconds of one addition against the number of elements."""
    figure, axes = plots.figure()
    axes.plot(list(seconds), [1e6 * s for s in seconds.values()], marker="o")
    axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="µs", title=f"One addition on {device}")
    floor = min(seconds.values())
    axes.axhline(1e6 * floor, color=plots.COLOURS[1], linestyle="--", label=f"{1e6 * floor:.1f} µs, whatever the size")
    axes.legend()
    return figure


def draw_buckets(sizes: Sequence[int]) -> Any:
    """The recorded size that serves each batch, and the share of rows that are padding."""
    figure, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.2))
    batches = range(1, sizes[-1] + 1)
    padded = [min(size for size in sizes if size >= batch) for batch in batches]
    left.step(batches, padded, where="mid", color=plots.COLOURS[0], label="rows computed")
    left.plot(batches, batches, color=plots.COLOURS[1], linewidth=1, label="sequences")
    left.set(xlabel="sequences", ylabel="rows", title=f"{len(sizes)} recorded sizes")
    left.legend()
    right.plot(batches, [100 * (size - batch) / size for batch, size in zip(batches, padded)], color=plots.COLOURS[2])
    right.set(xlabel="sequences", ylabel="% of the rows", title="Padding", ylim=(0, 60))
    return figure


def draw_steps(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Milliseconds a decode step against the batch, eagerly and replayed."""
    figure, axes = plots.figure()
    for name, label, marker in (("eager", "launched one by one", "o"), ("replay", "as a graph", "s")):
        axes.plot(
            [row["batch"] for row in rows],
            [1e3 * statistics.median(row[name]) for row in rows],
            marker=marker,
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="sequences in the batch", ylabel="ms a step", title=title, ylim=(0, None))
    axes.legend()
    return figure


# --- exercises -----------------------------------------------------------------------------------------------------


@checker("step-time")
def _step_time(step_time: Any) -> str:
    cases = (([1.0, 20.0, 1.0, 1.0], 4.0), ([5.0] * 4, 2.0), ([1.0] * 10, 4.0), ([10.0, 1.0, 1.0, 1.0], 4.0))
    for kernels, launch in cases:
        want = timeline(kernels, launch)[-1][2]
        got = step_time(list(kernels), launch)
        where = f"for kernels of {kernels} µs and {launch:g} µs a launch"
        if got == len(kernels) * launch + sum(kernels):
            raise Wrong(f"You return {got:g} µs {where}. Host and device work at the same time: the sum is too much.")
        if got == max(len(kernels) * launch, sum(kernels)) != want:
            raise Wrong(
                f"You return {got:g} µs {where}, but it is {want:g}. The larger of both sums is only a lower bound: no "
                "kernel starts before its own launch is done, and the last one still has to run.",
                lambda axis, k=kernels, la=launch: _draw_spans(axis, timeline(k, la)),
            )
        expect_close(f"the time {where}", got, want)
    return "Short kernels wait for the host, long ones hide it"


def _draw_spans(axis: Any, rows: Sequence[tuple[float, float, float]]) -> None:
    axis.broken_barh([(start, end - start) for _, start, end in rows], (0.05, 0.4), facecolors=plots.COLOURS[0])
    ends = [called for called, _, _ in rows]
    axis.broken_barh(
        [(a, b - a) for a, b in zip([0.0, *ends], ends)], (0.55, 0.4), facecolors=plots.COLOURS[1], ec="white"
    )
    axis.set_yticks([0.25, 0.75], ["device", "host"])
    axis.set_xlabel("µs")


@checker("branch-free")
def _branch_free(choose: Any) -> str:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    noise = -(-torch.rand(4, 9, generator=generator, dtype=torch.float64).log()).log()  # Gumbel noise
    temperatures = torch.zeros(4, dtype=torch.float64)
    first = choose(logits.clone(), temperatures, noise.clone())
    if not isinstance(first, Tensor) or first.shape != (4,):
        raise Wrong(f"Return a tensor of 4 token ids, one a row, not {first!r}.")
    try:
        graph = CpuGraph(lambda: choose(logits, temperatures, noise))
    except CaptureError as error:
        raise Wrong(f"Your function cannot be recorded. {error}") from None
    for case in ([0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.5, 3.0], [2.0, 0.0, 0.0, 0.7]):
        temperatures.copy_(torch.tensor(case, dtype=torch.float64))
        graph.replay()
        want = [
            int((row / t + drawn).argmax() if t else row.argmax())
            for row, t, drawn in zip(logits, case, noise, strict=True)
        ]
        got = graph.output.tolist()
        hint = "both answers have to be computed, and torch.where chooses between them"
        expect_equal(f"recorded once and replayed at the temperatures {case}, the tokens", got, want, hint)
    return "Recorded once, right for every mixture of temperatures"


@checker("static-inputs")
def _static_inputs(fill: Any) -> str:
    def fresh() -> dict[str, Tensor]:
        rows = {"token_ids": 0, "positions": 0, "slot_mapping": -1, "context_lens": 0}
        return {name: torch.full((4,), value) for name, value in rows.items()}

    static = fresh()
    addresses = {name: tensor.data_ptr() for name, tensor in static.items()}
    batches = (
        {"token_ids": [5, 6, 7, 8], "positions": [3, 9, 1, 4], "slot_mapping": [35, 9, 17, 68]},
        {"token_ids": [50, 60], "positions": [4, 10], "slot_mapping": [36, 10]},
    )
    for batch in batches:
        rows = len(batch["token_ids"])
        fill(static, {name: torch.tensor(values) for name, values in batch.items()})
        moved = [name for name, tensor in static.items() if tensor.data_ptr() != addresses[name]]
        if moved:
            raise Wrong(
                f"static[{moved[0]!r}] is another tensor now. The graph goes on reading the old one: write into it, with "
                "copy_ on its first rows."
            )
        for name, values in batch.items():
            expect_equal(f"with {rows} sequences, {name} of the first rows", static[name][:rows].tolist(), values)
        wanted = [position + 1 for position in batch["positions"]]
        hint = "the new token attends to itself"
        expect_equal(f"with {rows} sequences, their context_lens", static["context_lens"][:rows].tolist(), wanted, hint)
        padding = 4 - rows
        for name, value, hint in (
            (
                "slot_mapping",
                -1,
                "a row that an earlier, larger batch left behind writes into a cache that is not its own",
            ),
            ("context_lens", 0, "padding rows would read blocks for nothing"),
        ):
            expect_equal(
                f"with {rows} sequences, {name} of the padding", static[name][rows:].tolist(), [value] * padding, hint
            )
    return "Same addresses, new values, and padding that neither reads nor writes"
