"""A stand-in for Qwen/Qwen3-0.6B: what can be known of a real checkpoint's folder without having it.

config.json and generation_config.json with the published keys (their 2025 form), the published tensor names in two
shards with an index and a copy of the tied head, in bfloat16, the real vocabulary of 151,936 and head_dim 128, and
Qwen's real tokenizer. Only width and depth are reduced, and the weights are random.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
from pathlib import Path

import pytest
import regex
import torch
from safetensors.torch import save_file
from test_model_config import FORM_2025, GENERATION
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanovllm import LLM, SamplingParams
from nanovllm.config import ModelConfig
from nanovllm.engine.detokenizer import Detokenizer

ROOT = Path(__file__).parents[2]
VOCABULARY = Path(__file__).parent / "data" / "qwen.tiktoken.xz"
END, TURN_END = 151643, 151645

REDUCED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIG = FORM_2025 | REDUCED

TEXTS = [
    "Hello, world!",
    "The quick brown fox doesn't jump over 1,234 lazy dogs.\n\n\tIt's 3 o'clock;  isn't it?",
    "你好，世界！大语言模型是怎样推理的？",
    "𠀀𪚥龘 罕见字",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇭",
    "def f(x):\n    return x**2  # 平方 🚀\n",
    "naïve café, Ωμέγα, здравствуй, こんにちは, 안녕하세요, שלום",
]


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_qwen_tokenizer", ROOT / "scripts" / "build_qwen_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vocabulary(builder) -> list[bytes]:
    return builder.read_vocabulary(VOCABULARY)


@pytest.fixture(scope="module")
def folder(builder, vocabulary, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("Qwen3-0.6B")
    builder.build(vocabulary).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2))
    tensors = random_tensors()
    names = list(tensors)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name] for name in shard}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_tensors() -> dict[str, torch.Tensor]:
    """The tensors of a Qwen3 under their published names."""
    generator = torch.Generator().manual_seed(0)
    hidden, inner, dim = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    q, kv = CONFIG["num_attention_heads"] * dim, CONFIG["num_key_value_heads"] * dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).bfloat16()

    def norm(size: int) -> torch.Tensor:
        return (1 + 0.2 * torch.randn(size, generator=generator)).bfloat16()

    tensors = {"model.embed_tokens.weight": matrix(CONFIG["vocab_size"], hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": norm(hidden),
            f"{prefix}.mlp.down_proj.weight": matrix(hidden, inner),
            f"{prefix}.mlp.gate_proj.weight": matrix(inner, hidden),
            f"{prefix}.mlp.up_proj.weight": matrix(inner, hidden),
            f"{prefix}.post_attention_layernorm.weight": norm(hidden),
            f"{prefix}.self_attn.k_norm.weight": norm(dim),
            f"{prefix}.self_attn.k_proj.weight": matrix(kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(hidden, q),
            f"{prefix}.self_attn.q_norm.weight": norm(dim),
            f"{prefix}.self_attn.q_proj.weight": matrix(q, hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(kv, hidden),
        }
    tensors["model.norm.weight"] = norm(hidden)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return tensors


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu", kvcache_block_size=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


# The model


def test_the_folder_is_read_as_it_was_published(folder, llm):
    assert sorted(path.name for path in folder.glob("model*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    config = ModelConfig.from_folder(folder)
    assert llm.model_config == config
    assert (config.vocab_size, config.head_dim, config.rope_theta) == (151_936, 128, 1e6)
    assert config.tie_word_embeddings and config.dtype == "bfloat16"
    assert config.eos_token_ids == {END, TURN_END}


def test_greedy_tokens_and_text_equal_transformers(folder, llm, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [text for text in TEXTS if len(text) < 60]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, logprobs=1), use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        ids = expected[0, inputs["input_ids"].shape[1] :]
        assert output["token_ids"] == ids.tolist()
        assert output["text"] == tokenizer.decode(ids, skip_special_tokens=True)
    with torch.inference_mode():
        ids = torch.tensor([llm.tokenizer.encode(prompts[0]) + outputs[0]["token_ids"]])
        logprobs = model(ids).logits[0, -13:-1].log_softmax(-1)
    for token, found, row in zip(outputs[0]["token_ids"], outputs[0]["logprobs"], logprobs, strict=True):
        assert abs(found[token] - row[token].item()) < 1e-4


@pytest.mark.parametrize("eos", [END, TURN_END])
def test_each_id_of_the_generation_configs_list_ends_an_answer(eos, llm, monkeypatch):
    model, calls = llm.model_runner.model, []
    compute_logits = model.compute_logits

    def ends_at_the_fourth(hidden):
        logits = compute_logits(hidden)
        calls.append(len(hidden))
        if len(calls) == 4:
            logits[:, eos] = logits.max() + 1
        return logits

    prompt, params = "Hello, world!", SamplingParams(temperature=0, max_tokens=9)
    (free,) = llm.generate(prompt, params, use_tqdm=False)
    monkeypatch.setattr(model, "compute_logits", ends_at_the_fourth)
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    assert output["finish_reason"] == "stop"
    assert output["token_ids"] == [*free["token_ids"][:3], eos]
    assert output["text"] == llm.tokenizer.decode(free["token_ids"][:3])
    calls.clear()
    (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True), use_tqdm=False)
    assert output["finish_reason"] == "length" and output["token_ids"][3] == eos and len(output["token_ids"]) == 9


# The tokenizer


def test_ids_of_well_known_texts(tokenizer):
    assert tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    system_prompt = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    prompt_ids = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    assert tokenizer.encode(system_prompt) == prompt_ids
    assert len(tokenizer) == 151_669
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<think>", "</think>"]) == [
        END,
        TURN_END,
        151_667,
        151_668,
    ]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (TURN_END, END)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    detokenizer = Detokenizer(tokenizer)
    for position in range(len(ids)):
        detokenizer.append(ids[position : position + 1])
        assert text.startswith(detokenizer.text)
    detokenizer.append([], last=True)
    assert detokenizer.text == text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_vocabularys_ranks(text, tokenizer, vocabulary, builder):
    """BPE as the .tiktoken file means it: in each word the pair of lowest rank is merged first, until none is left."""
    ranks = {token: rank for rank, token in enumerate(vocabulary)}
    expected = []
    for word in regex.findall(builder.SPLIT, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while pairs := [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]:
            best = min(pairs, key=lambda i: ranks[parts[i] + parts[i + 1]])
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        expected += [ranks[part] for part in parts]
    assert tokenizer.encode(text) == expected


def test_special_tokens_are_skipped_and_thoughts_are_shown(tokenizer):
    text = "<|im_start|>assistant\n<think>\nhm\n</think>\n\nYes.<|im_end|><|endoftext|>"
    ids = tokenizer.encode(text)
    assert ids[0] == 151_644 and ids[-2:] == [TURN_END, END] and 151_667 in ids
    detokenizer = Detokenizer(tokenizer)
    for token_id in ids:
        detokenizer.append([token_id])
    assert detokenizer.text == "assistant\n<think>\nhm\n</think>\n\nYes."


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "Who are you?"},
]


@pytest.mark.parametrize("thinking", [True, False, None])
def test_chat_prompts_are_chatml(thinking, llm):
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in MESSAGES)
    expected = turns + "<|im_start|>assistant\n" + ("<think>\n\n</think>\n\n" if thinking is False else "")
    arguments = {} if thinking is None else {"enable_thinking": thinking}
    ids = llm.apply_chat_template(MESSAGES, **arguments)
    assert llm.tokenizer.decode(ids) == expected
    assert ids[0] == 151_644 and ids.count(TURN_END) == 4
    params = SamplingParams(temperature=0, max_tokens=4)
    answer = llm.chat(MESSAGES, params, use_tqdm=False, **arguments)
    assert answer["token_ids"] == llm.generate(ids, params, use_tqdm=False)[0]["token_ids"]


def test_the_vocabulary_is_the_published_file():
    digest = hashlib.sha256(lzma.decompress(VOCABULARY.read_bytes())).hexdigest()
    assert digest in (VOCABULARY.parent / "README.md").read_text()


def test_a_vocabulary_that_is_not_one_is_refused(builder, tmp_path):
    (tmp_path / "gap.tiktoken").write_bytes(b"IQ== 0\nIg== 2\n")
    with pytest.raises(ValueError, match="ranks must count up from 0"):
        builder.read_vocabulary(tmp_path / "gap.tiktoken")
    with pytest.raises(ValueError, match="not made up of two earlier ones"):
        builder.recover_merges([b"a", b"b", b"abc"])
