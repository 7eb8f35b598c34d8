"""The engine's settings are checked when they are made: the message names the argument and what is allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nanovllm.config import ATTENTION_BACKENDS, DEVICES, DTYPES, EngineConfig

FIELDS = [field.name for field in dataclasses.fields(EngineConfig)]
NAN, INF = float("nan"), float("inf")

WRONG_TYPES = {
    "model": [None, 3, ["a"]],
    "max_num_batched_tokens": [512.0, "512", None, True],
    "max_num_seqs": [8.0, "8", None, True],
    "max_model_len": [8.0, "8", None, True],
    "gpu_memory_utilization": ["0.9", None, True],
    "tensor_parallel_size": [1.0, "1", None, True],
    "enforce_eager": [1, 0, None, "no"],
    "kvcache_block_size": [16.0, "16", True],
    "num_kvcache_blocks": [16.0, "16", True],
    "cpu_kvcache_gib": ["1", None, True],
    "device": [],
    "dtype": [],
    "attention_backend": [],
    "enable_prefix_caching": [1, None, "yes"],
    "seed": [1.0, "1", None, True],
    "trace": [1, None, "yes"],
    "async_scheduling": [1, 0, "auto"],
}
OUT_OF_RANGE = {
    "model": ([], ""),
    "max_num_batched_tokens": ([0, -1], "at least 1"),
    "max_num_seqs": ([0, -1], "at least 1"),
    "max_model_len": ([0, -1], "at least 1"),
    "gpu_memory_utilization": ([0, 0.0, 1.01, -1, NAN, INF], r"\(0.0, 1.0\]"),
    "tensor_parallel_size": ([0, -1], "at least 1"),
    "enforce_eager": ([], ""),
    "kvcache_block_size": ([0, 1, 8, 17, 48, 512], "16, 32, 64, 128, 256|at least 1"),
    "num_kvcache_blocks": ([0, -5], "at least 1"),
    "cpu_kvcache_gib": ([0, -1.0, NAN, INF], r"\(0"),
    "device": (["gpu", "cuda:0", None, 0], ", ".join(map(repr, DEVICES))),
    "dtype": (["fp32", "float64", None, float], ", ".join(map(repr, DTYPES))),
    "attention_backend": (["flash", None, 3], ", ".join(map(repr, ATTENTION_BACKENDS))),
    "enable_prefix_caching": ([], ""),
    "seed": ([-1, 2**63], "0 to 9223372036854775807"),
    "trace": ([], ""),
    "async_scheduling": ([], ""),
}
ALLOWED = {
    "model": ["folder", Path("folder"), "Qwen/Qwen3-0.6B"],
    "max_num_batched_tokens": [256, 10**6],
    "max_num_seqs": [1, 20, 8192],
    "max_model_len": [1, 10**6],
    "gpu_memory_utilization": [0.1, 1, 1.0],
    "tensor_parallel_size": [1, 2, 3],
    "enforce_eager": [True],
    "kvcache_block_size": [None, 16, 32, 64, 128, 256],
    "num_kvcache_blocks": [None, 1, 10**6],
    "cpu_kvcache_gib": [0.001, 4],
    "device": DEVICES,
    "dtype": DTYPES,
    "attention_backend": ATTENTION_BACKENDS,
    "enable_prefix_caching": [False],
    "seed": [0, 2**63 - 1],
    "trace": [True],
    "async_scheduling": [None, True, False],
}


def cases(table: dict[str, list]) -> list[tuple[str, object]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_every_field_is_tested():
    assert set(WRONG_TYPES) == set(OUT_OF_RANGE) == set(ALLOWED) == set(FIELDS)


def test_every_field_is_described():
    assert all(f"\n        {name}: " in EngineConfig.__doc__ for name in FIELDS)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_TYPES))
def test_wrong_types(name, value):
    with pytest.raises(TypeError, match=rf"\b{name}\b.*must be"):
        EngineConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases({name: values for name, (values, _) in OUT_OF_RANGE.items()}))
def test_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b.*must.*({OUT_OF_RANGE[name][1]})"):
        EngineConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(ALLOWED))
def test_allowed(name, value):
    assert getattr(EngineConfig(**{name: value}), name) == value


def test_a_step_has_room_for_every_running_sequence():
    assert EngineConfig(max_num_seqs=64, max_num_batched_tokens=64)
    with pytest.raises(ValueError, match=r"max_num_batched_tokens \(63\) must be at least max_num_seqs \(64\)"):
        EngineConfig(max_num_seqs=64, max_num_batched_tokens=63)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_num_seq", "max_num_seqs"),
        ("block_size", "kvcache_block_size"),
        ("prefix_caching", "enable_prefix_caching"),
    ],
)
def test_an_unknown_argument_is_named_with_the_nearest_one(name, near):
    with pytest.raises(
        TypeError, match=f"EngineConfig has no argument '{name}'. Did you mean '{near}'.*Allowed: model"
    ):
        EngineConfig(**{name: 1})


def test_settings_cannot_be_changed_later():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().seed = 1
