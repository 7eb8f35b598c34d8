"""Sampling parameters are checked when they are made: the message names the argument and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from nanovllm import SamplingParams

FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]
NAN, INF = float("nan"), float("inf")

WRONG_TYPES = {
    "temperature": ["1", None, True, [1.0], 1j],
    "top_k": [1.0, "1", None, True],
    "top_p": ["1", None, True],
    "min_p": ["1", None, False],
    "repetition_penalty": ["1", None, True],
    "presence_penalty": ["1", None, True],
    "frequency_penalty": ["1", None, True],
    "max_tokens": [1.5, "1", None, True, 16.0],
    "stop": [1, b"a", ["a", 1], {"a"}, [None]],
    "stop_token_ids": [1, "a", [1.0], [True], ["1"], {1}],
    "ignore_eos": [1, 0, None, "yes"],
    "seed": [1.0, "1", True],
    "logprobs": [1.0, "1", True],
    "n": [1.0, "1", None, True],
}
OUT_OF_RANGE = {
    "temperature": ([-0.1, NAN, INF, 1e-6], r"\[0"),
    "top_k": ([-2], "at least -1"),
    "top_p": ([0, 0.0, 1.1, -0.5, NAN], r"\(0.0, 1.0\]"),
    "min_p": ([-0.1, 1.1, NAN], r"\[0.0, 1.0\]"),
    "repetition_penalty": ([0, -1.0, NAN, INF], r"\(0"),
    "presence_penalty": ([-2.1, 2.1, NAN], r"\[-2.0, 2.0\]"),
    "frequency_penalty": ([-2.1, 2.1, NAN], r"\[-2.0, 2.0\]"),
    "max_tokens": ([0, -1], "at least 1"),
    "stop": (["", ["a", ""]], "empty string"),
    "stop_token_ids": ([[-1], [3, -2]], "at least 0"),
    "ignore_eos": ([], ""),
    "seed": ([-1, 2**63], "0 to 9223372036854775807"),
    "logprobs": ([-1, 21], "0 to 20"),
    "n": ([0, -1], "at least 1"),
}
ALLOWED = {
    "temperature": [0, 0.0, 1e-5, 1, 2.5],
    "top_k": [-1, 0, 1, 10**6],
    "top_p": [1e-9, 1, 1.0],
    "min_p": [0, 0.0, 1, 1.0],
    "repetition_penalty": [0.1, 1, 2.0],
    "presence_penalty": [-2, 2.0],
    "frequency_penalty": [-2.0, 2],
    "max_tokens": [1, 10**6],
    "stop": [None, "a", [], ["a", "b"], ("a",)],
    "stop_token_ids": [None, [], [0, 5], (1,)],
    "ignore_eos": [True, False],
    "seed": [None, 0, 2**63 - 1],
    "logprobs": [None, 0, 20],
    "n": [1, 100],
}


def cases(table: dict[str, list]) -> list[tuple[str, object]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_every_field_is_tested():
    assert set(WRONG_TYPES) == set(OUT_OF_RANGE) == set(ALLOWED) == set(FIELDS)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_TYPES))
def test_wrong_types(name, value):
    with pytest.raises(TypeError, match=rf"\b{name}\b.*must be"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases({name: values for name, (values, _) in OUT_OF_RANGE.items()}))
def test_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b.*must") as raised:
        SamplingParams(**{name: value})
    if not (name == "temperature" and value == 1e-6):
        assert raised.match(OUT_OF_RANGE[name][1])


@pytest.mark.parametrize(("name", "value"), cases(ALLOWED))
def test_allowed(name, value):
    SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "near"), [("max_token", "max_tokens"), ("temprature", "temperature"), ("topk", "top_k"), ("stops", "stop")]
)
def test_an_unknown_argument_is_named_with_the_nearest_one(name, near):
    with pytest.raises(TypeError, match=f"SamplingParams has no argument '{name}'. Did you mean '{near}'.*Allowed: "):
        SamplingParams(**{name: 1})


def test_an_unknown_argument_that_is_like_none_lists_them_all():
    with pytest.raises(TypeError) as raised:
        SamplingParams(zzz=1)
    assert "Did you mean" not in str(raised.value) and all(name in str(raised.value) for name in FIELDS)


def test_stops_become_tuples():
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[1, 2]) == SamplingParams(
        stop=("a", "b"), stop_token_ids=(1, 2)
    )
    assert (SamplingParams().stop, SamplingParams().stop_token_ids) == ((), ())


def test_they_cannot_be_changed_but_copied():
    params = SamplingParams(temperature=0, stop=["a"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1
    assert dataclasses.replace(params, n=2) == SamplingParams(temperature=0, stop="a", n=2)
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(ValueError, match="max_tokens"):
        dataclasses.replace(params, max_tokens=0)


def test_what_the_engine_asks_of_them():
    assert SamplingParams(temperature=0).greedy and not SamplingParams().greedy
    assert not SamplingParams().filters and not SamplingParams(top_k=-1).filters
    assert all(
        SamplingParams(**{name: value}).filters for name, value in [("top_k", 1), ("top_p", 0.9), ("min_p", 0.1)]
    )
    assert not SamplingParams().penalizes
    penalties = [("repetition_penalty", 1.1), ("presence_penalty", -1), ("frequency_penalty", 0.1)]
    assert all(SamplingParams(**{name: value}).penalizes for name, value in penalties)
