"""A complete inference engine for Qwen3, small enough to read in a weekend."""

from nanovllm.llm import LLM
from nanovllm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
