"""What the end-to-end tests share: a tiny checkpoint with its reference tokens, and checks of an idle engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny import reference_greedy

from nanovllm import LLM


@dataclass
class Checkpoint:
    """A folder and transformers' greedy tokens for it, which are kept."""

    folder: Path
    known: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def greedy(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        missing = [prompt for prompt in prompts if len(self.known.get(tuple(prompt), ())) < max_tokens]
        if missing:
            outputs = reference_greedy(self.folder, missing, max_tokens)
            self.known |= {tuple(prompt): tokens for prompt, tokens in zip(missing, outputs, strict=True)}
        return [self.known[tuple(prompt)][:max_tokens] for prompt in prompts]


def make_llm(folder: Path, **config: Any) -> LLM:
    return LLM(folder, **{"device": "cpu", "dtype": "float32", "attention_backend": "reference", **config})


def tokens(outputs: list[dict]) -> list[list[int]]:
    return [output["token_ids"] for output in outputs]


def check_idle(llm: LLM) -> None:
    """No request is left and every block is free."""
    assert not llm.has_unfinished
    assert not llm._requests and not llm._request_of_seq
    blocks = llm.scheduler.block_manager
    assert blocks.num_free_blocks == blocks.num_blocks
    llm.scheduler.check_integrity()
