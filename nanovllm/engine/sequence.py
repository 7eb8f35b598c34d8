"""One request on its way through the engine. Plain Python: no torch here."""

from __future__ import annotations

from enum import Enum

from nanovllm.sampling_params import SamplingParams


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"  # it waits again: its blocks were taken, its tokens were kept
    FINISHED = "finished"


class FinishReason(str, Enum):
    STOP = "stop"  # an end-of-sequence id, a stop id or a stop string
    LENGTH = "length"  # max_tokens or max_model_len
    ABORT = "abort"
    ERROR = "error"


class Sequence:
    """Token ids, counters and blocks of one request.

    Invariants: `0 <= num_computed_tokens <= num_tokens`, where computed tokens are those whose keys and values are in
    the cache once the launched steps have run; `len(block_table) * block_size >= num_computed_tokens`; while waiting, the block table is empty.

    Attributes:
        token_ids: the prompt's ids followed by the generated ones, as far as they are known here.
        num_in_flight: tokens that launched steps draw and that are not known here yet. They count in `num_tokens`.
        block_table: ids of the KV blocks that hold the tokens, in order.
        block_hashes: chained hashes of the full blocks of `token_ids`, as far as they have been needed.
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache at first admission.
        times: seconds on one monotonic clock: "arrival", "scheduled", "first_token", "finished".
        logprobs: one dict {token id: log probability} a generated token, where the request asked for them.
    """

    def __init__(self, seq_id: int, prompt_token_ids: list[int], sampling_params: SamplingParams, seed: int = 0):
        self.seq_id = seq_id
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.sampling_params = sampling_params
        self.seed = seed
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.num_computed_tokens = 0
        self.num_in_flight = 0
        self.num_cached_tokens: int | None = None
        self.block_table: list[int] = []
        self.block_hashes: list[int] = []
        self.num_times_passed = 0
        self.num_preemptions = 0
        self.times: dict[str, float] = {}
        self.logprobs: list[dict[int, float]] = []

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id}, {self.status.value}, {self.num_prompt_tokens}+{self.num_completion_tokens} tokens, "
            f"{self.num_computed_tokens} computed, blocks {self.block_table})"
        )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens that still have to be computed: 1 while decoding, more while prefilling."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def completion_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED
