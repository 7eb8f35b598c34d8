"""Products of few rows against float64."""

import pytest
import torch
from products import check, operands

from nanovllm.kernels import skinny_linear as module
from nanovllm.kernels.skinny_linear import pieces, serves, skinny_linear


# (64, 256): one tile, one piece; (128, 1024): two pieces; (64, 2048): four; (192, 768): a tile count that is odd.
@pytest.mark.parametrize(("outputs", "size"), [(64, 256), (128, 1024), (64, 2048), (192, 768)])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("gated", [False, True])
def test_equals_float64(rows, outputs, size, gated, device):
    check(skinny_linear, *operands(rows, outputs, size, torch.float16, device), gated)


def test_calls_in_turn_leave_the_counters_zero(device):
    """The partial sums of each call are merged once; the next call finds the counters as it needs them."""
    x, weight = operands(3, 128, 2048, torch.float16, device)
    first = skinny_linear(x, weight)
    assert torch.equal(skinny_linear(x, weight), first)
    assert not module._counters(x.device).any()


def test_rows_of_a_wider_tensor(device):
    x, weight = operands(5, 64, 256, torch.float16, device)
    check(skinny_linear, torch.cat([x, x], dim=1)[:, 256:], weight)


def test_a_row_does_not_depend_on_the_rows_beside_it(device):
    """Padding rows of a CUDA graph hold anything: NaN in one must not reach another."""
    x, weight = operands(7, 64, 512, torch.float16, device)
    together = skinny_linear(x, weight)
    x[3] = float("nan")
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(skinny_linear(x, weight)[others], together[others])


def test_pieces_are_never_short_nor_too_many():
    # Qwen3-0.6B: o_proj, down_proj, qkv_proj, gate_up_proj.
    assert [pieces(16, 2048), pieces(16, 3072), pieces(64, 1024), pieces(96, 1024)] == [4, 4, 1, 1]
    assert pieces(32, 1024) == 2 and pieces(16, 512) == 1 and pieces(16, 768) == 1


def test_what_it_does_not_serve_is_refused_by_name(device):
    x, weight = operands(2, 64, 256, torch.float16, device)
    assert serves(x, weight)
    for bad_x, bad_weight in (
        (x.float(), weight.float()),
        (x, weight[:63]),
        (x[:, :128], weight[:, :128]),
        (x.repeat(33, 1), weight),
        (x, weight.T.contiguous().T),
        (x, weight.repeat(600, 1)),
    ):
        assert not serves(bad_x, bad_weight)
        with pytest.raises(ValueError, match="x must have up to 64 rows"):
            skinny_linear(bad_x, bad_weight)
    with pytest.raises(ValueError, match="x must have"):
        skinny_linear(x[:, :128], weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [2, 8, 24, 32, 48, 64])
@pytest.mark.parametrize(
    ("outputs", "size", "gated"),
    [(4096, 1024, False), (1024, 2048, False), (6144, 1024, True), (1024, 3072, False), (2048, 2048, False)],
)
def test_real_shapes(rows, outputs, size, gated):
    check(skinny_linear, *operands(rows, outputs, size, torch.bfloat16, "cuda"), gated)
