"""The engine: takes requests, runs steps, returns results. `step` is the loop that everything else serves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import xxhash

from nanovllm.config import EngineConfig, ModelConfig
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.detokenizer import Detokenizer
from nanovllm.engine.model_runner import LaunchedStep
from nanovllm.engine.scheduler import Batch, Scheduler
from nanovllm.engine.sequence import FinishReason, Sequence
from nanovllm.engine.tensor_parallel import make_model_runner
from nanovllm.engine.trace import Trace
from nanovllm.outputs import Completion, Metrics, RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checkpoint import load_tokenizer, resolve_model
from nanovllm.utils.validation import check_int


@dataclass(slots=True)
class Request:
    """One prompt: its `n` sequences and the text that each has so far."""

    request_id: int
    sequences: list[Sequence]
    detokenizers: list[Detokenizer | None]

    @property
    def is_finished(self) -> bool:
        return all(seq.is_finished for seq in self.sequences)


class StepStats(NamedTuple):
    """What one step computed, and in how many seconds."""

    num_prefill_tokens: int
    num_decode_tokens: int
    seconds: float
    finished: list[Request]


class InFlight(NamedTuple):
    """A launched step whose tokens have not been read. `starts` is what `Scheduler.advance` returned."""

    batch: Batch
    num_decodes: int
    starts: list[int]
    step: LaunchedStep


class LLMEngine:
    """Scheduler, model runner and tokenizer of one model.

    Attributes:
        config: the settings.
        model_config: the checkpoint's shape.
        tokenizer: the checkpoint's, or None.
        max_model_len: most tokens of one sequence: the least of the setting, the model's positions and the KV cache.
        async_scheduling: whether a step is launched before the tokens of the one before it are read.
        trace: what each step decided, where the engine was made with `trace=True`; else None.
    """

    def __init__(self, config: EngineConfig):
        folder = resolve_model(config.model)
        self.config = config
        self.model_config = ModelConfig.from_folder(folder)
        self.tokenizer = load_tokenizer(folder)
        max_model_len = min(config.max_model_len, self.model_config.max_position_embeddings)
        self.model_runner = make_model_runner(config, self.model_config, folder, max_model_len)
        block_manager = BlockManager(
            self.model_runner.num_kvcache_blocks, self.model_runner.block_size, config.enable_prefix_caching
        )
        self.max_model_len = min(max_model_len, block_manager.num_blocks * block_manager.block_size)
        self.scheduler = Scheduler(
            block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            eos_token_ids=self.model_config.eos_token_ids,
        )
        self.async_scheduling = self.model_runner.runs_ahead
        self.trace = Trace() if config.trace else None
        self._in_flight: deque[InFlight] = deque()
        self._need_known_tokens: set[int] = set()  # requests whose sampling reads earlier tokens on the host
        self._request_ids = count()
        self._seq_ids = count()
        self._requests: dict[int, Request] = {}
        self._request_of_seq: dict[int, Request] = {}
        self._closed = False

    # Requests

    def check_prompt(self, prompt: str | list[int]) -> list[int]:
        """The prompt's token ids, known to fit.

        Raises:
            TypeError: neither a string nor a list of ints.
            ValueError: empty, an id out of range, or too long to generate a single token.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"prompt is a string, but {self.config.model} has no tokenizer: pass token ids.")
            token_ids = list(self.tokenizer.encode(prompt))
        elif isinstance(prompt, (list, tuple)):
            token_ids = list(prompt)
        else:
            raise TypeError(f"prompt must be a string or a list of token ids, got {type(prompt).__name__}.")
        if not token_ids:
            raise ValueError("prompt must not be empty: it needs at least one token.")
        vocab_size = self.model_config.vocab_size
        # Long prompts are checked as a whole; one by one only to say which id is wrong.
        if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) >= vocab_size:
            for token in token_ids:
                check_int("each token id of the prompt", token, 0, vocab_size - 1)
        if len(token_ids) >= self.max_model_len:
            raise ValueError(
                f"prompt has {len(token_ids)} tokens, but at most {self.max_model_len - 1} fit, "
                f"so that one can be generated: {self._length_limits()}."
            )
        return token_ids

    def _length_limits(self) -> str:
        blocks = self.scheduler.block_manager
        return (
            f"max_model_len is {self.config.max_model_len}, the model has "
            f"{self.model_config.max_position_embeddings} positions, and the KV cache holds "
            f"{blocks.num_blocks * blocks.block_size} tokens ({blocks.num_blocks} blocks of {blocks.block_size})"
        )

    def add_request(self, prompt: str | list[int], sampling_params: SamplingParams | None = None) -> int:
        """Queues a request and returns its id.

        Raises:
            TypeError, ValueError: it cannot be served; nothing is queued.
            RuntimeError: the engine was closed.
        """
        if self._closed or self.model_runner.failure:
            raise RuntimeError(self.model_runner.failure or "this engine was closed: make a new one.")
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params must be a SamplingParams, got {type(params).__name__}.")
        token_ids = self.check_prompt(prompt)
        if params.stop and self.tokenizer is None:
            raise ValueError(f"stop strings need a tokenizer, and {self.config.model} has none: use stop_token_ids.")
        request_id = next(self._request_ids)
        base = params.seed if params.seed is not None else derive_seed(self.config.seed, request_id)
        sequences = [
            Sequence(next(self._seq_ids), token_ids, params, seed=derive_seed(base, index)) for index in range(params.n)
        ]
        detokenizers = [Detokenizer(self.tokenizer, params.stop) if self.tokenizer else None for _ in sequences]
        request = Request(request_id, sequences, detokenizers)
        self._requests[request_id] = request
        if params.penalizes or params.logprobs is not None:
            self._need_known_tokens.add(request_id)
        for seq in sequences:
            self._request_of_seq[seq.seq_id] = request
            self.scheduler.add(seq)
        return request_id

    def get_request(self, request_id: int) -> Request:
        """The live request of that id; raises KeyError once it was taken out."""
        return self._requests[request_id]

    def abort(self, request_id: int) -> None:
        """Ends a request now and gives its blocks back; its result has the finish reason "abort". Unknown ids pass."""
        request = self._requests.get(request_id)
        if request:
            for seq in request.sequences:
                self.scheduler.finish(seq, FinishReason.ABORT)
            self._need_known_tokens.discard(request_id)

    def take_output(self, request_id: int) -> RequestOutput:
        """The result of a finished request, which the engine then forgets."""
        request = self._requests.pop(request_id)
        self._need_known_tokens.discard(request_id)
        completions = []
        for seq, detokenizer in zip(request.sequences, request.detokenizers, strict=True):
            del self._request_of_seq[seq.seq_id]
            if detokenizer:
                detokenize(seq, detokenizer)
            completions.append(_completion(seq, detokenizer))
        output = RequestOutput(**completions[0])
        if len(completions) > 1:
            output["outputs"] = completions
        return output

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    # The loop

    def step(self) -> StepStats:
        """Computes one batch: prefill chunks and decodes together. Returns what it did and which requests it finished.

        Where executing the batch fails, its requests are finished with the reason "error" and the exception goes on:
        the others, and the engine, stay usable, unless a process that shares the model was lost: that closes the engine.
        """
        start = time.perf_counter()
        if self._in_flight or self._may_run_ahead():
            return self._step_ahead(start)
        batch = self.scheduler.schedule()
        if not batch.scheduled:
            return StepStats(0, 0, time.perf_counter() - start, [])
        if self.trace:
            self.trace.decided(self.scheduler, batch, start)
        num_decodes = count_decodes(batch)
        with self._failing(batch):
            token_ids = self.model_runner.execute(batch)
        advanced = self.scheduler.update(batch, token_ids)
        return self._booked(batch, num_decodes, advanced, start)

    def _step_ahead(self, start: float) -> StepStats:
        """Launches the next step before it reads the tokens of the one before, so that the GPU never waits for Python.

        The first call after a pause only launches; where nothing is left to launch, only the last step is read.
        """
        launched = False
        if not self._in_flight or self._may_run_ahead():
            batch = self.scheduler.schedule()
            launched = bool(batch.scheduled)
            if launched:
                num_decodes = count_decodes(batch)
                with self._failing(batch):
                    step = self.model_runner.launch(batch)
                self._in_flight.append(InFlight(batch, num_decodes, self.scheduler.advance(batch), step))
        if not self._in_flight or (launched and len(self._in_flight) == 1):
            return StepStats(0, 0, time.perf_counter() - start, [])
        batch, num_decodes, starts, step = self._in_flight.popleft()
        with self._failing(batch):
            token_ids = step.tokens()
        return self._booked(batch, num_decodes, self.scheduler.book(batch, starts, token_ids), start)

    def _may_run_ahead(self) -> bool:
        """Whether the next step can be launched without the last one's tokens, and nobody looks at each step."""
        return self.async_scheduling and self.trace is None and not self._need_known_tokens

    @contextmanager
    def _failing(self, batch: Batch) -> Iterator[None]:
        """Finishes the batch's requests with an error where the block raises."""
        try:
            yield
        except BaseException:
            for entry in batch.scheduled:
                self.scheduler.finish(entry.seq, FinishReason.ERROR)
            if self.model_runner.failure:
                self.close()
            raise

    def _booked(self, batch: Batch, num_decodes: int, advanced: list[Sequence], start: float) -> StepStats:
        """What follows from the tokens that the sequences got."""
        for seq in advanced:
            if seq.sampling_params.stop:
                self._find_stop_string(seq)
        if self.trace:
            self.trace.booked(self.scheduler, advanced)
        touched = {id(request): request for request in (self._request_of_seq[seq.seq_id] for seq in advanced)}
        finished = [request for request in touched.values() if request.is_finished]
        self._need_known_tokens.difference_update(request.request_id for request in finished)
        return StepStats(batch.num_tokens - num_decodes, num_decodes, time.perf_counter() - start, finished)

    def _find_stop_string(self, seq: Sequence) -> None:
        request = self._request_of_seq[seq.seq_id]
        detokenizer = request.detokenizers[request.sequences.index(seq)]
        detokenize(seq, detokenizer)
        if detokenizer.stopped:
            self.scheduler.finish(seq, FinishReason.STOP)
            seq.finish_reason = FinishReason.STOP

    def close(self) -> None:
        """Aborts what is left and releases the memory. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._in_flight.clear()
        for request_id in list(self._requests):
            self.abort(request_id)
        self.model_runner.close()


def count_decodes(batch: Batch) -> int:
    """How many of the batch's tokens continue a sequence that has generated one already."""
    return sum(
        entry.num_new_tokens == 1 and entry.seq.num_tokens > entry.seq.num_prompt_tokens for entry in batch.scheduled
    )


def detokenize(seq: Sequence, detokenizer: Detokenizer) -> None:
    """Adds the generated ids that the detokenizer has not seen. Only who needs text pays for it, when it is needed."""
    new = seq.token_ids[seq.num_prompt_tokens + detokenizer.num_tokens :]
    detokenizer.append(new, last=seq.is_finished)


def derive_seed(seed: int, index: int) -> int:
    """A 63-bit seed that depends on both numbers."""
    return xxhash.xxh64_intdigest(index.to_bytes(8, "little"), seed=seed) >> 1


def _completion(seq: Sequence, detokenizer: Detokenizer | None) -> Completion:
    times = seq.times
    arrival, first, finished = times["arrival"], times.get("first_token"), times.get("finished")

    def since_arrival(name: str) -> float | None:
        return times[name] - arrival if name in times else None

    decoded = seq.num_completion_tokens - 1
    return Completion(
        text=detokenizer.text if detokenizer else None,
        token_ids=seq.completion_token_ids,
        finish_reason=seq.finish_reason.value,
        logprobs=seq.logprobs if seq.sampling_params.logprobs is not None else None,
        metrics=Metrics(
            queued=since_arrival("scheduled"),
            first_token=since_arrival("first_token"),
            per_token=(finished - first) / decoded if decoded > 0 else None,
            total=since_arrival("finished"),
            prefix_cached_tokens=seq.num_cached_tokens or 0,
            preemptions=seq.num_preemptions,
        ),
    )
