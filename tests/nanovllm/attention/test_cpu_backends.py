"""The backends that a CPU runs, against the float64 oracle of the contract; unused slots hold NaN."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import random_case, relative_error

from nanovllm.attention import get_backend

TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}

lengths = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 60)).map(lambda pair: (pair[0], sum(pair)))
    | st.integers(1, 120).map(lambda context: (1, context)),
    min_size=1,
    max_size=5,
)


def check_case(backend, case):
    expected, cache = case.expected()
    out = get_backend(backend)(case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    assert torch.equal(case.kv_cache.nan_to_num(7.0), cache.nan_to_num(7.0))
    assert relative_error(out, expected) < TOLERANCE[case.q.dtype]


@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    lengths=lengths,
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16, 24, 64]),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    backend_and_dtype=st.sampled_from(
        [("numba", torch.float32), ("reference", torch.float32), ("reference", torch.bfloat16)]
    ),
    seed=st.integers(0, 1000),
)
def test_random_steps(backend_and_dtype, **case):
    backend, dtype = backend_and_dtype
    check_case(backend, random_case(device="cpu", dtype=dtype, **case))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_block_table_entries_past_the_last_block_are_ignored(backend):
    case = random_case([(1, 50), (1, 7), (12, 40)], device="cpu")
    tables = case.metadata.block_tables.clone()
    block_size = case.kv_cache.shape[3]
    for row, context_len in zip(tables, case.metadata.context_lens.tolist(), strict=True):
        row[-(-context_len // block_size) :] = 10**6
    case.metadata = dataclasses.replace(case.metadata, block_tables=tables)
    check_case(backend, case)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_numba_says_where_it_runs(device, dtype):
    with pytest.raises(ValueError, match="attention_backend='numba'"):
        get_backend("numba").check(block_size=16, head_dim=32, dtype=dtype, device=torch.device(device))


def test_an_unknown_backend_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'reference', 'numba', 'triton' or 'flash_attn', got 'fast'"):
        get_backend("fast")
