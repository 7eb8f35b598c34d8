"""Owns the model and its KV cache, and executes one step."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nanovllm.attention import AttentionMetadata, get_backend
from nanovllm.config import EngineConfig, ModelConfig
from nanovllm.engine.cuda_graphs import DecodeGraphs, bucket_sizes
from nanovllm.engine.input_batch import Drawn, StepInputs, prepare_inputs, prepare_sampling
from nanovllm.engine.scheduler import Batch
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.packed import pack_weights
from nanovllm.layers.sampler import apply_penalties, sample, top_logprobs
from nanovllm.models import MODELS
from nanovllm.models.summing_norms import sum_in_norms
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.inboxes import Inboxes, open_inboxes
from nanovllm.utils.loader import load_model
from nanovllm.utils.memory import kv_block_bytes, num_kv_blocks

if TYPE_CHECKING:
    from nanovllm.engine.decode_rows import DecodeRows, RowChanges

logger = logging.getLogger(__name__)

_WARM_UP_SAMPLING = SamplingParams(temperature=1.0, top_p=0.9)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device='cuda', but PyTorch sees no CUDA device; allowed here: 'cpu', 'auto'.")
    return torch.device("cuda", torch.cuda.current_device()) if available and name != "cpu" else torch.device("cpu")


def choose_dtype(name: str, model_config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" takes float32 on a CPU (bfloat16 is emulated on most) and else the checkpoint's."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else model_config.dtype
    return getattr(torch, name)


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention backend's name; "auto" takes our compiled loops on a CPU and our Triton kernels on a GPU."""
    if name != "auto":
        return name
    chosen, reason = "reference", f"no other backend serves {dtype} on {device.type}"
    if device.type == "cuda":
        try:
            importlib.import_module("nanovllm.attention.triton")
            chosen, reason = "triton", "the device is a GPU"
        except ImportError as error:
            reason = f"the Triton backend cannot be imported ({error})"
    elif dtype == torch.float32:
        chosen, reason = "numba", "the device is a CPU and the dtype float32"
    logger.info("attention_backend='auto' chose %r: %s", chosen, reason)
    return chosen


def largest_step(num_tokens: int, longest: int, max_num_seqs: int) -> list[int]:
    """Tokens of each sequence of a step that fills the budget with the longest sequences and what is left of it."""
    whole, rest = divmod(num_tokens, longest)
    return ([longest] * whole + [rest] * (rest > 0))[:max_num_seqs]


class LaunchedStep:
    """A step on its way: the host may go on, and ask for the tokens when it needs them.

    Args:
        drawn: (R) int64, the tokens that the step draws, on the device; may be overwritten by the next step.
        rows: for each entry of the batch the row of its token, or None where it samples none.
        wait: waits for the event that ends the step, None on a CPU, and raises where the step turns out to have failed.
    """

    def __init__(self, drawn: torch.Tensor, rows: list[int | None], wait: Callable[[torch.cuda.Event | None], None]):
        self._rows = rows
        self._wait = wait
        self._event: torch.cuda.Event | None = None
        self._host = drawn
        if drawn.is_cuda:
            self._host = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
            self._host.copy_(drawn, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        elif drawn.numel():
            self._host = drawn.clone()

    def tokens(self) -> list[int | None]:
        """Waits for the step. A token for each entry of the batch that samples, None for the others."""
        self._wait(self._event)
        tokens = self._host.tolist()
        return [None if row is None else tokens[row] for row in self._rows]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class ModelRunner:
    """Loads the model, measures how many KV blocks fit, allocates them, and turns batches into tokens.

    Args:
        config: the engine's settings.
        model_config: the checkpoint's shape.
        folder: the checkpoint.
        max_model_len: most tokens of one sequence; the KV cache may lower it.
        tp: this process's place among those that share the model.

    Attributes:
        num_kvcache_blocks, block_size: the KV cache's size.
        runs_ahead: whether the engine should launch a step before it reads the tokens of the one before.
        failure: why the processes that share the model can no longer compute, or None.

    Raises:
        ValueError: settings and model do not fit together, or the memory does not hold a single block.
    """

    failure: str | None = None

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        folder: Path,
        max_model_len: int,
        tp: TensorParallel | None = None,
    ):
        tp = self._tp = tp or TensorParallel()
        self.config = config
        self.model_config = model_config
        self.max_model_len = max_model_len
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, model_config, self.device)
        backend_name = choose_backend(config.attention_backend, self.device, self.dtype)
        self.block_size = config.kvcache_block_size or (256 if backend_name == "flash_attn" else 16)
        backend = get_backend(backend_name)
        backend.check(block_size=self.block_size, head_dim=model_config.head_dim, dtype=self.dtype, device=self.device)
        self.attention_backend = backend_name
        self.fused = backend.fused
        with _default_dtype(self.dtype), torch.device(self.device):
            model_class = MODELS[model_config.model_type]
            self.model = model_class(model_config, backend, tp, max_positions=max_model_len)
        load_model(self.model, folder)
        if backend_name == "numba":
            pack_weights(self.model)
        self._inboxes = self._open_inboxes()
        if self._inboxes:
            sum_in_norms(self.model, tp, self._inboxes)
        self.uses_graphs = self.device.type == "cuda" and not config.enforce_eager and backend.supports_cuda_graphs
        self.rows: DecodeRows | None = None
        if self.uses_graphs:
            from nanovllm.engine.decode_rows import DecodeRows  # needs Triton, which a CPU machine may not have

            self.rows = DecodeRows(config.max_num_seqs, max_model_len, self.block_size, self.device)
        self._drawn: Drawn | None = None  # by the last launched step
        self._row_logits: torch.Tensor | None = None  # of the last replay
        ahead = config.async_scheduling
        self.runs_ahead = self.device.type == "cuda" if ahead is None else ahead
        # A block table means the same blocks on every rank: all have as many as the rank with the least room.
        self.num_kvcache_blocks = tp.minimum(self._count_kv_blocks(), self.device)
        self._allocate_kv_cache(self.num_kvcache_blocks)
        self.graphs = self._make_graphs() if self.uses_graphs else None
        if self.graphs:
            self.graphs.record()

    def _open_inboxes(self) -> Inboxes | None:
        """Memory that the ranks write into each other's, where our kernels run and the ranks can."""
        if self._tp.size == 1 or not self.fused:
            return None
        return open_inboxes(self._tp, self.model_config.hidden_size, self.dtype, self.device)

    # KV cache

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers, on this rank."""
        layers = self.model.attention_layers()
        return kv_block_bytes(
            len(layers), self.block_size, layers[0].num_kv_heads, layers[0].head_dim, self.dtype.itemsize
        )

    def _count_kv_blocks(self) -> int:
        config = self.config
        if config.num_kvcache_blocks is not None:
            return config.num_kvcache_blocks
        if self.device.type == "cpu":
            budget = int(config.cpu_kvcache_gib * 2**30)
            most_useful = config.max_num_seqs * -(-self.max_model_len // self.block_size)
            num_blocks = min(budget // self.block_bytes, most_useful)
            setting = f"cpu_kvcache_gib={config.cpu_kvcache_gib}"
        else:
            self._warm_up()
            reserved = self._measure_graphs() if self.uses_graphs else 0
            free, total = torch.cuda.mem_get_info(self.device)
            stats = torch.cuda.memory_stats(self.device)
            num_blocks = num_kv_blocks(
                total=total,
                utilization=config.gpu_memory_utilization,
                used=total - free,
                peak=stats["allocated_bytes.all.peak"],
                current=stats["allocated_bytes.all.current"],
                block_bytes=self.block_bytes,
                reserved=reserved,
            )
            setting = f"gpu_memory_utilization={config.gpu_memory_utilization}"
        if num_blocks < 1:
            raise ValueError(
                f"{setting} leaves no room for a single KV-cache block of {self.block_bytes} bytes; raise it, "
                f"or lower max_num_batched_tokens ({config.max_num_batched_tokens})."
            )
        return num_blocks

    def _allocate_kv_cache(self, num_blocks: int) -> None:
        for layer in self.model.attention_layers():
            layer.kv_cache = torch.zeros(
                num_blocks,
                2,
                layer.num_kv_heads,
                self.block_size,
                layer.head_dim,
                dtype=self.dtype,
                device=self.device,
            )

    def _warm_up(self) -> None:
        """Runs the largest step that the scheduler can ask for, so that the peak shows what a step needs.

        A cache of one block is enough: nothing is stored (slot -1), and every table points at that block.
        """
        self._allocate_kv_cache(1)
        config = self.config
        longest = min(self.max_model_len, config.max_num_batched_tokens)
        counts = largest_step(config.max_num_batched_tokens, longest, config.max_num_seqs)
        num_seqs = len(counts)
        num_tokens = sum(counts)

        def tensor(values: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        inputs = StepInputs(
            token_ids=torch.zeros(num_tokens, dtype=torch.int64, device=self.device),
            positions=tensor([p for n in counts for p in range(n)], torch.int64),
            metadata=AttentionMetadata(
                query_start=tensor([sum(counts[:i]) for i in range(num_seqs + 1)]),
                context_lens=tensor(counts),
                block_tables=torch.zeros(
                    num_seqs, -(-longest // self.block_size), dtype=torch.int32, device=self.device
                ),
                slot_mapping=torch.full((num_tokens,), -1, dtype=torch.int32, device=self.device),
                num_decodes=0,
                max_query_len=longest,
                max_context_len=longest,
            ),
            # As many rows of logits as a step may sample, whatever the chunks.
            sampled_rows=torch.zeros(self.config.max_num_seqs, dtype=torch.int64, device=self.device),
        )
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        logits = self._forward(inputs)
        seqs = [Sequence(i, [0], _WARM_UP_SAMPLING) for i in range(self.config.max_num_seqs)]
        self._sample(logits, seqs)
        torch.cuda.synchronize(self.device)
        del logits, inputs
        torch.cuda.empty_cache()

    # CUDA graphs

    def _make_graphs(self) -> DecodeGraphs:
        return DecodeGraphs(self._decode_rows, bucket_sizes(self.config.max_num_seqs))

    def _measure_graphs(self) -> int:
        """Bytes that the graphs will take: the largest brings the shared pool, each other what the second one adds.

        They are recorded on the warm-up's cache of one block and thrown away.
        """
        graphs = self._make_graphs()
        free = [torch.cuda.mem_get_info(self.device)[0]]
        for size in graphs.sizes[:-3:-1]:
            graphs.record_one(size)
            free.append(torch.cuda.mem_get_info(self.device)[0])
        taken = [before - after for before, after in zip(free, free[1:])]
        num_others = len(graphs.sizes) - 1
        del graphs
        torch.cuda.empty_cache()
        return taken[0] + sum(taken[1:]) * num_others

    # One step

    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[int | None]:
        """Computes the batch; returns a token for each entry that samples, None for the others.

        Log probabilities, where a request asks for them, are appended to its sequence.
        """
        return self.launch(batch).tokens()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> LaunchedStep:
        """Has the device compute the batch, and does not wait for it.

        Tokens that the step before this one draws may still be in flight. Where a request penalizes or asks for log
        probabilities, they must be known.
        """
        if self.graphs and self.graphs.serves(len(batch.scheduled), batch.num_decodes):
            return self._launch_rows(batch)
        seqs = [entry.seq for entry in batch.scheduled if entry.samples]
        logits = self._logits(batch)
        tokens = self._sample(logits, seqs) if seqs else torch.empty(0, dtype=torch.int64)
        self._drawn = Drawn(tokens, {seq.seq_id: index for index, seq in enumerate(seqs)})
        self._share_drawn(len(tokens), in_rows=False)
        numbers = iter(range(len(seqs)))
        rows = [next(numbers) if entry.samples else None for entry in batch.scheduled]
        return LaunchedStep(tokens, rows, self._wait_for_step)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """(B, vocab_size) for the B entries that sample."""
        return self._forward(prepare_inputs(batch, self.block_size, self.device, self._drawn))

    @torch.inference_mode()
    def _forward(self, inputs: StepInputs) -> torch.Tensor:
        return self.model.compute_logits(self._hidden(inputs))

    def _hidden(self, inputs: StepInputs) -> torch.Tensor:
        """(B, hidden_size) of the tokens that sample."""
        inputs.take_drawn(self._drawn)
        hidden = self.model(inputs.token_ids, inputs.positions, inputs.metadata)
        return hidden if inputs.sampled_rows is None else hidden[inputs.sampled_rows]

    def _launch_rows(self, batch: Batch) -> LaunchedStep:
        """A step of decodes only, by a graph on the rows that live on the device."""
        rows, num_seqs = self.rows, len(batch.scheduled)
        changes = rows.place([entry.seq for entry in batch.scheduled], self._drawn)
        self._replay(changes, num_seqs)
        self._drawn = rows.drawn()
        if rows.unusual:
            unusual = sorted(rows.unusual)
            tokens = self._sample(self._gather(unusual), [rows.sequences[row] for row in unusual])
            rows.tokens[torch.tensor(unusual, device=self.device)] = tokens
            self._share_drawn(num_seqs, in_rows=True)  # the others have what the graph drew
        index_of = self._drawn.index_of
        places = [index_of[entry.seq.seq_id] for entry in batch.scheduled]
        return LaunchedStep(rows.tokens[:num_seqs], places, self._wait_for_step)

    def _replay(self, changes: RowChanges, num_seqs: int) -> None:
        """Changes the rows and replays a graph on the first `num_seqs`."""
        self.rows.apply(changes, self._drawn)
        self._row_logits = self.graphs.replay(num_seqs)

    def _gather(self, rows: list[int]) -> torch.Tensor:
        """(B, vocab_size), the logits of these B rows in the last replay: a graph leaves each rank with its own tokens'."""
        return self.model.lm_head.gather(self._row_logits[torch.tensor(rows, device=self.device)])

    def _wait_for_step(self, end: torch.cuda.Event | None) -> None:
        """Waits for a step's end. Raises RuntimeError where its tokens mean nothing."""
        if end:
            end.synchronize()

    def _share_drawn(self, number: int, in_rows: bool) -> None:
        """For processes that share the model: gives what this one has drawn to the others."""

    @torch.inference_mode()
    def _decode_rows(self, size: int) -> torch.Tensor:
        """What a graph records: one token for each of the first `size` rows, drawn and put in place for the next step."""
        head = self.model.lm_head
        logits = head.shard(self._hidden(self.rows.begin_step(size)))
        self.rows.draw(logits, head)
        return logits

    def _sample(self, logits: torch.Tensor, seqs: list[Sequence]) -> torch.Tensor:
        """Token ids (B) drawn from logits (B, vocab_size), a row a sequence."""
        raw_logits = logits
        if any(seq.sampling_params.penalizes for seq in seqs):
            logits = self._penalized(logits, seqs)
        tokens = sample(logits, prepare_sampling(seqs, self.model_config.vocab_size, self.device, self.fused))
        self._record_logprobs(raw_logits, tokens, seqs)
        return tokens

    def _penalized(self, logits: torch.Tensor, seqs: list[Sequence]) -> torch.Tensor:
        logits = logits.float().clone()
        for row, seq in zip(logits, seqs, strict=True):
            params = seq.sampling_params
            if params.penalizes:
                apply_penalties(
                    row,
                    seq.prompt_token_ids,
                    seq.completion_token_ids,
                    params.repetition_penalty,
                    params.presence_penalty,
                    params.frequency_penalty,
                )
        return logits

    def _record_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, seqs: list[Sequence]) -> None:
        """The model's own log probabilities: before penalties and temperature, as vLLM reports them."""
        for row, seq in enumerate(seqs):
            num = seq.sampling_params.logprobs
            if num is not None:
                seq.logprobs += top_logprobs(logits[row : row + 1], tokens[row : row + 1], num)

    def close(self) -> None:
        """Gives the model's and the cache's memory back."""
        self.graphs = self.rows = self._drawn = self._row_logits = self._inboxes = None
        del self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
