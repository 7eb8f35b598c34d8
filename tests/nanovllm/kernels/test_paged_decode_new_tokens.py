"""Decode attention that norms, turns and stores the new tokens itself: against two launches, and against float64."""

import pytest
import torch
from oracle import attend, random_case, relative_error, stored

from nanovllm.attention.base import AttentionBackend
from nanovllm.attention.triton import TritonAttention
from nanovllm.kernels import paged_decode as module
from nanovllm.kernels import rope_qknorm_store as rope_module
from nanovllm.kernels.paged_decode import DecodeConfig, NewTokens, paged_decode
from nanovllm.kernels.rope_qknorm_store import rope_qknorm_store
from nanovllm.layers.rotary import RotaryStep

TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
MAX_POSITIONS, EPS = 1024, 1e-6
TILES_OF_16 = DecodeConfig(tile=16, programs_per_sm=1, warps=4, stages=2)


class Step:
    """A step of decodes: contexts of these lengths, then padding rows. The new tokens' slots hold NaN before it."""

    def __init__(self, lengths, norm=True, seed=0, **shape):
        self.case = random_case([(1, length) for length in lengths], seed=seed, **shape)
        self.meta, self.scale, self.cache = self.case.metadata, self.case.scale, self.case.kv_cache
        self.qkv = torch.cat([self.case.q, self.case.k, self.case.v], dim=1)
        head_dim, device = self.qkv.shape[2], self.qkv.device
        generator = torch.Generator().manual_seed(seed)
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
        self.angles = torch.outer(torch.arange(MAX_POSITIONS, dtype=torch.float64), 10000.0**-exponent).to(device)
        table = torch.cat([self.angles.cos(), self.angles.sin()], dim=-1).float()
        weights = (torch.rand((2, head_dim), generator=generator) + 0.5).to(self.qkv.dtype).to(device)
        q_weight, k_weight = weights if norm else (None, None)
        self.new = NewTokens(table, q_weight, k_weight, EPS, self.meta.slot_mapping)
        self.positions = (self.meta.context_lens - 1).clamp(min=0)

    def run(self, config=None, **more):
        """Output and the cache after one launch."""
        cache = self.cache.clone()
        args = (self.meta.block_tables, self.meta.context_lens, self.scale, self.meta.max_context_len)
        return paged_decode(self.qkv, cache, *args, config=config, new=self.new, **more), cache

    def two_launches(self):
        cache = self.cache.clone()
        table, q_weight, k_weight, eps, slots = self.new
        q = rope_qknorm_store(self.qkv, self.positions, table, q_weight, k_weight, eps, cache, slots)
        args = (self.meta.block_tables, self.meta.context_lens, self.scale, self.meta.max_context_len)
        return paged_decode(q, cache, *args), cache

    def expected(self):
        """Output and the cache in float64, with the turn as a product of complex numbers."""
        angle = self.angles[self.positions.long()][:, None]

        def turned(x, weight):
            x = x.double()
            if weight is not None:
                x = x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
            pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
            return torch.cat([pairs.real, pairs.imag], dim=-1)

        q, k = turned(self.case.q, self.new.q_weight), turned(self.case.k, self.new.k_weight)
        cache = stored(k, self.case.v, self.cache.double(), self.new.slot_mapping)
        return attend(q, cache, self.meta, self.scale), cache

    def check(self, out, cache):
        tolerance = TOLERANCE[self.qkv.dtype]
        expected, expected_cache = self.expected()
        assert relative_error(out, expected) < tolerance
        self.check_cache(cache, expected_cache.to(cache.dtype))

    def check_cache(self, cache, expected):
        """The same slots are written, values to the bit; keys too, but for the order in which the norm adds up."""
        assert torch.equal(cache.isnan(), expected.isnan())
        cache, expected = cache.nan_to_num(7.0), expected.nan_to_num(7.0)
        assert torch.equal(cache[:, 1], expected[:, 1])
        step = torch.finfo(cache.dtype).eps
        torch.testing.assert_close(cache[:, 0], expected[:, 0], rtol=2 * step, atol=4e-7)


def around(block_size):
    """Contexts that end at the borders of blocks and of tiles, and the shortest."""
    return [1, 2, block_size - 1, block_size, block_size + 1, 33, 65, 97]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (3, 1), (2, 2), (1, 4), (1, 7)])
def test_equals_two_launches(kv_heads, group, norm, device):
    step = Step(around(16), norm, kv_heads=kv_heads, group=group, padding=2, seed=group, device=device)
    out, cache = step.run()
    two_out, two_cache = step.two_launches()
    assert (out[-2:] == 0).all()
    assert relative_error(out, two_out.double()) < TOLERANCE[torch.float32]
    step.check_cache(cache, two_cache)
    if not norm and device == "cpu":  # the same operations in the same order; a GPU may contract them otherwise
        assert torch.equal(cache.nan_to_num(7.0), two_cache.nan_to_num(7.0))
    step.check(out, cache)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies bfloat16 as integers
@pytest.mark.parametrize("block_size", [16, 256])
def test_every_head_dim_and_dtype(head_dim, dtype, block_size, device):
    step = Step(around(block_size), head_dim=head_dim, dtype=dtype, block_size=block_size, padding=1, device=device)
    step.check(*step.run())


@pytest.mark.parametrize("programs", [1, 2, 3, 5, 8, 13, 64])
@pytest.mark.parametrize("norm", [True, False])
def test_shares_that_cut_contexts_anywhere(programs, norm, device, monkeypatch):
    """Contexts of 16 n + 1 tokens end with a tile that has nothing but the new token: its share may be that tile alone."""
    monkeypatch.setattr(module, "INTERPRETER_SMS", programs)
    monkeypatch.setattr(module, "WHOLE", 1)
    step = Step([100, 1, 64, 17, 0, 49, 2], norm, kv_heads=2, seed=programs, device=device)
    counters = torch.zeros(2 * 7, dtype=torch.int32, device=device)
    step.check(*step.run(TILES_OF_16, counters=counters))
    assert not counters.any()


@pytest.mark.parametrize("length", [352, 353, 368])
def test_one_long_context_has_its_new_token_once(length, device, monkeypatch):
    """The new key is its own query, longer than all others: who counts it twice, or not at all, is far off."""
    monkeypatch.setattr(module, "INTERPRETER_SMS", 40)
    monkeypatch.setattr(module, "WHOLE", 1)
    step = Step([length], norm=False, kv_heads=1, group=2, device=device)
    step.case.k[:] = step.qkv[:, 2] = step.case.q[:, 0]
    expected, _ = step.expected()
    out, cache = step.run(TILES_OF_16)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]
    without, _ = Step([length], norm=False, kv_heads=1, group=2, device=device).expected()
    assert relative_error(without, expected) > 0.05


def test_large_scores_neither_overflow_nor_lose_the_maximum(device):
    step = Step([150, 80, 1], device=device)
    step.scale = 30.0
    out, _ = step.run()
    assert relative_error(out, step.expected()[0]) < 1e-4


def test_a_row_without_a_slot_stores_nothing(device):
    step = Step([40, 20, 33], device=device)
    kept, _ = step.run()
    step.meta.slot_mapping[1] = -1
    out, cache = step.run()
    assert torch.equal(out, kept)  # it attends to its token all the same
    assert int((cache.isnan() != step.cache.isnan()).sum()) == 2 * step.case.k[0].numel() * 2


def test_wrong_arguments_are_named(device):
    step = Step([5], device=device)
    step.new = step.new._replace(k_weight=None)
    with pytest.raises(ValueError, match="q_weight and k_weight must both"):
        step.run()


@pytest.mark.parametrize("norm", [True, False])
def test_the_backend_fuses_steps_of_decodes_only(norm, device, monkeypatch):
    step = Step([40, 17, 1], norm, padding=1, device=device)
    rotary = RotaryStep(step.positions, step.new.table)
    weights = (step.new.q_weight, step.new.k_weight, EPS)
    two_cache = step.cache.clone()
    two = AttentionBackend.attend_fused(TritonAttention(), step.qkv, rotary, *weights, two_cache, step.meta, step.scale)
    plan = step.meta.decode_plan

    monkeypatch.setattr(rope_module, "rope_qknorm_store", None)
    cache = step.cache.clone()
    out = TritonAttention().attend_fused(step.qkv, rotary, *weights, cache, step.meta, step.scale)
    assert step.meta.decode_plan is plan
    assert relative_error(out, two.double()) < TOLERANCE[torch.float32]
    step.check_cache(cache, two_cache)
    step.check(out, cache)


def test_a_mixed_step_is_prepared_by_its_own_kernel(device):
    case = random_case([(1, 40), (1, 7), (12, 30)], device=device)
    qkv = torch.cat([case.q, case.k, case.v], dim=1)
    table = Step([1], device=device).new.table
    positions = torch.cat([torch.tensor([39, 6]), torch.arange(18, 30)]).to(device)
    args = (RotaryStep(positions, table), None, None, 0.0)
    cache = case.kv_cache.clone()
    out = TritonAttention().attend_fused(qkv, *args, case.kv_cache, case.metadata, case.scale)
    q = rope_qknorm_store(qkv, positions, table, None, None, 0.0, cache, case.metadata.slot_mapping)
    assert torch.equal(case.kv_cache.nan_to_num(7.0), cache.nan_to_num(7.0))
    assert relative_error(out, attend(q, cache, case.metadata, case.scale)) < TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize("count", [1, 8, 128])
def test_real_shapes(dtype, block_size, count):
    lengths = [100 + 61 * i % 924 for i in range(count)]
    shape = {"kv_heads": 8, "group": 2, "head_dim": 128, "block_size": block_size, "dtype": dtype, "device": "cuda"}
    step = Step(lengths, padding=3, **shape)
    out, cache = step.run()
    step.check(out, cache)
    two_out, two_cache = step.two_launches()
    assert relative_error(out, two_out.double()) < TOLERANCE[dtype]
    step.check_cache(cache, two_cache)
