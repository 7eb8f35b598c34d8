"""The engine's Llama and Qwen2 against transformers': logits and greedy tokens on random configurations.

What differs from Qwen3 is drawn: where there are biases, head_dim given or derived, KV heads given or not, and RoPE plain
or stretched (llama3, yarn), written as transformers 5 writes it or as the published files have it. Prompts and answers go
far past original_max_position_embeddings, so that the stretching matters.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from against_transformers import BLOCK, LogitsRecorder, check, compare, prompts_for, true_greedy
from tiny import save_random

from nanovllm import LLM, SamplingParams
from nanovllm.attention import get_backend
from nanovllm.config import ModelConfig
from nanovllm.models import MODELS
from nanovllm.utils.context import TensorParallel

NUM_CONFIGS = 24


def draw_rope(seed: int, rng: random.Random) -> dict[str, Any]:
    """Plain RoPE, llama3 or yarn, in turn."""
    rope: dict[str, Any] = {"rope_theta": float(round(10 ** rng.uniform(2, 5)))}
    stretched = {"factor": rng.choice([2.0, 4.0, 8.0]), "original_max_position_embeddings": rng.choice([20, 32, 40])}
    if seed % 3 == 1:
        low = rng.choice([0.5, 1.0])
        rope |= {"rope_type": "llama3", **stretched, "low_freq_factor": low, "high_freq_factor": 4 * low}
    elif seed % 3 == 2:
        rope |= {"rope_type": "yarn", **stretched, "beta_fast": rng.choice([2.0, 4.0, 32.0]), "beta_slow": 0.25}
        rope |= ({}, {"attention_factor": 1.3}, {"mscale": 1.0, "mscale_all_dim": 0.5}, {"truncate": False})[
            seed // 3 % 4
        ]
    return rope


def draw_config(seed: int) -> dict[str, Any]:
    """One random model's config.json, but for what transformers adds; `old_spelling` says how RoPE is written."""
    rng = random.Random(seed)
    kv_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 1, 2, 3, 4])
    heads, head_dim = kv_heads * group, rng.choice([8, 10, 16, 24])
    config = {
        "model_type": ("llama", "qwen2")[seed // 3 % 2],
        "vocab_size": rng.choice([131, 199, 97, 256]),
        "hidden_size": heads * head_dim,
        "intermediate_size": rng.choice([77, 80, 96, 51]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 256,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": seed // 12 == 0,
        "rope_parameters": draw_rope(seed, rng),
        "old_spelling": seed // 6 % 2 == 0,
    }
    if rng.random() < 0.4:
        config["head_dim"] = rng.choice([dim for dim in (8, 12, 20) if dim != head_dim])
    if config["model_type"] == "llama":
        config |= {"attention_bias": rng.random() < 0.5, "mlp_bias": rng.random() < 0.5}
    return config


CONFIGS = [draw_config(seed) for seed in range(NUM_CONFIGS)]


def write_checkpoint(folder: Path, seed: int, config: dict[str, Any]) -> Path:
    """A random checkpoint whose config.json says no more than `config`, in the spelling that it asks for."""
    settings = {key: value for key, value in config.items() if key != "old_spelling"}
    ids = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"))
    model_type = settings.pop("model_type")
    rope = dict(settings.pop("rope_parameters"))
    peer_config = transformers.AutoConfig.for_model(
        model_type, **settings, **ids, rope_parameters={"rope_type": "default"} | rope
    )
    save_random(peer_config, folder, seed)
    raw = json.loads((folder / "config.json").read_text())
    for key in ("head_dim", "num_key_value_heads"):
        if key not in settings:
            raw.pop(key, None)
    if model_type == "llama" and raw["num_key_value_heads"] == raw["num_attention_heads"]:
        del raw["num_key_value_heads"]
    if config["old_spelling"]:
        del raw["rope_parameters"]
        raw["rope_theta"] = rope.pop("rope_theta")
        raw["torch_dtype"] = raw.pop("dtype")
        if rope:
            rope["type"] = rope.pop("rope_type")
        raw["rope_scaling"] = rope or None
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """seed -> (folder, transformers' float32 model), made once."""

    @cache
    def make(seed: int) -> tuple[Path, transformers.PreTrainedModel]:
        folder = write_checkpoint(tmp_path_factory.mktemp("model"), seed, CONFIGS[seed])
        return folder, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    return make


@pytest.mark.parametrize("seed", range(NUM_CONFIGS))
def test_logits_and_greedy_tokens_equal_transformers(seed, checkpoint):
    folder, model = checkpoint(seed)
    vocab_size, rng = CONFIGS[seed]["vocab_size"], random.Random(seed)
    # The last two share three blocks, and are longer than any original_max_position_embeddings.
    prompts = prompts_for(seed, vocab_size)[:4]
    long = [rng.randrange(vocab_size) for _ in range(120)]
    prompts += [long, long[: 3 * BLOCK] + [rng.randrange(vocab_size) for _ in range(60)]]
    nums = [40, 4, 6, 3, 8, 7]
    with LLM(folder, device="cpu", kvcache_block_size=BLOCK) as llm:
        assert isinstance(llm.model_runner.model, MODELS[CONFIGS[seed]["model_type"]])
        recorder = LogitsRecorder(llm)
        batched = check(model, llm, recorder, prompts, nums, alone=False)
        alone = check(model, llm, recorder, prompts, nums, alone=True)
    assert [out["token_ids"] for out in alone] == [out["token_ids"] for out in batched]
    assert [out["metrics"]["prefix_cached_tokens"] for out in alone][4:] == [112, 96]

    # Chunks of at most eleven tokens, and blocks for about two sequences: some lose theirs and start again.
    with LLM(
        folder,
        device="cpu",
        kvcache_block_size=BLOCK,
        num_kvcache_blocks=9,
        max_num_seqs=4,
        max_num_batched_tokens=11,
        attention_backend="reference",
    ) as llm:
        recorder = LogitsRecorder(llm)
        tight = check(model, llm, recorder, [prompts[5], *prompts[1:4]], [12, 40, 50, 30], alone=False)
        assert sum(out["metrics"]["preemptions"] for out in tight) > 0
        llm.scheduler.check_integrity()


def test_the_drawn_configurations_cover_what_they_should():
    def pairs(*keys):
        return {tuple(config.get(key) for key in keys) for config in CONFIGS}

    ropes = [config["rope_parameters"] for config in CONFIGS]
    kinds = {
        (config["model_type"], config["old_spelling"], rope.get("rope_type"))
        for config, rope in zip(CONFIGS, ropes, strict=True)
    }
    assert kinds == {(m, old, r) for m in ("llama", "qwen2") for old in (True, False) for r in (None, "llama3", "yarn")}
    assert {("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)} == pairs(
        "model_type", "tie_word_embeddings"
    )
    assert {(a, m) for a in (True, False) for m in (True, False)} <= pairs("attention_bias", "mlp_bias")
    assert {"attention_factor", "mscale", "truncate"} <= set().union(*ropes)
    assert {("head_dim" in config, config["model_type"]) for config in CONFIGS} == {
        (given, kind) for given in (True, False) for kind in ("llama", "qwen2")
    }
    ungrouped = [c for c in CONFIGS if c["num_key_value_heads"] == c["num_attention_heads"]]
    assert {c["model_type"] for c in ungrouped} == {"llama", "qwen2"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_biases_and_stretched_positions(dtype, checkpoint):
    """As far from the float32 model with the same rounded weights as transformers is, up to a third."""
    seed = next(s for s, c in enumerate(CONFIGS) if c["model_type"] == "qwen2" and s % 3 == 2)
    folder, _ = checkpoint(seed)
    torch_dtype = getattr(torch, dtype)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype).eval()
    truth = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype).float().eval()
    rng = random.Random(0)
    prompt = [rng.randrange(CONFIGS[seed]["vocab_size"]) for _ in range(100)]
    with LLM(folder, device="cpu", dtype=dtype, enable_prefix_caching=False) as llm:
        recorder = LogitsRecorder(llm)
        llm.generate([prompt[:n] for n in range(1, 101)], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    ours = torch.stack([row.float() for _, row in sorted(recorder.rows, key=lambda item: len(item[0]))])
    with torch.inference_mode():
        wanted, theirs = (m(torch.tensor([prompt])).logits[0].float() for m in (truth, peer))
    assert (ours - wanted).abs().mean() < 1.33 * (theirs - wanted).abs().mean()


# Tensor parallel


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch is built without gloo")
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_two_ranks_add_each_bias_once(model_type, tmp_path):
    """q, k and v biases are split; those of the output and down projections belong to the sum, not to a rank."""
    biases = {"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {}
    config = CONFIGS[2] | biases | {"model_type": model_type, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"hidden_size": 48, "head_dim": 12, "intermediate_size": 80}
    folder = write_checkpoint(tmp_path, 5, config)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = prompts_for(3, config["vocab_size"])
    with LLM(folder, device="cpu", tensor_parallel_size=2) as llm:
        recorder = LogitsRecorder(llm)
        nums = [30, 5, 6, 4, 3, 7]
        outputs = llm.generate(prompts, [SamplingParams(temperature=0, max_tokens=num) for num in nums], use_tqdm=False)
        compare(model, recorder, prompts, nums, outputs)
    assert outputs[0]["token_ids"] == true_greedy(model, prompts[0], 30)


# Published shapes

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
QWEN2 = {"model_type": "qwen2", "rope_theta": 1e6, "max_position_embeddings": 32_768}
LLAMA_3 = {"model_type": "llama", "rope_theta": 5e5, "max_position_embeddings": 131_072, "vocab_size": 128_256}
LLAMA_31 = LLAMA_3 | {"rope_scaling": LLAMA3 | {"factor": 8.0}}
LLAMA_32 = LLAMA_3 | {"rope_scaling": LLAMA3 | {"factor": 32.0}}
SMOL = {"model_type": "llama", "rope_theta": 1e5, "max_position_embeddings": 8192, "vocab_size": 49_152}

# name: family, hidden, layers, query heads, KV heads, intermediate, vocabulary, tied, published parameter count
PUBLISHED = {
    "Qwen2.5-0.5B": (QWEN2, 896, 24, 14, 2, 4864, 151_936, True, 494_032_768),
    "Qwen2.5-1.5B": (QWEN2, 1536, 28, 12, 2, 8960, 151_936, True, 1_543_714_304),
    "Qwen2.5-3B": (QWEN2, 2048, 36, 16, 2, 11_008, 151_936, True, 3_085_938_688),
    "Qwen2.5-7B": (QWEN2, 3584, 28, 28, 4, 18_944, 152_064, False, 7_615_616_512),
    "Qwen2.5-14B": (QWEN2, 5120, 48, 40, 8, 13_824, 152_064, False, 14_770_033_664),
    "Qwen2.5-32B": (QWEN2, 5120, 64, 40, 8, 27_648, 152_064, False, 32_763_876_352),
    "Qwen2.5-72B": (QWEN2, 8192, 80, 64, 8, 29_568, 152_064, False, 72_706_203_648),
    "Llama-3.2-1B": (LLAMA_32, 2048, 16, 32, 8, 8192, 128_256, True, 1_235_814_400),
    "Llama-3.2-3B": (LLAMA_32, 3072, 28, 24, 8, 8192, 128_256, True, 3_212_749_824),
    "Llama-3.1-8B": (LLAMA_31, 4096, 32, 32, 8, 14_336, 128_256, False, 8_030_261_248),
    "Llama-3.1-70B": (LLAMA_31, 8192, 80, 64, 8, 28_672, 128_256, False, 70_553_706_496),
    "SmolLM2-135M": (SMOL, 576, 30, 9, 3, 1536, 49_152, True, 134_515_008),
    "SmolLM2-360M": (SMOL, 960, 32, 15, 5, 2560, 49_152, True, 361_821_120),
    "SmolLM2-1.7B": (SMOL, 2048, 24, 32, 32, 8192, 49_152, True, 1_711_376_384),
}


def published_config(name: str) -> dict[str, Any]:
    family, hidden, layers, heads, kv_heads, intermediate, vocab, tied, _ = PUBLISHED[name]
    return family | {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def build_on_meta(name: str, rank: int, size: int) -> torch.nn.Module:
    config = ModelConfig.from_dict(published_config(name))
    with torch.device("meta"):
        model = MODELS[config.model_type](config, get_backend("reference"), TensorParallel(rank, size))
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_has_its_parameters(name):
    assert num_parameters(build_on_meta(name, 0, 1)) == PUBLISHED[name][-1]


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_is_split_evenly_or_refused(name, size):
    _, hidden, layers, heads, kv_heads, intermediate, vocab, tied, _ = PUBLISHED[name]
    if heads % size:
        with pytest.raises(ValueError, match=rf"tensor_parallel_size \({size}\) must divide num_attention_heads"):
            build_on_meta(name, 0, size)
        return
    dim, kv = hidden // heads, max(1, kv_heads // size)  # KV heads that are fewer than ranks are held more than once
    qkv = (heads // size + 2 * kv) * dim * (hidden + name.startswith("Qwen2"))
    layer = qkv + heads // size * dim * hidden + 3 * hidden * intermediate // size + 2 * hidden
    table = vocab // size * hidden
    whole = layers * layer + hidden + (1 if tied else 2) * table
    assert num_parameters(build_on_meta(name, size - 1, size)) == whole


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Llama-3.2-1B", "SmolLM2-135M"])
def test_a_published_shape_has_transformers_parameter_names(name):
    raw = published_config(name)
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(
            raw["model_type"], **{k: v for k, v in raw.items() if k != "model_type"}
        )
        peer = transformers.AutoModelForCausalLM.from_config(config)
    model = build_on_meta(name, 0, 1)
    names = {
        key.replace(packed, original)
        for key, _ in model.named_parameters()
        for original, (packed, _) in [*model.packed_modules_mapping.items(), ("", ("", ""))]
        if packed in key
    }
    names = {key for key in names if "qkv_proj" not in key and "gate_up_proj" not in key}
    assert names == {key for key, _ in peer.named_parameters()}
