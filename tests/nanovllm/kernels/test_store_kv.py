"""The cache after a scatter equals one written token by token, bit for bit."""

import pytest
import torch
from oracle import stored

from nanovllm.kernels.store_kv import store_kv


def inputs(tokens, kv_heads, head_dim, block_size, dtype, device, skipped=()):
    generator = torch.Generator().manual_seed(tokens)
    fused = torch.randn((tokens, 5 * kv_heads, head_dim), generator=generator).to(dtype).to(device)
    k, v = fused[:, kv_heads : 2 * kv_heads], fused[:, 3 * kv_heads : 4 * kv_heads]
    num_blocks = -(-tokens // block_size) + 2
    cache = torch.full((num_blocks, 2, kv_heads, block_size, head_dim), float("nan"), dtype=dtype, device=device)
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:tokens].to(torch.int32)
    slots[list(skipped)] = -1
    return k, v, cache, slots.to(device)


@pytest.mark.parametrize("block_size", [16, 32, 48, 64, 256])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 16), (3, 32), (2, 128)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scatter_equals_token_by_token(block_size, kv_heads, head_dim, dtype, device):
    k, v, cache, slots = inputs(11, kv_heads, head_dim, block_size, dtype, device)
    assert not k.is_contiguous()
    expected = stored(k, v, cache, slots)
    store_kv(k, v, cache, slots)
    assert torch.equal(cache.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert (~cache.isnan()).sum() == 2 * k.numel()


def test_slot_minus_one_writes_nowhere(device):
    k, v, cache, slots = inputs(6, 2, 32, 16, torch.float32, device, skipped=(0, 3, 5))
    store_kv(k, v, cache, slots)
    assert (~cache.isnan()).sum() == 2 * 3 * k[0].numel()


def test_a_layer_of_a_larger_cache_is_written_in_place(device):
    k, v, cache, slots = inputs(9, 2, 32, 16, torch.float32, device)
    layers = cache.expand(3, *cache.shape).clone()
    store_kv(k, v, layers[1], slots)
    expected = stored(k, v, cache, slots)
    assert torch.equal(layers[1].nan_to_num(7.0), expected.nan_to_num(7.0))
    assert layers[0].isnan().all() and layers[2].isnan().all()


def test_no_tokens_is_no_work(device):
    k, v, cache, slots = inputs(4, 2, 32, 16, torch.float32, device)
    store_kv(k[:0], v[:0], cache, slots[:0])
    assert cache.isnan().all()


def test_a_strided_last_dimension_is_refused_by_name(device):
    k, v, cache, slots = inputs(4, 2, 32, 16, torch.float32, device)
    with pytest.raises(ValueError, match="v must have a contiguous last dimension"):
        store_kv(k, v.transpose(1, 2).contiguous().transpose(1, 2), cache, slots)
