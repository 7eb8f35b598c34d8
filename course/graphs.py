"""CUDA graphs to take apart: a real one where there is a GPU, elsewhere a stand-in with the same rules.

The stand-in (`CpuGraph`) writes down every operation of a step with the very tensors that it read and wrote, and replays
the list: same addresses, Python not asked again, host values frozen, and no reading of a tensor on the host meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


_HOST_READS = {"_local_scalar_dense": "a number was read on the host", "nonzero": "a shape depends on values"}


class _Recorder(TorchDispatchMode):
    """Runs operations as usual and appends those that compute something; a view computes nothing."""

    def __init__(self, launches: list[Launch], strict: bool) -> None:
        super().__init__()
        self.launches = launches
        self.strict = strict

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if self.strict and name in _HOST_READS:
            raise CaptureError(
                f"{name}: {_HOST_READS[name]}, but a recording has no values yet. "
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
