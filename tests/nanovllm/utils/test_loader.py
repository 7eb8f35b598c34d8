"""Reading checkpoints: whole files, shards, broken files, and each rank's part of every tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import make_checkpoint

from nanovllm.attention import get_backend
from nanovllm.config import ModelConfig
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.loader import INDEX_FILE, SINGLE_FILE, load_model

K_PROJ = "model.layers.1.self_attn.k_proj.weight"
NORM = "model.layers.0.self_attn.q_norm.weight"
EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def build(folder: Path, rank: int = 0, size: int = 1) -> Qwen3ForCausalLM:
    """The rank's model with every parameter NaN, so that what the loader leaves out shows."""
    model = Qwen3ForCausalLM(ModelConfig.from_folder(folder), get_backend("reference"), TensorParallel(rank, size))
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    return model


def load(folder: Path, rank: int = 0, size: int = 1) -> Qwen3ForCausalLM:
    model = build(folder, rank, size)
    load_model(model, folder)
    assert not any(parameter.isnan().any() for parameter in model.parameters())
    return model


def unpacked(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """The whole model's parameters under their published names."""
    config, tensors = model.config, {}
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for name, parameter in model.named_parameters():
        if "qkv_proj" in name:
            for part, tensor in zip("qkv", parameter.split([q, kv, kv]), strict=True):
                tensors[name.replace("qkv_proj", f"{part}_proj")] = tensor
        elif "gate_up_proj" in name:
            for part, tensor in zip(["gate", "up"], parameter.chunk(2), strict=True):
                tensors[name.replace("gate_up_proj", f"{part}_proj")] = tensor
        else:
            tensors[name] = parameter
    return tensors


def assert_equals_transformers(model: Qwen3ForCausalLM, folder: Path) -> None:
    truth = dict(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    mine = unpacked(model)
    assert set(mine) == set(truth)
    for name, tensor in truth.items():
        assert torch.equal(mine[name], tensor), name


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tied"), attention_bias=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sharded"), tie_word_embeddings=False, max_shard_size="40KB")


def copy(folder: Path, target: Path, **changes: torch.Tensor | None) -> Path:
    """A copy whose single file has some tensors replaced, added, or (None) left out."""
    tensors = load_file(folder / SINGLE_FILE)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor.contiguous().clone()
    save_file(tensors, target / SINGLE_FILE, metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


def copy_files(folder: Path, target: Path) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("kind", ["tied", "untied", "sharded"])
def test_every_tensor_equals_transformers(kind, request):
    folder = request.getfixturevalue(kind)
    assert (folder / INDEX_FILE).exists() == (kind == "sharded")
    assert_equals_transformers(load(folder), folder)


def test_a_tied_head_is_one_tensor(tied, untied):
    model = load(tied)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model = load(untied)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_tied_checkpoint_may_carry_a_copy_of_the_head(tied, tmp_path):
    embed = load_file(tied / SINGLE_FILE)[EMBED]
    assert_equals_transformers(load(copy(tied, tmp_path, **{HEAD: embed})), tied)


@pytest.mark.parametrize(
    "change",
    [
        lambda embed: embed + 1e-3,
        lambda embed: embed[:-1],
        lambda embed: embed.T,
        lambda embed: embed.half(),
        lambda embed: embed.to(torch.int64),
    ],
    ids=["values", "rows", "transposed", "rounded", "ints"],
)
def test_a_tied_checkpoint_whose_head_differs_is_refused(change, tied, tmp_path):
    head = change(load_file(tied / SINGLE_FILE)[EMBED])
    with pytest.raises(ValueError, match=rf"(?s)lm_head\.weight differs from {EMBED}.*tie_word_embeddings"):
        load(copy(tied, tmp_path, **{HEAD: head}))


def test_a_tied_checkpoint_needs_the_embedding(tied, tmp_path):
    embed = load_file(tied / SINGLE_FILE)[EMBED]
    with pytest.raises(ValueError, match=rf"missing: {EMBED}"):
        load(copy(tied, tmp_path, **{HEAD: embed, EMBED: None}))


@pytest.mark.parametrize("name", [K_PROJ, NORM, HEAD, EMBED, "model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named_as_published(name, untied, tmp_path):
    with pytest.raises(ValueError) as error:
        load(copy(untied, tmp_path, **{name: None}))
    assert str(tmp_path) in str(error.value) and f"missing: {name}" in str(error.value)
    assert str(error.value).count("missing:") == 1


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.self_attn.k_proj.weight",  # one layer too many
        "model.layers.0.self_attn.k_proj.bias",  # config.json says attention_bias is false
        "model.layers.0.self_attn.qkv_proj.weight",  # packed here, but published apart
        "model.layers.0.mlp.experts.0.gate_proj.weight",
        "weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
    ],
)
def test_an_unexpected_tensor_is_named(name, untied, tmp_path):
    with pytest.raises(ValueError) as error:
        load(copy(untied, tmp_path, **{name: torch.zeros(7, 5)}))
    assert f"unexpected: {name} (7, 5)" in str(error.value)


def test_old_rotary_frequencies_are_passed_over(untied, tmp_path):
    folder = copy(untied, tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert_equals_transformers(load(folder), untied)


# hidden 48, 4 query heads, 2 KV heads, head_dim 16, intermediate 80, vocabulary 199
MISSHAPEN = [
    (K_PROJ, (32, 1)),  # would broadcast over the columns
    (K_PROJ, (1, 48)),  # would broadcast over the rows
    (K_PROJ, (48,)),
    (K_PROJ, ()),
    (K_PROJ, (64, 48)),  # as many rows as q_proj
    (K_PROJ, (48, 32)),  # transposed
    (NORM, (1,)),
    (NORM, ()),
    (NORM, (48,)),
    (NORM, (1, 16)),
    ("model.layers.0.mlp.gate_proj.weight", (160, 48)),
    ("model.layers.0.mlp.gate_proj.weight", (80, 1)),
    ("model.layers.0.mlp.gate_proj.weight", ()),
    ("model.layers.0.mlp.down_proj.weight", (80, 48)),
    ("model.layers.0.mlp.down_proj.weight", (48, 1)),
    ("model.layers.0.self_attn.o_proj.weight", (64,)),
    (EMBED, (199, 1)),
    (EMBED, (200, 48)),
    (EMBED, ()),
    (HEAD, (1, 48)),
    (HEAD, (48, 199)),
]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("name", "shape"), MISSHAPEN)
def test_a_misshapen_tensor_is_named_with_its_shape(name, shape, size, untied, tmp_path):
    folder = copy(untied, tmp_path, **{name: torch.zeros(shape)})
    with pytest.raises(ValueError) as error:
        load(folder, rank=size - 1, size=size)
    assert f"misshapen: {name} {shape}" in str(error.value)
    assert str(error.value).count("\n") == 1  # this tensor alone


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_an_integer_tensor_is_named_with_its_dtype(dtype, untied, tmp_path):
    with pytest.raises(ValueError, match=rf"{K_PROJ}: dtype {dtype} where a float dtype is needed"):
        load(copy(untied, tmp_path, **{K_PROJ: torch.ones(32, 48, dtype=dtype)}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float_dtypes_are_converted(dtype, untied, tmp_path):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(untied / SINGLE_FILE).items()}
    mine = unpacked(load(copy(untied, tmp_path, **tensors)))
    assert all(torch.equal(mine[name], tensor.float()) for name, tensor in tensors.items())


def test_all_problems_are_told_at_once_but_not_hundreds(untied, tmp_path):
    folder = copy(untied, tmp_path, **{K_PROJ: None, NORM: torch.zeros(3), "extra": torch.zeros(1)})
    with pytest.raises(ValueError) as error:
        load(folder)
    for part in (f"missing: {K_PROJ}", f"misshapen: {NORM} (3,)", "unexpected: extra (1,)"):
        assert part in str(error.value)
    many = {f"extra.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(ValueError, match="and 31 more$") as error:
        load(copy(untied, tmp_path, **many, **{NORM: None}))
    assert str(error.value).count("\n") == 21


# Files


def test_no_checkpoint_in_the_folder(untied, tmp_path):
    (tmp_path / "config.json").write_text((untied / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds neither {SINGLE_FILE} nor {INDEX_FILE}"):
        load(tmp_path)


def corrupt(path: Path, how: str) -> None:
    content = path.read_bytes()
    (header_size,) = struct.unpack("<Q", content[:8])
    path.write_bytes(
        {
            "empty": b"",
            "five bytes": content[:5],
            "half the header": content[: 8 + header_size // 2],
            "half the data": content[: 8 + header_size + (len(content) - header_size) // 2],
            "last byte": content[:-1],
            "one byte more": content + b"\0",
            "header is no JSON": content[:8] + b"?" * header_size + content[8 + header_size :],
            "header size": struct.pack("<Q", 2**60) + content[8:],
            "an HTML page": b"<!DOCTYPE html><html><body>404</body></html>",
            "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        }[how]
    )


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "five bytes",
        "half the header",
        "half the data",
        "last byte",
        "one byte more",
        "header is no JSON",
        "header size",
        "an HTML page",
        "a pointer",
    ],
)
@pytest.mark.parametrize("kind", ["untied", "sharded"])
def test_a_corrupt_file_is_named(how, kind, request, tmp_path):
    folder = copy_files(request.getfixturevalue(kind), tmp_path)
    file = sorted(folder.glob("*.safetensors"))[-1]
    corrupt(file, how)
    with pytest.raises(ValueError, match=rf"{file.name} is not a readable safetensors file"):
        load(folder)


def test_a_missing_shard_is_named_before_anything_is_read(sharded, tmp_path):
    folder = copy_files(sharded, tmp_path)
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    model = build(folder)
    with pytest.raises(FileNotFoundError, match=rf"{gone.name} does not exist, but {INDEX_FILE} names it"):
        load_model(model, folder)
    assert all(parameter.isnan().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"weight_map": null}',
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 5}}',
        b'{"weight_map": {"a": ["b"]}}',
        b'{"weight_map": {"a": null, "b": "c"}}',
        b"\xff\xfe",
        b"<html>",
    ],
)
def test_an_index_that_is_none_is_named(content, sharded, tmp_path):
    folder = copy_files(sharded, tmp_path)
    (folder / INDEX_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{INDEX_FILE} is not a safetensors index"):
        load(folder)


def test_a_shard_that_lacks_what_the_index_promises(sharded, tmp_path):
    folder = copy_files(sharded, tmp_path)
    weight_map = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    tensors = load_file(folder / weight_map[K_PROJ])
    del tensors[K_PROJ]
    save_file(tensors, folder / weight_map[K_PROJ])
    with pytest.raises(ValueError, match=rf"missing: {K_PROJ}"):
        load(folder)


def test_a_name_in_two_shards(sharded, tmp_path):
    folder = copy_files(sharded, tmp_path)
    weight_map = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    other = next(file for file in sorted(set(weight_map.values())) if file != weight_map[K_PROJ])
    save_file({**load_file(folder / other), K_PROJ: torch.zeros(32, 48)}, folder / other)
    files = "|".join(sorted({other, weight_map[K_PROJ]}))
    with pytest.raises(ValueError, match=rf"{K_PROJ} is in ({files}) and in ({files})"):
        load(folder)


def test_stray_files_beside_the_index_are_not_read(sharded, tmp_path):
    folder = copy_files(sharded, tmp_path)
    save_file({"stray": torch.zeros(1)}, folder / "consolidated.safetensors")
    save_file({"stray": torch.zeros(1)}, folder / SINGLE_FILE)
    assert_equals_transformers(load(folder), sharded)


# Tensor parallel

LAYOUTS = {
    "even": dict(num_attention_heads=8, num_key_value_heads=4, vocab_size=200),
    "fewer KV heads": dict(num_attention_heads=8, num_key_value_heads=2, vocab_size=131),
    "one KV head, tied, biases": dict(
        num_attention_heads=4, num_key_value_heads=1, vocab_size=101, tie_word_embeddings=True, attention_bias=True
    ),
}


@pytest.fixture(scope="module", params=LAYOUTS, ids=list(LAYOUTS))
def layout(request, tmp_path_factory) -> Path:
    settings = {"head_dim": 6, "tie_word_embeddings": False} | LAYOUTS[request.param]
    return make_checkpoint(tmp_path_factory.mktemp("layout"), num_hidden_layers=2, max_shard_size="30KB", **settings)


def rank_parts(model: Qwen3ForCausalLM, name: str) -> dict[str, torch.Tensor]:
    """One rank's parameter under its published names, its padding cut off."""
    parameter, tp, config = dict(model.named_parameters())[name], model.lm_head.tp, model.config
    if "qkv_proj" in name:
        q = config.num_attention_heads // tp.size * config.head_dim
        kv = max(1, config.num_key_value_heads // tp.size) * config.head_dim
        parts = zip("qkv", parameter.split([q, kv, kv]), strict=True)
        return {name.replace("qkv_proj", f"{part}_proj"): tensor for part, tensor in parts}
    if "gate_up_proj" in name:
        parts = zip(["gate", "up"], parameter.chunk(2), strict=True)
        return {name.replace("gate_up_proj", f"{part}_proj"): tensor for part, tensor in parts}
    return {name: parameter}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_ranks_shards_put_together_are_the_whole_tensors(size, layout):
    truth = dict(transformers.AutoModelForCausalLM.from_pretrained(layout, dtype=torch.float32).named_parameters())
    ranks = [load(layout, rank, size) for rank in range(size)]
    config = ranks[0].config
    seen = set()
    for name, _ in ranks[0].named_parameters():
        shares = [rank_parts(model, name) for model in ranks]
        for published in shares[0]:
            parts, whole = [share[published] for share in shares], truth[published]
            seen.add(published)
            if ".k_proj" in published or ".v_proj" in published:
                copies = max(1, size // config.num_key_value_heads)  # ranks that hold the same KV head
                for first in range(0, size, copies):
                    assert all(torch.equal(parts[first], part) for part in parts[first : first + copies])
                assert torch.equal(torch.cat(parts[::copies]), whole), published
            elif published in (EMBED, HEAD):
                joined = torch.cat(parts)
                assert torch.equal(joined[: config.vocab_size], whole), published
                assert len(joined) - config.vocab_size < size and not joined[config.vocab_size :].any()
            elif "norm" in published or published.endswith(("o_proj.bias", "down_proj.bias")):
                assert all(torch.equal(part, whole) for part in parts), published
            elif ".o_proj" in published or ".down_proj" in published:
                assert torch.equal(torch.cat(parts, dim=1), whole), published
            else:
                assert torch.equal(torch.cat(parts), whole), published
                assert size == 1 or len(parts[0]) < len(whole)
    assert seen == set(truth)


@pytest.mark.parametrize("size", [2, 4])
def test_a_query_head_lies_on_the_rank_of_its_kv_head(size, layout):
    """Query head h reads KV head h // group in the whole model, and must find the same one among its rank's heads."""
    whole = dict(transformers.AutoModelForCausalLM.from_pretrained(layout, dtype=torch.float32).named_parameters())
    config = ModelConfig.from_folder(layout)
    group, dim = config.num_attention_heads // config.num_key_value_heads, config.head_dim
    for rank in range(size):
        attention = load(layout, rank, size).model.layers[1].self_attn
        heads, kv_heads = attention.attn.num_heads, attention.attn.num_kv_heads
        q, k, _ = attention.qkv_proj.weight.split([heads * dim, kv_heads * dim, kv_heads * dim])
        for h in range(heads):
            total = rank * heads + h
            local_kv = h // (heads // kv_heads)
            q_whole = whole["model.layers.1.self_attn.q_proj.weight"].view(-1, dim, config.hidden_size)[total]
            k_whole = whole["model.layers.1.self_attn.k_proj.weight"].view(-1, dim, config.hidden_size)[total // group]
            assert torch.equal(q.view(heads, dim, -1)[h], q_whole)
            assert torch.equal(k.view(kv_heads, dim, -1)[local_kv], k_whole)


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (3, {}, r"tensor_parallel_size \(3\) must divide num_attention_heads \(4\)"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, r"num_key_value_heads \(6\) or be a multiple"),
        (4, {"intermediate_size": 78}, r"must divide .*\(78\)"),
    ],
)
def test_ranks_that_cannot_share_the_model_are_refused(size, settings, message, tmp_path):
    folder = make_checkpoint(tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        build(folder, 0, size)


# name: hidden, layers, query heads, KV heads, intermediate, tied, published parameter count
QWEN3_FAMILY = {
    "0.6B": (1024, 28, 16, 8, 3072, True, 596_049_920),
    "1.7B": (2048, 28, 16, 8, 6144, True, 1_720_574_976),
    "4B": (2560, 36, 32, 8, 9728, True, 4_022_468_096),
    "8B": (4096, 36, 32, 8, 12288, False, 8_190_735_360),
    "14B": (5120, 40, 40, 8, 17408, False, 14_768_307_200),
    "32B": (5120, 64, 64, 8, 25600, False, 32_762_123_264),
}
VOCAB, HEAD_DIM = 151_936, 128


def family_config(name: str) -> dict:
    hidden, layers, heads, kv_heads, intermediate, tied, _ = QWEN3_FAMILY[name]
    return {
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "torch_dtype": "bfloat16",
    }


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", QWEN3_FAMILY)
def test_the_qwen3_family_has_its_published_parameters(name, size):
    hidden, layers, heads, kv_heads, intermediate, tied, published = QWEN3_FAMILY[name]
    split = (  # by every rank: attention and MLP matrices; the embedding, and the head where it is not tied
        layers * (hidden * HEAD_DIM * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate)
        + (1 if tied else 2) * VOCAB * hidden
    )
    kept = layers * (2 * hidden + 2 * HEAD_DIM) + hidden  # norms, whole on every rank
    assert split + kept == published
    config = ModelConfig.from_dict(family_config(name))
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config, get_backend("reference"), TensorParallel(size - 1, size))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == split // size + kept
    assert split % size == 0


@pytest.mark.parametrize("name", ["0.6B", "32B"])
def test_the_qwen3_family_has_transformers_parameters(name):
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config.from_dict(family_config(name)))
    assert peer.num_parameters() == QWEN3_FAMILY[name][-1]
