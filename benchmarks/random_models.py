"""Models with random weights: `random:qwen3-0.6b` has the published shape, costs the same time, and needs no download.

They are written as checkpoints, so every engine reads them the way it reads a published one, tensor-parallel workers
included.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from nanovllm.config import EMBEDDED_MODEL

PREFIX = "random:"


@dataclass(frozen=True)
class Shape:
    """A dense Qwen3: what differs between the published config.json files."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 151936
    tied: bool = False


SHAPES = {
    "tiny": Shape(2, 64, 160, heads=4, kv_heads=2, head_dim=32, vocab=199, tied=True),
    "qwen3-0.6b": Shape(28, 1024, 3072, heads=16, tied=True),
    "qwen3-1.7b": Shape(28, 2048, 6144, heads=16, tied=True),
    "qwen3-4b": Shape(36, 2560, 9728, heads=32, tied=True),
    "qwen3-8b": Shape(36, 4096, 12288, heads=32),
    "qwen3-14b": Shape(40, 5120, 17408, heads=40),
    "qwen3-32b": Shape(64, 5120, 25600, heads=64),
}
"""The dense Qwen3 family, and a tiny one to try the scripts."""

HELP = f"folder of a checkpoint, or random weights of a shape: {', '.join(PREFIX + name for name in SHAPES)}"


def config(shape: Shape) -> dict:
    """The config.json of that shape, as the published ones write it."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "max_position_embeddings": 40960,
        "torch_dtype": "bfloat16",
    }


def layer_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names within a decoder layer -> sizes."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "input_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (q, shape.hidden),
        "self_attn.k_proj.weight": (kv, shape.hidden),
        "self_attn.v_proj.weight": (kv, shape.hidden),
        "self_attn.q_norm.weight": (shape.head_dim,),
        "self_attn.k_norm.weight": (shape.head_dim,),
        "self_attn.o_proj.weight": (shape.hidden, q),
        "post_attention_layernorm.weight": (shape.hidden,),
        "mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.up_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.intermediate),
    }


def write_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> None:
    """Writes a bfloat16 checkpoint, one file a layer: normal weights of variance 1 / fan-in, norms of one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    outer = {"model.embed_tokens.weight": (shape.vocab, shape.hidden), "model.norm.weight": (shape.hidden,)}
    if not shape.tied:
        outer["lm_head.weight"] = (shape.vocab, shape.hidden)
    files = [outer]
    for layer in range(shape.layers):
        files.append({f"model.layers.{layer}.{name}": size for name, size in layer_tensors(shape).items()})
    weight_map, total_size = {}, 0
    for index, sizes in enumerate(files):
        name = f"model-{index:03}.safetensors"
        tensors = {}
        for key, size in sizes.items():
            if len(size) == 1:
                tensors[key] = torch.ones(size, dtype=torch.bfloat16)
            else:
                normal = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
                tensors[key] = (normal * size[1] ** -0.5).cpu()
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
        total_size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def model_folder(model: str | Path, *, seed: int = 0, tokenizer: bool = False) -> Iterator[Path]:
    """The checkpoint's folder; a random one is written to a temporary folder and removed afterwards.

    Args:
        model: a folder, or `random:` and a name in SHAPES.
        tokenizer: put the embedded model's tokenizer beside random weights, for an engine that insists on one.

    Raises:
        ValueError: no such shape.
        FileNotFoundError: no such folder.
    """
    if not str(model).startswith(PREFIX):
        if not (Path(model) / "config.json").is_file():
            raise FileNotFoundError(f"model={str(model)!r} is no folder with a config.json; give a {HELP}.")
        yield Path(model).resolve()
        return
    name = str(model).removeprefix(PREFIX)
    if name not in SHAPES:
        raise ValueError(f"model={str(model)!r} is unknown; allowed: {', '.join(PREFIX + known for known in SHAPES)}.")
    with tempfile.TemporaryDirectory(prefix="random-qwen3-") as temporary:
        write_checkpoint(SHAPES[name], Path(temporary), seed)
        if tokenizer:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(EMBEDDED_MODEL / file, temporary)
        yield Path(temporary)


def describe(model: str | Path) -> str:
    """What a results file calls the model: no path of this machine."""
    if str(model).startswith(PREFIX):
        return f"{str(model).removeprefix(PREFIX)}, random weights, bfloat16"
    return "embedded" if Path(model).resolve() == EMBEDDED_MODEL.resolve() else Path(model).name


def vocab_size(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]
