"""Draw the next tokens with one pass over the logits.

Idea: the argmax of logits / T + Gumbel noise is a draw from softmax(logits / T), so no maximum, sum or sort over the
vocabulary comes first: each logit is read once, in the dtype the LM head wrote. The noise of a token is a hash of
(seed, position, token id), `nanovllm.layers.sampler.gumbel_noise`, computed where it is used and never stored.

A row's 151,936 logits are cut into tiles of 4,096, one program each, so that a single row fills the chip too. Every
program leaves the best score of its tile and its token; a second kernel picks the best of those. A tie goes to the
smaller token id, as in torch.argmax. NaN counts as -inf: no comparison with it holds, and what a reduction then finds may
lie past the vocabulary, where the next step's embedding would read.

Where ranks share the vocabulary, each draws from its own logits: the noise of a token is the same wherever it is computed,
so the best of the shards' bests is the best of all. A best travels as one integer that orders like it (`sample_shard`).

The hash and two logarithms a token take longer than reading the logits. So on a GPU a logarithm is its own instruction where
that is exact enough, and a short series where it is not.

Shapes: logits (B, V), temperatures (B), seeds (B), positions (B) -> token ids (B).
Bytes: B * V * itemsize.
Compared with: the PyTorch sampler, token by token; on a GPU also with softmax, by a chi-squared test of 20,000 draws.
"""

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch

TILE = 4096
LOW = 2**31 - 1
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _fmix32(x):
    """Murmur3's finalizer (Appleby) on uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _fast_log2(x):
    """The GPU's own log2, one instruction. Its relative error is 2^-22; between 0.5 and 2 only its absolute one is."""
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _log_series(x):
    """-log(1 - x) = x + x^2 / 2 + ... for 0 < x < 1/8, where seven terms are as exact as float32."""
    tail = 1.0 / 6.0 + x * (1.0 / 7.0)
    tail = 0.25 + x * (0.2 + x * tail)
    tail = 0.5 + x * (1.0 / 3.0 + x * tail)
    return x + x * x * tail


@triton.jit
def _gumbel(seed, position, token, FAST: tl.constexpr):
    """Standard Gumbel noise of (seed, position, token id); 23 random bits, as in layers.sampler.

    FAST differs from it by a few millionths.
    """
    high = (seed >> 32).to(tl.uint32)
    key = _fmix32(seed.to(tl.uint32) ^ _fmix32(high ^ _fmix32(position.to(tl.uint32))))
    bits = _fmix32(key ^ (token.to(tl.uint32) * 0x9E3779B1)) >> 9
    uniform = (bits.to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2 ** -23
    if FAST:
        # The largest noise comes from uniforms close to 1, whose logarithm is smaller than the error of the GPU's log2.
        rest = 1.0 - uniform  # exact
        exponential = tl.where(rest < 0.125, _log_series(rest), -LN_2 * _fast_log2(uniform))
        return -LN_2 * _fast_log2(exponential)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _tile_kernel(
    logits, temperatures, seeds, positions, best_score, best_token, stride, FIRST: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr, FAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    tile = tl.program_id(1)
    token = tile * TILE + tl.arange(0, TILE)
    mask = token < V
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    score = tl.load(logits + row.to(tl.int64) * stride + token, mask=mask, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        noise = _gumbel(tl.load(seeds + row), tl.load(positions + row), FIRST + token, FAST)
        temperature = tl.maximum(temperature, 1e-5)
        score = (score * (1.0 / temperature) if FAST else tl.div_rn(score, temperature)) + noise
    score = tl.where(score == score, score, float("-inf"))
    best, index = tl.max(score, 0, return_indices=True)
    place = row * tl.num_programs(1) + tile
    tl.store(best_score + place, best)
    tl.store(best_token + place, FIRST + tile * TILE + index)


@triton.jit
def _pack(score, token):
    """An int64 that orders like (score, smaller token wins): in the upper half the score's bits, ordered as integers."""
    score = tl.where(score == 0, 0.0, score)  # -0.0, which equals it, has other bits
    bits = score.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of two negative floats the larger has the smaller bits
    return (order.to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)


@triton.jit
def _pick_kernel(
    best_score, best_token, out, PACKED: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0)
    tile = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    score = tl.load(best_score + row * TILES + tile, mask=tile < TILES, other=float("-inf"))
    winner = tl.argmax(score, 0)
    token = tl.load(best_token + row * TILES + winner)
    if PACKED:
        tl.store(out + row, _pack(tl.max(score, 0), token))
    else:
        tl.store(out + row, token.to(tl.int64))


def sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Token ids (B), int64, drawn from logits (B, V), the last dimension contiguous; temperature 0 is greedy.

    Args:
        temperatures: (B) float32. seeds: (B) int64, the request's. positions: (B) int32 or int64, the index in its
            sequence of the token that is drawn.
        out: (B) int64, written in place where given.

    Raises:
        ValueError: the logits' last dimension is not contiguous, or seeds or positions have another dtype.
    """
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device) if out is None else out
    return _launch(logits, temperatures, seeds, positions, out, first_token=0, packed=False)


def sample_shard(
    logits: torch.Tensor, temperatures: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, first_token: int
) -> torch.Tensor:
    """Each row's best (score, token) among the tokens of one shard, as an int64: (B). Its maximum over the shards wins.

    A larger score is larger, of equal scores the smaller token. `tokens_of` has the tokens.

    Args:
        logits: (B, N) of the tokens first_token to first_token + N - 1; N may be 0. The other ones as for `sample`.
    """
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    return _launch(logits, temperatures, seeds, positions, out, first_token, packed=True)


def tokens_of(best: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The tokens (B) of such integers (B), written to `out`."""
    return torch.bitwise_and(~best, LOW, out=out)  # the lower half is LOW - token


def _launch(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    first_token: int,
    packed: bool,
) -> torch.Tensor:
    """Both kernels; `packed` says which of the two goes to `out`: the tokens, or the integers of `sample_shard`."""
    if logits.stride(-1) != 1:
        raise ValueError(f"logits must have a contiguous last dimension, got strides {logits.stride()}")
    if seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be int64, got {seeds.dtype}")
    if positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions must be int32 or int64, got {positions.dtype}")
    rows, vocab_size = logits.shape
    tiles = max(1, triton.cdiv(vocab_size, TILE))
    best_score = torch.empty((rows, tiles), dtype=torch.float32, device=logits.device)
    best_token = torch.empty((rows, tiles), dtype=torch.int32, device=logits.device)
    _tile_kernel[(rows, tiles)](
        logits, temperatures, seeds, positions, best_score, best_token, logits.stride(0),
        FIRST=first_token, V=vocab_size, TILE=TILE, FAST=logits.is_cuda, num_warps=8, **early_launch(logits),
    )  # fmt: skip
    _pick_kernel[(rows,)](
        best_score, best_token, out, PACKED=packed, TILES=tiles, BLOCK=triton.next_power_of_2(tiles), num_warps=1,
        **early_launch(logits),
    )  # fmt: skip
    return out
