"""What the engine understands of a checkpoint's config.json, in its 2025 form and in transformers 5's."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nanovllm.config import Llama3Scaling, ModelConfig, YarnScaling
from nanovllm.layers.rotary import RotaryEmbedding

# The keys and values that Qwen/Qwen3-0.6B was published with.
FORM_2025 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GENERATION = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}


def form_5(raw: dict) -> dict:
    """The same model as transformers 5 writes it (tested below against what it really writes)."""
    new = {key: value for key, value in raw.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    return new | {
        "rope_parameters": {"rope_theta": raw["rope_theta"], "rope_type": "default"},
        "dtype": raw["torch_dtype"],
        "layer_types": ["full_attention"] * raw["num_hidden_layers"],
    }


def test_both_forms_give_the_published_shape():
    old, new = ModelConfig.from_dict(FORM_2025, GENERATION), ModelConfig.from_dict(form_5(FORM_2025), GENERATION)
    assert old == new
    assert old == ModelConfig(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        attention_bias=False,
        dtype="bfloat16",
        eos_token_ids=frozenset({151_643, 151_645}),
    )


def write(folder, raw, generation=None):
    (folder / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_what_transformers_writes_today_is_read_the_same(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    transformers.AutoConfig.from_pretrained(write(old, FORM_2025)).save_pretrained(new)
    written = json.loads((new / "config.json").read_text())
    assert "rope_parameters" in written and "dtype" in written and "rope_theta" not in written
    assert ModelConfig.from_folder(new) == ModelConfig.from_folder(old)


@given(
    theta=st.one_of(st.integers(1, 10**8), st.floats(1.0, 1e8)),
    bias=st.booleans(),
    tied=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 1e-3]),
    heads=st.sampled_from([(16, 8), (8, 8), (6, 1)]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_both_forms_agree_with_each_other_and_with_transformers(theta, bias, tied, eps, heads, dtype):
    raw = FORM_2025 | {
        "rope_theta": theta,
        "attention_bias": bias,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "torch_dtype": dtype,
    }
    ours = ModelConfig.from_dict(raw)
    assert ours == ModelConfig.from_dict(form_5(raw))
    theirs = transformers.Qwen3Config.from_dict(dict(raw))
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] == theta
    assert ours.dtype == str(theirs.dtype).removeprefix("torch.")
    for key in ("attention_bias", "tie_word_embeddings", "rms_norm_eps", "num_key_value_heads", "head_dim"):
        assert getattr(ours, key) == getattr(theirs, key)


# rope_theta


NO_THETA = [None, 0, -1, -1e6, True, "1000000", [1e6], {"full_attention": 1e6}, float("nan"), float("inf")]


@pytest.mark.parametrize("theta", NO_THETA)
def test_rope_theta_is_never_made_up(theta):
    without = {key: value for key, value in FORM_2025.items() if key != "rope_theta"}
    forms = [
        without | {"rope_theta": theta},
        without | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}},
        without | {"rope_parameters": {}, "rope_theta": theta},
        without | {"rope_scaling": {"rope_type": "default"}, "rope_theta": theta},
    ]
    if theta is None:
        forms += [without, without | {"rope_parameters": {"rope_type": "default"}}]
    for raw in forms:
        with pytest.raises(ValueError, match="rope_theta must be a positive"):
            ModelConfig.from_dict(raw)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "longrope", "proportional", "su", "", 3, ["yarn"]])
@pytest.mark.parametrize(
    "form", [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")]
)
def test_other_rope_types_are_refused_by_their_name(form, kind):
    group, key = form
    rope = {group: {key: kind, "rope_theta": 1e6, "factor": 2.0}}
    message = f"RoPE of type {kind!r} is not served; allowed: 'default', 'llama3', 'yarn'"
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_dict(FORM_2025 | rope)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}  # as Qwen2.5's model card says
LLAMA3 = LLAMA["rope_scaling"]


def rope_5(raw: dict) -> dict:
    """The same model with its RoPE as transformers 5 writes it."""
    scaling = dict(raw.get("rope_scaling") or {"rope_type": "default"})
    scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type"))
    new = {key: value for key, value in raw.items() if key not in ("rope_theta", "rope_scaling")}
    return new | {"rope_parameters": scaling | {"rope_theta": raw["rope_theta"]}}


def test_llama_as_published():
    config = ModelConfig.from_dict(LLAMA)
    assert config == ModelConfig.from_dict(rope_5(LLAMA))
    assert config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert (config.rope_theta, config.head_dim, config.max_position_embeddings) == (5e5, 64, 131_072)
    assert config.eos_token_ids == {128_001, 128_008, 128_009}
    assert not (config.attention_bias or config.o_proj_bias or config.mlp_bias)
    config = ModelConfig.from_dict(LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 128})
    assert config.attention_bias and config.o_proj_bias and config.mlp_bias and config.head_dim == 128


def test_the_first_llamas_say_less():
    """They have as many KV heads as query heads, and 10,000 was no setting yet."""
    raw = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rope_theta", "rope_scaling", "mlp_bias")}
    config = ModelConfig.from_dict(raw)
    peer = transformers.LlamaConfig.from_dict(dict(raw))
    assert config.num_key_value_heads == peer.num_key_value_heads == 32
    assert config.rope_theta == peer.rope_parameters["rope_theta"] == 10_000
    assert config.rope_scaling is None


def test_qwen2_as_published():
    config = ModelConfig.from_dict(QWEN2)
    assert config == ModelConfig.from_dict(rope_5(QWEN2))
    assert config.attention_bias and not config.o_proj_bias and not config.mlp_bias  # no key of its config says so
    assert (config.head_dim, config.max_position_embeddings, config.rope_scaling) == (128, 32_768, None)
    with pytest.raises(ValueError, match="'num_key_value_heads' is missing"):
        ModelConfig.from_dict({k: v for k, v in QWEN2.items() if k != "num_key_value_heads"})


@pytest.mark.parametrize("raw", [QWEN2, FORM_2025, LLAMA], ids=["qwen2", "qwen3", "llama"])
def test_yarn_makes_room_for_more_positions(raw):
    """Model cards tell people to add rope_scaling; max_position_embeddings stays as it was."""
    raw = raw | {"rope_scaling": YARN, "max_position_embeddings": 32_768}
    config = ModelConfig.from_dict(raw)
    assert config == ModelConfig.from_dict(rope_5(raw))
    assert config.max_position_embeddings == 131_072
    assert config.rope_scaling == YarnScaling(4.0, 32.0, 1.0, pytest.approx(0.1 * math.log(4) + 1), True, 32_768)


def test_rope_scaling_beside_the_default_parameters():
    """A file of transformers 5 to which somebody added what a model card says."""
    raw = rope_5(QWEN2)
    assert ModelConfig.from_dict(raw | {"rope_scaling": YARN}) == ModelConfig.from_dict(QWEN2 | {"rope_scaling": YARN})
    with pytest.raises(ValueError, match=r"factor is 2.0 in rope_scaling and 4.0 in rope_parameters"):
        ModelConfig.from_dict(rope_5(QWEN2 | {"rope_scaling": YARN}) | {"rope_scaling": YARN | {"factor": 2.0}})


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (YARN | {"factor": None}, "factor of RoPE type 'yarn' must be a positive number"),
        (YARN | {"factor": 0.5}, "factor of RoPE type 'yarn' must be at least 1, got 0.5"),
        (YARN | {"factor": "4"}, "factor of RoPE type 'yarn' must be a positive number, got '4'"),
        (
            YARN | {"original_max_position_embeddings": -1},
            "original_max_position_embeddings of RoPE type 'yarn' must be",
        ),
        (YARN | {"attention_factor": 0}, "attention_factor of RoPE type 'yarn' must be a positive number"),
        (YARN | {"truncate": 1}, "truncate must be true or false"),
        (YARN | {"beta_fast": 1, "beta_slow": 2}, r"beta_slow \(2.0\) must be at most beta_fast \(1.0\)"),
        (YARN | {"low_freq_factor": 1.0}, "RoPE of type 'yarn' has low_freq_factor=1.0; allowed: 'factor', 'original"),
        (LLAMA3 | {"low_freq_factor": 4.0}, r"low_freq_factor \(4.0\) must be less than high_freq_factor \(4.0\)"),
        (LLAMA3 | {"high_freq_factor": None}, "high_freq_factor of RoPE type 'llama3' must be a positive number"),
        (LLAMA3 | {"beta_fast": 32}, "RoPE of type 'llama3' has beta_fast=32; allowed: 'factor', 'low_freq_factor'"),
        ({"mrope_section": [16, 24, 24], "type": "default"}, "mrope_section=.*; allowed: 'rope_theta' alone"),
        ({"type": "default", "partial_rotary_factor": 0.5}, "has partial_rotary_factor=0.5"),
        (YARN | {"rope_theta": 1}, "rope_theta must be greater than 1 with RoPE of type 'yarn', got 1.0"),
        (["yarn"], "rope_scaling must be an object, got"),
    ],
)
def test_rope_parameters_that_are_not_served_are_named(rope, message):
    for raw in (QWEN2, LLAMA, FORM_2025):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict(raw | {"rope_scaling": rope})


def test_a_partial_rotation_is_refused():
    assert ModelConfig.from_dict(LLAMA | {"partial_rotary_factor": 1.0}) == ModelConfig.from_dict(LLAMA)
    with pytest.raises(ValueError, match="has partial_rotary_factor=0.5"):
        ModelConfig.from_dict(LLAMA | {"partial_rotary_factor": 0.5})


def test_a_head_dim_that_cannot_be_derived_is_refused():
    with pytest.raises(ValueError, match=r"without head_dim, hidden_size \(2048\) must be a multiple of .* \(24\)"):
        ModelConfig.from_dict(LLAMA | {"num_attention_heads": 24})


positive = st.floats(0.25, 64.0)
YARN_RANGES = {
    "beta_fast": st.floats(2.0, 64.0),
    "beta_slow": st.floats(0.1, 2.0),
    "attention_factor": st.floats(0.5, 2.0),
    "mscale": st.floats(0.1, 2.0),
    "mscale_all_dim": st.floats(0.1, 2.0),
    "truncate": st.booleans(),
}


@settings(deadline=None)
@given(
    theta=st.floats(100.0, 1e7),
    head_dim=st.sampled_from([8, 32, 64, 128]),
    factor=st.floats(1.0, 64.0),
    original=st.integers(16, 40_000),
    rope=st.one_of(
        st.just({}),
        st.fixed_dictionaries({}, optional=YARN_RANGES).map(lambda extra: {"rope_type": "yarn"} | extra),
        st.tuples(positive, st.floats(1.1, 8.0)).map(
            lambda pair: {"rope_type": "llama3", "low_freq_factor": pair[0], "high_freq_factor": pair[0] * pair[1]}
        ),
    ),
)
def test_frequencies_and_attention_factor_equal_transformers(theta, head_dim, factor, original, rope):
    """Read from either spelling. The table holds cosines and sines, multiplied by the attention factor."""
    scaling = rope | {"factor": factor, "original_max_position_embeddings": original} if rope else None
    raw = LLAMA | {"head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling}
    config = ModelConfig.from_dict(raw)
    assert config == ModelConfig.from_dict(rope_5(raw))
    peer = LlamaRotaryEmbedding(transformers.LlamaConfig.from_dict(rope_5(raw)))
    rotary = RotaryEmbedding(head_dim, config.rope_theta, 600, config.rope_scaling)
    assert torch.allclose(rotary._frequencies(), peer.inv_freq, rtol=1e-5, atol=0)
    cos, sin = peer(torch.zeros(1), torch.arange(600).unsqueeze(0))
    half = head_dim // 2
    expected = torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1)
    assert (rotary.table - expected).abs().max() < 5e-4 * getattr(config.rope_scaling, "attention_factor", 1.0)


# End-of-sequence ids


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, {151_645}),
        ({}, {151_645}),
        ({"eos_token_id": 7}, {7}),
        ({"eos_token_id": [151_645, 151_643]}, {151_643, 151_645}),
        ({"eos_token_id": None}, set()),
    ],
)
def test_eos_comes_from_the_generation_config_first(generation, expected, tmp_path):
    assert ModelConfig.from_folder(write(tmp_path, FORM_2025, generation)).eos_token_ids == expected


@pytest.mark.parametrize("eos", ["151645", [1, "2"], 1.5, True, [None], {"id": 3}, -1])
def test_an_eos_that_is_no_token_id_is_refused(eos):
    with pytest.raises(ValueError, match="eos_token_id must be a token id or a list"):
        ModelConfig.from_dict(FORM_2025, {"eos_token_id": eos})
    with pytest.raises(ValueError, match="eos_token_id must be a token id or a list"):
        ModelConfig.from_dict(FORM_2025 | {"eos_token_id": eos})


# What is refused


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen2_moe", "mixtral", "qwen3_next", "gpt2", "", 3, ["llama"], None])
def test_other_models_are_refused_by_their_name(kind, tmp_path):
    served = "this engine serves 'qwen3', 'qwen2', 'llama'"
    with pytest.raises(ValueError, match=re.escape(f"model_type is {kind!r}; {served}")) as info:
        ModelConfig.from_folder(write(tmp_path, FORM_2025 | {"model_type": kind}))
    assert str(tmp_path) in str(info.value)
    with pytest.raises(ValueError, match="model_type is None"):
        ModelConfig.from_folder(write(tmp_path, {k: v for k, v in FORM_2025.items() if k != "model_type"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window is true"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must all be 'full_attention'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is set"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype must be one of float32, float16, bfloat16, got 'float8_e4m3fn'"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(16\) must be a multiple of num_key_value_heads \(3\)"),
        ({"head_dim": 127}, "head_dim must be even"),
    ],
)
def test_kinds_that_are_not_served_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(FORM_2025 | change)


def test_a_window_that_is_not_used_does_not_matter():
    assert ModelConfig.from_dict(FORM_2025 | {"sliding_window": 4096}) == ModelConfig.from_dict(FORM_2025)


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]


@pytest.mark.parametrize("key", SIZES)
def test_sizes_must_be_there_and_positive_ints(key):
    with pytest.raises(ValueError, match=f"the key '{key}' is missing"):
        ModelConfig.from_dict({k: v for k, v in FORM_2025.items() if k != key})
    for value in (0, -1, 1.5, "8", True, [8]):
        with pytest.raises(ValueError, match=f"{key} must be a positive int"):
            ModelConfig.from_dict(FORM_2025 | {key: value})


@pytest.mark.parametrize("eps", [0, -1e-6, "1e-6", None, True, float("nan")])
def test_the_norms_epsilon_must_be_there_and_positive(eps):
    with pytest.raises(ValueError, match="rms_norm_eps must be a positive"):
        ModelConfig.from_dict(FORM_2025 | {"rms_norm_eps": eps})
    with pytest.raises(ValueError, match="rms_norm_eps must be a positive"):
        ModelConfig.from_dict({k: v for k, v in FORM_2025.items() if k != "rms_norm_eps"})


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias"])
def test_switches_must_be_bools(key):
    for value in ("true", 1, "no"):
        with pytest.raises(ValueError, match=f"{key} must be true or false"):
            ModelConfig.from_dict(FORM_2025 | {key: value})
    assert getattr(ModelConfig.from_dict({k: v for k, v in FORM_2025.items() if k != key}), key) is False


# Files


@pytest.mark.parametrize("content", ["", "{", "<html>", '{"model_type": "qwen3",}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_is_not_json_is_named(name, content, tmp_path):
    write(tmp_path, FORM_2025, GENERATION)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path / name} is not valid JSON"):
        ModelConfig.from_folder(tmp_path)


def test_a_file_of_another_encoding_or_shape_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json must hold a JSON object, got list"):
        ModelConfig.from_folder(tmp_path)


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path / 'config.json'} does not exist"):
        ModelConfig.from_folder(tmp_path)
