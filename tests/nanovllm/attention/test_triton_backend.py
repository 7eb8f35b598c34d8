"""The triton backend against the float64 oracle of the contract: mixed steps, the cache's contents, and its errors."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import random_case, relative_error

from nanovllm.attention.triton import TritonAttention

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALLOWED = {"block_size": 16, "head_dim": 128, "dtype": torch.bfloat16, "device": torch.device("cuda")}


def check_case(case):
    expected, cache = case.expected()
    meta = case.metadata
    out = TritonAttention()(case.q, case.k, case.v, case.kv_cache, meta, case.scale)
    assert out.shape == case.q.shape and out.dtype == case.q.dtype
    assert torch.equal(case.kv_cache.nan_to_num(7.0), cache.nan_to_num(7.0))
    assert relative_error(out, expected) < TOLERANCE[case.q.dtype]


lengths = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 60)).map(lambda pair: (pair[0], sum(pair)))
    | st.integers(1, 120).map(lambda context: (1, context)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    lengths=lengths,
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([16, 32, 64]),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_random_steps(lengths, **case):
    check_case(random_case(lengths, device=DEVICE, **case))


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([(1, 50), (1, 7)], id="decodes only"),
        pytest.param([(12, 12), (30, 45)], id="prefill only"),
        pytest.param([(1, 50), (12, 12), (1, 1)], id="mixed"),
    ],
)
def test_each_kind_of_step(lengths):
    check_case(random_case(lengths, device=DEVICE))


def test_a_looser_bound_on_contexts_changes_nothing():
    """A captured graph runs with the largest bound that it may ever need."""
    case = random_case([(1, 50), (1, 7), (3, 9)], device=DEVICE)
    case.metadata = dataclasses.replace(case.metadata, max_context_len=4096)
    check_case(case)


def test_single_token_prefill_counts_as_prefill_where_the_scheduler_says_so():
    """num_decodes is the scheduler's word: a last chunk of one token may stand among the prefills."""
    case = random_case([(1, 50), (1, 7), (5, 9)], device=DEVICE)
    case.metadata = dataclasses.replace(case.metadata, num_decodes=1)
    check_case(case)


def test_a_decode_equals_the_last_row_of_a_prefill():
    """Prefill of n tokens, and prefill of n - 1 followed by a decode, see the same context."""
    whole = random_case([(40, 40)], device=DEVICE)
    out = TritonAttention()(whole.q, whole.k, whole.v, whole.kv_cache, whole.metadata, whole.scale)
    step = dataclasses.replace(
        whole.metadata,
        query_start=whole.metadata.query_start.clamp(max=1),
        slot_mapping=whole.metadata.slot_mapping[-1:],
        num_decodes=1,
        max_query_len=1,
    )
    last = TritonAttention()(whole.q[-1:], whole.k[-1:], whole.v[-1:], whole.kv_cache, step, whole.scale)
    assert torch.allclose(last[0], out[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("block_size", 8),
        ("block_size", 48),
        ("block_size", 512),
        ("head_dim", 80),
        ("head_dim", 8),
        ("dtype", torch.float64),
    ],
)
def test_check_names_what_it_refuses(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} must be one of .* got {value}"):
        TritonAttention().check(**ALLOWED | {argument: value})


def test_check_accepts_every_documented_size():
    for size in (16, 32, 64, 128, 256):
        TritonAttention().check(**ALLOWED | {"block_size": size, "head_dim": size})


def test_check_refuses_a_cpu_without_the_interpreter(monkeypatch):
    TritonAttention().check(**ALLOWED)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="device must be a CUDA device"):
        TritonAttention().check(**ALLOWED | {"device": torch.device("cpu")})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    TritonAttention().check(**ALLOWED | {"device": torch.device("cpu")})
