"""A soak: random requests through one engine under pressure, and what the same requests get one at a time.

The requests come while others run; they share prefixes, are longer than a step's token budget, end on block borders, carry
every sampling parameter, and some are aborted. The pool is too small for those that run, so they preempt each other. None
of it may change a token.

In floating point one thing may: a product's last bits depend on how many rows are multiplied with it. Where two tokens are
as good as equal, that decides. So a differing token counts as *explained* only where a float64 model of transformers says
that both were the best within `tolerance` logits; everything else is *wrong*.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL
from nanovllm.engine.llm_engine import derive_seed
from nanovllm.layers.sampler import gumbel_noise
from nanovllm.outputs import Completion, RequestOutput

SENTENCES = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the garden with her big brown dog.",
    "One day, Tom and his mom went to the park. Tom saw a red ball and he wanted to play with it.",
    "The little bird was sad because it could not fly. A kind old owl said, 'Do not cry, I will help you.'",
    "Ben had a new toy car. It was fast and shiny, and he showed it to all of his friends at school.",
    "It was a cold and rainy morning. Mia put on her yellow boots and jumped in every puddle that she could find.",
)
STOPS = (".", " the", " and", "was", "e ", ", ", "zzz", '."')
TOLERANCE = {"float32": 1e-4, "float16": 0.05}
"""Logits by which a kind of arithmetic may be off, far above what is seen and far below what a mistake makes."""


@dataclass(frozen=True)
class Load:
    """Sizes of a soak. Lengths are in blocks, so that every block size is pressed alike.

    Attributes:
        requests: how many.
        block_size: token slots in a block.
        num_blocks: of the pool, fewer than the running sequences want.
        max_num_seqs: most sequences at once.
        longest_output: most tokens that a request may ask for; most ask for a few.
        looks_back: whether some requests penalize or ask for log probabilities. The engine takes one step at a time for
            those, so only a load without them is served by steps that are launched ahead.
        seed: of the requests, their arrival and their aborts.
    """

    requests: int
    block_size: int = 16
    num_blocks: int = 20
    max_num_seqs: int = 20
    longest_output: int = 24
    looks_back: bool = True
    seed: int = 0

    @property
    def budget(self) -> int:
        return 4 * self.block_size

    @property
    def max_model_len(self) -> int:
        return min(12 * self.block_size, 2048)  # the embedded model has no more positions

    def engine(self) -> dict[str, Any]:
        """Settings of the engine under pressure."""
        return {
            "kvcache_block_size": self.block_size,
            "num_kvcache_blocks": self.num_blocks,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.budget,
            "max_model_len": self.max_model_len,
        }

    def roomy_engine(self) -> dict[str, Any]:
        """Settings of the engine that serves one request at a time: no chunks, no sharing, no preemption."""
        return {
            "kvcache_block_size": self.block_size,
            "num_kvcache_blocks": 60,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 4 * self.max_model_len,
            "max_model_len": self.max_model_len,
            "enable_prefix_caching": False,
        }


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    params: SamplingParams


def make_requests(load: Load, tokenizer: Any, vocab_size: int) -> list[Request]:
    """Random requests; every twentieth is one that was there before."""
    rng = random.Random(load.seed)
    words = tokenizer.encode(" ".join(SENTENCES))
    size = load.block_size

    def text(length: int) -> list[int]:
        start = rng.randrange(len(words))
        return [words[(start + i) % len(words)] for i in range(length)]

    def noise(length: int) -> list[int]:
        return [rng.randrange(3, vocab_size) for _ in range(length)]

    prefixes = [text(rng.randint(size // 2, 3 * size)) for _ in range(12)]

    def prompt() -> list[int]:
        kind = rng.random()
        if kind < 0.03:  # more than a step's budget, some up to the last position but one
            return text(rng.choice((rng.randint(load.budget + 1, load.max_model_len - 1), load.max_model_len - 2)))
        if kind < 0.45:
            return rng.choice(prefixes) + rng.choice((text, noise))(rng.randint(0, size // 2))
        if kind < 0.75:  # up to the border of a block, or one token beyond
            return text(rng.randint(1, 2) * size + rng.randint(-3, 1))
        return rng.choice((text, noise))(rng.randint(1, 2 * size))

    requests: list[Request] = []
    for index in range(load.requests):
        if index and index % 20 == 0:
            requests.append(rng.choice(requests))
        else:
            requests.append(Request(tuple(prompt()), _params(load, rng, words)))
    return requests


def _params(load: Load, rng: random.Random, words: list[int]) -> SamplingParams:
    wanted: dict[str, Any] = {
        "max_tokens": rng.randint(1, load.longest_output) if rng.random() < 0.2 else rng.randint(1, 5),
        "ignore_eos": rng.random() < 0.2,
    }
    if rng.random() < 0.35:
        wanted["temperature"] = 0.0
    else:
        wanted |= {"temperature": rng.choice((0.5, 0.8, 1.0, 1.5)), "seed": rng.randrange(2**63)}
        if rng.random() < 0.3:
            wanted["top_k"] = rng.choice((1, 5, 40))
        if rng.random() < 0.3:
            wanted["top_p"] = rng.choice((0.3, 0.9, 0.99))
        if rng.random() < 0.2:
            wanted["min_p"] = rng.choice((0.02, 0.2))
    if load.looks_back and rng.random() < 0.15:
        wanted["repetition_penalty"] = rng.choice((0.9, 1.2, 2.0))
    if load.looks_back and rng.random() < 0.15:
        wanted |= {"presence_penalty": rng.choice((-0.5, 1.0)), "frequency_penalty": rng.choice((0.0, 0.7))}
    if rng.random() < 0.15:
        wanted["stop"] = rng.sample(STOPS, rng.randint(1, 3))
    if rng.random() < 0.15:
        wanted["stop_token_ids"] = rng.sample(words, 6)
    if rng.random() < 0.12:
        wanted["n"] = rng.randint(2, 3)
    if load.looks_back and rng.random() < 0.12:
        wanted["logprobs"] = rng.randint(0, 5)
    return SamplingParams(**wanted)


def completions(output: RequestOutput) -> list[Completion]:
    return output.get("outputs", [output])


def run_alone(llm: LLM, requests: list[Request]) -> list[RequestOutput]:
    """What each request gets when the engine has nothing else to do. A repeated one is not computed again."""
    known: dict[Request, RequestOutput] = {}
    for request in requests:
        if request not in known:
            known[request] = llm.generate(list(request.prompt), request.params, use_tqdm=False)[0]
    return [known[request] for request in requests]


class Steps(NamedTuple):
    """How many steps there were, how many of decodes only (a graph's), and how many with another one launched ahead."""

    all: int
    decodes_only: int
    ahead: int


def run_together(llm: LLM, requests: list[Request], seed: int) -> tuple[list[RequestOutput], Steps]:
    """Adds, aborts and steps at random until all are done; about one in twenty is aborted.

    Requests come in bursts: between two of them all that run decode, and only then does a graph serve the step.
    """
    rng = random.Random(seed)
    outputs: list[RequestOutput | None] = [None] * len(requests)
    live: dict[int, int] = {}  # request id: index
    come = num_steps = decodes_only = ahead = 0
    while come < len(requests) or live:
        burst = rng.randint(1, 24) if not live or rng.random() < 0.15 else 0
        while burst and come < len(requests) and len(live) < 40:
            live[llm.add_request(list(requests[come].prompt), requests[come].params)] = come
            come += 1
            burst -= 1
        if live and rng.random() < 0.05:
            victim = rng.choice(list(live))
            llm.abort(victim)
            outputs[live.pop(victim)] = llm.take_output(victim)
        step = llm.step()
        num_steps += 1
        decodes_only += bool(step.num_decode_tokens and not step.num_prefill_tokens)
        ahead += bool(step.num_decode_tokens and llm._in_flight)
        for finished in step.finished:
            if finished.request_id in live:
                outputs[live.pop(finished.request_id)] = llm.take_output(finished.request_id)
    return outputs, Steps(num_steps, decodes_only, ahead)


@dataclass
class Report:
    """What a soak did and found.

    Attributes:
        requests, sequences, tokens, aborted, preemptions: numbers of each.
        prefix_hits: sequences that found some of their prompt in the cache.
        chunked: sequences whose prompt took more than one step.
        stopped, reached_max_model_len: sequences that ended so.
        steps, decode_steps, steps_ahead: as in Steps.
        explained: sequences that took another token than alone where float64 sees a tie.
        wrong: what cannot be explained, one line each.
    """

    requests: int = 0
    sequences: int = 0
    tokens: int = 0
    aborted: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    chunked: int = 0
    stopped: int = 0
    reached_max_model_len: int = 0
    steps: int = 0
    decode_steps: int = 0
    steps_ahead: int = 0
    explained: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def unpressed(self) -> list[str]:
        """Kinds of pressure that the soak did not reach."""
        kinds = ("aborted", "preemptions", "prefix_hits", "chunked", "stopped", "reached_max_model_len", "decode_steps")
        return [kind for kind in kinds if not getattr(self, kind)]

    def counts(self) -> dict[str, int]:
        """All numbers, for a table or a file."""
        numbers = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        return numbers | {"explained": len(self.explained), "wrong": len(self.wrong)}


class Oracle:
    """transformers' model in float64, and which tokens it allows next.

    Args:
        folder: the checkpoint.
        tolerance: by how much the engine's logits may be off.
    """

    def __init__(self, folder: Path, tolerance: float):
        self.folder = folder
        self.tolerance = tolerance

    @cached_property
    def model(self) -> torch.nn.Module:
        from transformers import Qwen3ForCausalLM

        return Qwen3ForCausalLM.from_pretrained(self.folder, dtype=torch.float64).eval()

    @torch.inference_mode()
    def allowed(self, prompt: list[int], generated: list[int], params: SamplingParams, seed: int) -> set[int]:
        """Tokens that could be drawn next if each logit is known up to the tolerance."""
        logits = self.model(torch.tensor([[*prompt, *generated]])).logits[0, -1]
        for token in {*prompt, *generated}:
            logits[token] *= params.repetition_penalty if logits[token] < 0 else 1 / params.repetition_penalty
        for token in set(generated):
            logits[token] -= params.presence_penalty + params.frequency_penalty * generated.count(token)
        slack = 2 * self.tolerance * max(1.0, params.repetition_penalty, 1 / params.repetition_penalty)
        if params.temperature == 0:
            return _at_least(logits, logits.max() - slack)
        scaled, slack = logits / params.temperature, slack / params.temperature
        loose, tight = (_kept(scaled, params, sign * slack) for sign in (1, -1))
        position = len(prompt) + len(generated)
        scores = scaled + gumbel_noise(torch.tensor([seed]), torch.tensor([position]), len(logits))[0].double()
        return loose & _at_least(scores, scores[list(tight)].max() - slack)


def _at_least(scores: torch.Tensor, bound: torch.Tensor) -> set[int]:
    return set((scores >= bound).nonzero().flatten().tolist())


def _kept(scaled: torch.Tensor, params: SamplingParams, slack: float) -> set[int]:
    """What the filters keep if they are looser by `slack` (or, if it is negative, tighter); never nothing."""
    order = scaled.argsort(descending=True).tolist()
    if params.top_k > 0:
        bound = scaled[order[min(params.top_k, len(order)) - 1]] - slack
        order = [token for token in order if scaled[token] >= bound]
    probs = scaled[order].softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    keep = probs >= params.min_p * (1 - slack) * probs[0]
    if params.top_p < 1:
        keep &= before < params.top_p + slack
    keep[0] = True
    return {token for token, kept in zip(order, keep.tolist(), strict=True) if kept}


def compare(
    requests: list[Request],
    alone: list[RequestOutput],
    together: list[RequestOutput],
    load: Load,
    oracle: Oracle,
) -> Report:
    """Counts what happened and judges every difference."""
    report = Report(requests=len(requests))
    for index, (request, expected, output) in enumerate(zip(requests, alone, together, strict=True)):
        for nth, (want, got) in enumerate(zip(completions(expected), completions(output), strict=True)):
            _count(report, request, got, load)
            seed = derive_seed(request.params.seed, nth) if request.params.seed is not None else 0
            where = f"request {index}, output {nth}, {len(request.prompt)} tokens in"

            def allowed(made: list[int], request: Request = request, seed: int = seed) -> set[int]:
                return oracle.allowed(list(request.prompt), made, request.params, seed)

            tie, found = judge(request, want, got, allowed, 2 * oracle.tolerance)
            if tie:
                report.explained.append(f"{where}: {found}")
            elif found:
                report.wrong.append(f"{where}: {found}; {request.params}")
    return report


def _count(report: Report, request: Request, got: Completion, load: Load) -> None:
    metrics = got["metrics"]
    report.sequences += 1
    report.tokens += len(got["token_ids"])
    report.aborted += got["finish_reason"] == "abort"
    report.stopped += got["finish_reason"] == "stop"
    report.preemptions += metrics["preemptions"]
    report.prefix_hits += metrics["prefix_cached_tokens"] > 0
    computed = len(request.prompt) - metrics["prefix_cached_tokens"]
    report.chunked += bool(got["token_ids"]) and computed > load.budget
    report.reached_max_model_len += len(request.prompt) + len(got["token_ids"]) == load.max_model_len


def judge(
    request: Request, want: Completion, got: Completion, allowed: Callable[[list[int]], set[int]], logprob_error: float
) -> tuple[bool, str]:
    """Whether a difference is a tie, and the difference, or an empty string where there is none."""
    a, b = want["token_ids"], got["token_ids"]
    split = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
    if split is not None:
        best = allowed(a[:split])
        found = f"token {split} is {b[split]}, alone {a[split]}; float64 allows {sorted(best)[:5]}"
        return {a[split], b[split]} <= best, found
    aborted = got["finish_reason"] == "abort"
    if len(b) > len(a) or (len(b) < len(a) and not aborted):
        return False, f"{len(b)} tokens, alone {len(a)}"
    if not aborted and (got["text"], got["finish_reason"]) != (want["text"], want["finish_reason"]):
        return False, f"{got['finish_reason']} {got['text']!r}, alone {want['finish_reason']} {want['text']!r}"
    if request.params.logprobs is not None:
        if len(got["logprobs"]) != len(b):
            return False, f"{len(got['logprobs'])} log probabilities for {len(b)} tokens"
        off = max((abs(got["logprobs"][i][t] - want["logprobs"][i][t]) for i, t in enumerate(b)), default=0.0)
        if off > logprob_error:
            return False, f"a log probability is {off:.2g} off"
    return False, ""


def check_idle(llm: LLM) -> None:
    """Raises RuntimeError where the engine holds a request or a block, or has lost one."""
    blocks = llm.scheduler.block_manager
    if llm.has_unfinished or blocks.num_free_blocks != blocks.num_blocks:
        raise RuntimeError(f"the engine is not idle: {blocks.num_free_blocks} of {blocks.num_blocks} blocks are free.")
    llm.scheduler.check_integrity()


class Soak:
    """The requests of a load, and what they get one at a time.

    Args:
        load: the sizes.
        folder: the checkpoint.
        **settings: of the engine that serves one request at a time; `dtype` decides the tolerance.
    """

    def __init__(self, load: Load, folder: Path = EMBEDDED_MODEL, **settings: Any):
        self.load = load
        self.folder = folder
        self.oracle = Oracle(folder, TOLERANCE[settings["dtype"]])
        with LLM(folder, **load.roomy_engine(), **settings) as llm:
            self.requests = make_requests(load, llm.tokenizer, llm.model_config.vocab_size)
            self.alone = run_alone(llm, self.requests)

    def run(self, **settings: Any) -> Report:
        """Serves them all under pressure, and compares. The engine must be idle and whole afterwards."""
        with LLM(self.folder, **self.load.engine(), **settings) as llm:
            together, steps = run_together(llm, self.requests, self.load.seed)
            check_idle(llm)
        report = compare(self.requests, self.alone, together, self.load, self.oracle)
        report.steps, report.decode_steps, report.steps_ahead = steps
        return report
