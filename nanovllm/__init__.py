"""A complete inference engine for Qwen3, small enough to read in a weekend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanovllm.llm import LLM
    from nanovllm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]

_HOMES = {"LLM": "nanovllm.llm", "SamplingParams": "nanovllm.sampling_params"}


def __getattr__(name: str):
    # Lazily, so that the scheduler can be imported, read and tested without loading torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
