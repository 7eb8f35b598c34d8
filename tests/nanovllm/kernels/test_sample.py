"""One-pass sampling against the PyTorch sampler, which defines the noise, and against softmax."""

import pytest
import torch
import triton
import triton.language as tl

from nanovllm.kernels import sample as module
from nanovllm.kernels.sample import sample, sample_shard, tokens_of
from nanovllm.layers import sampler


def inputs(rows, vocab_size, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn((rows, vocab_size), generator=generator) * 3).to(dtype)
    temperatures = torch.rand(rows, generator=generator) * 2 + 0.1
    temperatures[::4] = 0.0
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    positions = torch.randint(0, 40_000, (rows,), generator=generator)
    return [tensor.to(device) for tensor in (logits, temperatures, seeds, positions)]


@pytest.mark.parametrize("vocab_size", [2, 782, 4096, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_draws_the_tokens_of_the_pytorch_sampler(vocab_size, dtype, device):
    logits, temperatures, seeds, positions = inputs(12, vocab_size, device, dtype)
    expected = sampler.sample(logits, sampler.SamplingBatch(temperatures, seeds, positions))
    assert torch.equal(sample(logits, temperatures, seeds, positions), expected)


def test_many_rows_agree(device, monkeypatch):
    """Small tiles, so that the second kernel chooses among several."""
    monkeypatch.setattr(module, "TILE", 64)
    logits, temperatures, seeds, positions = inputs(24, 200, device, seed=1)
    expected = sampler.sample(logits, sampler.SamplingBatch(temperatures, seeds, positions))
    assert torch.equal(sample(logits, temperatures, seeds, positions), expected)


def test_greedy_takes_the_smallest_of_equal_maxima(device, monkeypatch):
    monkeypatch.setattr(module, "TILE", 16)
    logits = torch.zeros((3, 50), device=device)
    logits[1, [20, 40]] = 1.0
    logits[2, [5, 6]] = 1.0
    zeros = torch.zeros(3, dtype=torch.int64, device=device)
    assert sample(logits, zeros.float(), zeros, zeros).tolist() == [0, 20, 5]


def test_nan_logits_give_a_token_of_the_vocabulary(device, monkeypatch):
    """A model that overflows must not send the next step's embedding out of its table."""
    monkeypatch.setattr(module, "TILE", 16)
    logits = torch.full((3, 37), float("nan"), device=device)
    logits[1, [5, 33]] = torch.tensor([1.0, 2.0], device=device)
    logits[2, :36] = float("-inf")
    zeros = torch.zeros(3, dtype=torch.int64, device=device)
    assert sample(logits, zeros.float(), zeros, zeros).tolist() == [0, 33, 0]
    assert sample(logits, zeros.float() + 0.7, zeros, zeros).tolist() == [0, 33, 0]


def test_a_row_does_not_depend_on_its_batch_mates(device):
    logits, temperatures, seeds, positions = inputs(6, 300, device, seed=2)
    together = sample(logits, temperatures, seeds, positions)
    alone = [sample(*(x[i : i + 1] for x in (logits, temperatures, seeds, positions))).item() for i in range(6)]
    assert together.tolist() == alone


def test_positions_of_either_width_and_tokens_written_in_place(device):
    """The decode rows keep int32 positions, and the next step reads what is drawn where it lies."""
    logits, temperatures, seeds, positions = inputs(12, 300, device, seed=3)
    expected = sample(logits, temperatures, seeds, positions)
    out = torch.full((13,), -1, dtype=torch.int64, device=device)
    assert sample(logits, temperatures, seeds, positions.int(), out=out[:12]).data_ptr() == out.data_ptr()
    assert out.tolist() == [*expected.tolist(), -1]


# A vocabulary in shards


def sample_in_shards(logits, *sampling, size):
    """What `size` ranks draw together: each from a copy of its columns, and the maximum of what they find."""
    width = -(-logits.shape[1] // size)
    cuts = [min(rank * width, logits.shape[1]) for rank in range(size + 1)]
    bests = [
        sample_shard(logits[:, first:end].clone(), *sampling, rank * width)
        for rank, (first, end) in enumerate(zip(cuts, cuts[1:]))
    ]
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    return tokens_of(torch.stack(bests).amax(0), out=out)


@pytest.mark.parametrize(("vocab_size", "size"), [(782, 2), (4097, 4), (9000, 7), (5, 4)])
@pytest.mark.parametrize("shift", [0.0, -100.0, 100.0])
def test_shards_draw_what_the_whole_draws(vocab_size, size, shift, device):
    """Greedy rows and drawn ones, with scores of either sign. (5, 4): the last rank has no token at all."""
    logits, *sampling = inputs(12, vocab_size, device, seed=4)
    logits += shift
    assert torch.equal(sample_in_shards(logits, *sampling, size=size), sample(logits, *sampling))


def test_a_tie_across_shards_goes_to_the_smaller_token(device):
    logits = torch.full((5, 40), -2.0, device=device)
    logits[1, [15, 25, 35]] = 1.0
    logits[2, [25, 35]] = -1.0
    logits[3, 15], logits[3, 25] = -0.0, 0.0  # equal, though their bits are not
    logits[4, 15], logits[4, 25] = 0.0, -0.0
    zeros = torch.zeros(5, dtype=torch.int64, device=device)
    assert sample_in_shards(logits, zeros.float(), zeros, zeros, size=4).tolist() == [0, 15, 25, 15, 15]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_nan_in_a_shard_gives_a_token_of_the_vocabulary(temperature, device):
    """Also where a rank has none of it, whose best is -inf too."""
    logits = torch.full((4, 5), float("nan"), device=device)
    logits[1, 4] = -1e38
    logits[2] = float("-inf")
    logits[3, 2] = float("inf")
    zeros = torch.zeros(4, dtype=torch.int64, device=device)
    assert sample_in_shards(logits, zeros.float() + temperature, zeros, zeros, size=4).tolist() == [0, 4, 0, 2]


@triton.jit
def _series_kernel(x, out, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(out + place, module._log_series(tl.load(x + place)))


def test_the_series_is_the_logarithm(device):
    """For the uniforms closest to 1, which decide draws, and up to where the GPU's own logarithm takes over."""
    exponents = torch.linspace(-24, -3.0001, 4096, dtype=torch.float64)
    x = (2**exponents).float().to(device)
    out = torch.empty_like(x)
    _series_kernel[(1,)](x, out, SIZE=4096)
    expected = -torch.log1p(-x.double())
    assert ((out.double() - expected).abs() <= 3e-7 * expected).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_follow_the_softmax():
    """Pearson's chi-squared of 20,000 draws over 8 tokens; 7 degrees of freedom, 24.3 is the 0.999 quantile.

    On the CPU the PyTorch sampler, whose tokens these are, stands for it.
    """
    probabilities = torch.tensor([0.3, 0.25, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02], dtype=torch.float64)
    draws = 20_000
    logits = (probabilities.log() * 0.7).float().repeat(draws, 1).cuda()
    temperatures = torch.full((draws,), 0.7, device="cuda")
    seeds = torch.full((draws,), 1234, device="cuda")
    tokens = sample(logits, temperatures, seeds, torch.arange(draws, device="cuda"))
    counts = torch.bincount(tokens.cpu(), minlength=8).double()
    assert (((counts - draws * probabilities) ** 2) / (draws * probabilities)).sum() < 24.3


def test_errors_name_the_argument(device):
    logits, temperatures, seeds, positions = inputs(2, 10, device)
    with pytest.raises(ValueError, match="seeds must be int64"):
        sample(logits, temperatures, seeds.int(), positions)
    with pytest.raises(ValueError, match="positions must be int32 or int64"):
        sample(logits, temperatures, seeds, positions.float())
    with pytest.raises(ValueError, match="logits must have a contiguous"):
        sample(logits.T, temperatures, seeds, positions)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_real_shapes():
    logits, temperatures, seeds, positions = inputs(256, 151_936, "cuda", torch.bfloat16)
    expected = sampler.sample(logits, sampler.SamplingBatch(temperatures, seeds, positions))
    same = sample(logits, temperatures, seeds, positions) == expected
    assert same.float().mean() >= 0.99, "more than a last-bit difference of the logarithm explains"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [2, 8])
def test_real_shapes_in_shards(size):
    logits, *sampling = inputs(256, 151_936, "cuda", torch.bfloat16)
    assert torch.equal(sample_in_shards(logits, *sampling, size=size), sample(logits, *sampling))
