"""How one request wants its tokens chosen and when it wants to stop."""

from __future__ import annotations

from dataclasses import dataclass

from nanovllm.utils.validation import StrictArguments, check_bool, check_float, check_int

MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams(StrictArguments):
    """Sampling parameters of one request; the names are vLLM's.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2020).
        min_p: keep tokens at least min_p times as likely as the most likely one.
        repetition_penalty: > 1 makes tokens of the prompt and the output less likely (Keskar et al. 2019, section 4.1).
        presence_penalty: subtracted once from the logit of every token already in the output.
        frequency_penalty: subtracted for each time that a token already stands in the output.
        max_tokens: most tokens to generate.
        stop: a string or several; generation ends before the first that appears, and the text does not contain it.
        stop_token_ids: token ids that end the generation, besides the model's own end-of-sequence ids.
        ignore_eos: go on after the model's end-of-sequence ids (for benchmarks).
        seed: makes the request's random draws independent of its batch mates; None derives one from the engine's seed.
        logprobs: how many of the most likely tokens to report at each position (the token taken is always among them).
        n: how many independent outputs to draw for the prompt.

    Filters apply in this order: penalties, temperature, top_k, top_p, min_p.

    Raises:
        TypeError, ValueError: names the argument and the allowed values.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 64
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self):
        check_float("temperature", self.temperature, 0.0)
        if 0 < self.temperature < 1e-5:
            raise ValueError(f"temperature must be 0 (greedy) or at least 1e-5, got {self.temperature}.")
        check_int("top_k", self.top_k, -1)
        check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        check_float("min_p", self.min_p, 0.0, 1.0)
        check_float("repetition_penalty", self.repetition_penalty, 0.0, open_low=True)
        check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_int("max_tokens", self.max_tokens, 1)
        check_bool("ignore_eos", self.ignore_eos)
        if self.seed is not None:
            check_int("seed", self.seed, 0, 2**63 - 1)
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        check_int("n", self.n, 1)
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def filters(self) -> bool:
        """Whether sampling has to look at the order of the probabilities."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalizes(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _strings(name: str, value: object) -> tuple[str, ...]:
    values = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(s, str) for s in values):
        raise TypeError(f"{name} must be a string or a list of strings, got {value!r}.")
    if any(s == "" for s in values):
        raise ValueError(f"{name} must not hold an empty string: it would stop every request at once.")
    return tuple(values)


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    values = () if value is None else value
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of token ids, got {value!r}.")
    for token in values:
        check_int(f"each entry of {name}", token, 0)
    return tuple(values)
