"""Random tiny Qwen3 checkpoints made by transformers, and transformers' own greedy tokens for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen3Config, Qwen3ForCausalLM

TINY = dict(
    vocab_size=199,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    eos_token_id=None,
    bos_token_id=None,
    pad_token_id=None,
)


def make_checkpoint(folder: Path, seed: int = 0, max_shard_size: str = "5GB", **overrides: Any) -> Path:
    """Writes a random float32 Qwen3. Its weights are large enough that greedy tokens vary instead of repeating."""
    settings = {**TINY, **overrides}
    theta = settings.pop("rope_theta")
    config = Qwen3Config(**settings, rope_parameters={"rope_type": "default", "rope_theta": theta})
    return save_random(config, folder, seed, max_shard_size)


def save_random(config: PretrainedConfig, folder: Path, seed: int = 0, max_shard_size: str = "5GB") -> Path:
    """Writes a float32 model of any family with such weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


@torch.inference_mode()
def reference_greedy(folder: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """transformers' greedy tokens, one prompt at a time, without any stop."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


def random_prompts(
    num: int, low: int, high: int, vocab_size: int = TINY["vocab_size"], seed: int = 0
) -> list[list[int]]:
    """`num` prompts of `low` to `high` random token ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (num,), generator=generator).tolist()
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
