"""QK-norm, RoPE and store in one kernel, against the three steps in float64 with transformers' rotation."""

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from nanovllm.kernels.rope_qknorm_store import rope_qknorm_store

TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
MAX_POSITIONS, BLOCK_SIZE, EPS = 64, 16, 1e-6


class Inputs:
    def __init__(self, tokens, q_heads, kv_heads, head_dim, dtype, device, norm=True, skipped=()):
        generator = torch.Generator().manual_seed(tokens)
        heads = q_heads + 2 * kv_heads
        self.qkv = torch.randn((tokens, heads, head_dim), generator=generator).to(dtype).to(device)
        self.positions = torch.randint(0, MAX_POSITIONS, (tokens,), generator=generator).to(device)
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
        angles = torch.outer(torch.arange(MAX_POSITIONS, dtype=torch.float64), 10000.0**-exponent)
        self.table = torch.cat([angles.cos(), angles.sin()], dim=-1).float().to(device)
        weights = (torch.rand((2, head_dim), generator=generator) + 0.5).to(dtype).to(device)
        self.q_weight, self.k_weight = weights if norm else (None, None)
        blocks = -(-tokens // BLOCK_SIZE) + 1
        self.cache = torch.full((blocks, 2, kv_heads, BLOCK_SIZE, head_dim), float("nan"), dtype=dtype, device=device)
        self.slots = torch.randperm(blocks * BLOCK_SIZE, generator=generator)[:tokens].to(torch.int32)
        self.slots[list(skipped)] = -1
        self.slots = self.slots.to(device)
        self.kv_heads = kv_heads

    def run(self):
        weights = (self.q_weight, self.k_weight)
        return rope_qknorm_store(self.qkv, self.positions, self.table, *weights, EPS, self.cache, self.slots)

    def expected(self):
        """Queries (T, H, D), keys and values (T, KV, D) in float64."""
        heads = [self.qkv.shape[1] - 2 * self.kv_heads, self.kv_heads, self.kv_heads]
        q, k, v = self.qkv.double().split(heads, dim=1)
        if self.q_weight is not None:
            q = q / (q.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * self.q_weight.double()
            k = k / (k.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * self.k_weight.double()
        cos, sin = self.table.double()[self.positions].chunk(2, dim=-1)
        cos, sin = torch.cat([cos, cos], -1)[None], torch.cat([sin, sin], -1)[None]
        q, k = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
        return q[0].transpose(0, 1), k[0].transpose(0, 1), v

    def check(self, out):
        q, k, v = self.expected()
        tolerance = {"rtol": TOLERANCE[self.qkv.dtype], "atol": TOLERANCE[self.qkv.dtype]}
        torch.testing.assert_close(out.double(), q, **tolerance)
        for token, slot in enumerate(self.slots.tolist()):
            if slot >= 0:
                stored = self.cache[slot // BLOCK_SIZE, :, :, slot % BLOCK_SIZE].double()
                torch.testing.assert_close(stored[0], k[token], **tolerance)
                assert torch.equal(stored[1], v[token])
        written = int((self.slots >= 0).sum()) * 2 * k[0].numel()
        assert int((~self.cache.isnan()).sum()) == written


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(1, 1), (4, 2), (16, 8), (7, 1), (6, 2)])
@pytest.mark.parametrize("head_dim", [16, 24, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_three_steps(q_heads, kv_heads, head_dim, dtype, device):
    case = Inputs(5, q_heads, kv_heads, head_dim, dtype, device)
    case.check(case.run())


def test_models_without_qk_norm(device):
    case = Inputs(5, 4, 2, 32, torch.float32, device, norm=False)
    case.check(case.run())


def test_padding_rows_write_nowhere(device):
    case = Inputs(6, 4, 2, 32, torch.float32, device, skipped=(0, 4))
    case.check(case.run())


def test_errors_name_the_argument(device):
    case = Inputs(3, 4, 2, 32, torch.float32, device)
    case.k_weight = None
    with pytest.raises(ValueError, match="q_weight and k_weight must both"):
        case.run()
    case = Inputs(3, 4, 2, 32, torch.float32, device)
    case.table = case.table[:, :16]
    with pytest.raises(ValueError, match="table must be contiguous float32"):
        case.run()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_real_shapes(dtype):
    case = Inputs(700, 16, 8, 128, dtype, "cuda", skipped=(3, 699))
    case.check(case.run())
