"""The CPU's compiled loops next to float64 PyTorch and to a cache written token by token. Unused slots hold NaN."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from oracle import attend, random_case, relative_error, stored

import nanovllm
from nanovllm.attention.numba import NumbaAttention
from nanovllm.kernels.cpu_paged_decode import FASTMATH, exp, paged_decode
from nanovllm.kernels.cpu_prefetch import prefetch

MIXED = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 200), (1, 3)]


@pytest.mark.parametrize("block_size", [16, 17, 32, 64, 256])
@pytest.mark.parametrize(
    ("group", "kv_heads", "head_dim"), [(1, 3, 32), (2, 4, 32), (3, 1, 16), (4, 2, 128), (8, 1, 20)]
)
def test_decode_equals_float64(block_size, group, kv_heads, head_dim):
    case = random_case(MIXED, kv_heads=kv_heads, group=group, head_dim=head_dim, block_size=block_size, padding=2)
    expected, expected_cache = case.expected()
    out = NumbaAttention()(case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    assert relative_error(out, expected) < 1e-6
    assert not out[-2:].any(), "padding rows are zero"
    assert torch.equal(case.kv_cache.nan_to_num(7.0), expected_cache.nan_to_num(7.0))


def test_decodes_chunks_and_whole_prompts_share_a_step():
    case = random_case([(1, 40), (9, 9), (5, 37), (1, 2), (16, 16), (33, 33)], group=4)
    expected, expected_cache = case.expected()
    out = NumbaAttention()(case.q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    assert relative_error(out, expected) < 1e-6
    assert torch.equal(case.kv_cache.nan_to_num(7.0), expected_cache.nan_to_num(7.0))


def test_slots_of_minus_one_are_not_stored():
    case = random_case([(7, 7), (1, 20)])
    case.metadata.slot_mapping[[0, 2, 5]] = -1
    before = case.kv_cache.clone()
    NumbaAttention().store(case.k, case.v, case.kv_cache, case.metadata.slot_mapping)
    expected = stored(case.k, case.v, before, case.metadata.slot_mapping)
    assert torch.equal(case.kv_cache.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("rising", [True, False], ids=["rising", "falling"])
def test_scores_of_any_size_and_order(size, rising):
    """The running largest score grows with every block, or never; large scores leave one weight, small ones all."""
    case = random_case([(1, 150)], kv_heads=1, group=2, block_size=16)
    _, cache = case.expected()
    blocks = case.metadata.block_tables[0, :10].tolist()
    for n, block in enumerate(blocks if rising else reversed(blocks)):
        cache[block, 0] = case.q[0, 0] * size * (n + 1) / len(blocks)
    q, out = case.q.contiguous(), torch.empty(1, 2, 32)
    tables, lens = case.metadata.block_tables.numpy(), case.metadata.context_lens.numpy()
    paged_decode(q.numpy(), cache.numpy(), tables, lens, np.float32(case.scale), out.numpy())
    assert relative_error(out, attend(q, cache, case.metadata, case.scale)) < 3e-6


def test_nan_in_a_query_stays_visible():
    case = random_case([(1, 20), (1, 20)])
    q = case.q.clone()
    q[0, 1, 3] = float("nan")
    out = NumbaAttention()(q, case.k, case.v, case.kv_cache, case.metadata, case.scale)
    assert out[0, 1].isnan().all()
    assert not out[0, 0].isnan().any() and not out[1].isnan().any()


@pytest.mark.parametrize("junk", [2**31 - 1, -(2**31)])
def test_what_is_prefetched_need_not_exist(junk):
    """Behind each sequence's last block the next one's first is asked for; an empty sequence's may be any number."""
    case = random_case([(1, 20), (1, 32), (1, 1)], group=2)
    lens, tables = case.metadata.context_lens, case.metadata.block_tables
    q, cache = case.q, case.expected()[1]
    expected = attend(q, cache, case.metadata, case.scale)
    tables = torch.cat([tables, torch.full((3, 1), junk)], dim=1).int()
    for b in range(3):
        tables[b, -(-lens[b] // 16) :] = junk
    for empty in (1, 2):
        tables[empty], lens[empty], expected[empty] = junk, 0, 0
        out = torch.full_like(q, 7.0)
        paged_decode(q.numpy(), cache.numpy(), tables.numpy(), lens.numpy(), np.float32(case.scale), out.numpy())
        assert relative_error(out, expected) < 1e-6
        assert not out[empty].any()


def test_prefetch_is_an_instruction_that_asks_for_the_named_line():
    @numba.njit
    def ask(array, offset):
        prefetch(array, offset)

    ask(np.ones((2, 3), np.float32), 10**9)  # far outside: nothing comes of it
    (code,) = ask.inspect_llvm().values()
    assert "call void @llvm.prefetch" in code


def test_exp_next_to_float64():
    @numba.njit(fastmath=FASTMATH)
    def every(x, out):
        for i in range(len(x)):
            out[i] = exp(x[i])

    x = np.concatenate([-np.linspace(0, 87, 100_001), [-np.inf, -1e30, -88.0]]).astype(np.float32)
    out = np.empty_like(x)
    every(x, out)
    error = np.abs(out / np.exp(x.astype(np.float64), where=x > -88, out=np.ones(len(x))) - 1)
    assert error[x >= -87].max() < 4e-6
    assert error[x > -1].max() < 3e-7
    assert out[0] == 1
    assert (out[x <= -88] < 2e-38).all()


def run_from(folder: Path, cache: Path) -> str:
    """Runs one decode with the package at `folder`, and says how often numba's cache was hit and missed."""
    code = (
        "import numpy as np\n"
        "from nanovllm.kernels.cpu_paged_decode import paged_decode as decode\n"
        "f, i = np.ones((1, 1, 16), np.float32), np.zeros((1, 1), np.int32)\n"
        "decode(f, np.ones((1, 2, 1, 16, 16), np.float32), i, i[0] + 3, np.float32(1), np.empty_like(f))\n"
        "print(sum(decode.stats.cache_hits.values()), sum(decode.stats.cache_misses.values()))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(cache)}
    environment |= {"HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no read-only mode there")
def test_a_read_only_installation_compiles_once_into_the_users_cache(tmp_path):
    package = tmp_path / "site" / "nanovllm"
    shutil.copytree(
        Path(nanovllm.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "embedded_model")
    )
    # A file where numba wants its folder stops root too, whom permissions do not.
    (package / "kernels" / "__pycache__").touch()
    package.parent.chmod(0o555)
    try:
        assert run_from(package.parent, tmp_path / "cache") == "0 1"
        assert run_from(package.parent, tmp_path / "cache") == "1 0"
    finally:
        package.parent.chmod(0o755)
