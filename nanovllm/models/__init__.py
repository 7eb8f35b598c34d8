"""The models that are served, by the model_type of their config.json (config.MODEL_TYPES lists the same)."""

from nanovllm.models.llama import LlamaForCausalLM
from nanovllm.models.qwen3 import Qwen3ForCausalLM

MODELS = {"qwen3": Qwen3ForCausalLM, "qwen2": LlamaForCausalLM, "llama": LlamaForCausalLM}
