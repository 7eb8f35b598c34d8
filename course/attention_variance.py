"""Why attention divides by sqrt(d): measurements, each with its closed form beside it.

Source of the argument: Vaswani et al. 2017, section 3.2.1 and its footnote 4. Everything is float64 on the CPU and
drawn from a seeded CPU generator, so that a verdict that holds here holds on every machine.

Shapes: `d` is the head dimension, `rows` counts queries, `keys` counts the keys that one query looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course.exercises import Wrong, checker, expect_close
from nanovllm.attention import AttentionMetadata

if TYPE_CHECKING:
    from nanovllm.layers.attention import Attention

# What one draw may hold at a time: 2**22 float64 numbers are 32 MiB.
_CHUNK_ENTRIES = 1 << 22


# --- entries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EntryDistribution:
    """A distribution of single entries with mean 0 and variance 1.

    `fourth_moment` is E[x^4]; it decides how noisy a measured variance is, but not the variance itself.
    """

    name: str
    fourth_moment: float
    draw: Callable[[Sequence[int], torch.Generator], Tensor]


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # U(-a, a) has variance a^2 / 3.
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * math.sqrt(3)


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=generator).double() * 2 - 1


def _laplace(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # A random sign times an exponential of mean b has variance 2 b^2. 1 - rand() lies in (0, 1].
    magnitude = -torch.log1p(-torch.rand(shape, generator=generator, dtype=torch.float64)) / math.sqrt(2)
    return magnitude * _signs(shape, generator)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


DISTRIBUTIONS: dict[str, EntryDistribution] = {
    entry.name: entry
    for entry in (
        EntryDistribution("normal", 3.0, _normal),
        EntryDistribution("uniform", 9 / 5, _uniform),
        EntryDistribution("signs", 1.0, _signs),
        EntryDistribution("laplace", 6.0, _laplace),
    )
}


def entry_distribution(name: str) -> EntryDistribution:
    """The distribution called `name`; ValueError lists the names that exist."""
    if name not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {sorted(DISTRIBUTIONS)}, got {name!r}")
    return DISTRIBUTIONS[name]


def _positive(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


# --- variance of a score -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VarianceEstimate:
    """A measured variance with its confidence interval, from `count` independent samples."""

    value: float
    low: float
    high: float
    count: int


def estimate_variance(samples: Tensor, confidence: float = 0.95) -> VarianceEstimate:
    """Variance of `samples` (any shape, independent draws) with a large-sample interval.

    The standard error is sqrt((m4 - m2^2) / n), m2 and m4 being the central moments: it assumes nothing about the
    shape of the distribution, which a chi-square interval would.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    values = samples.detach().double().flatten()
    count = values.numel()
    if count < 2:
        raise ValueError(f"samples must hold at least 2 values, got {count}")
    deviations = values - values.mean()
    m2 = deviations.square().mean().item()
    m4 = deviations.pow(4).mean().item()
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(max(m4 - m2 * m2, 0.0) / count)
    variance = m2 * count / (count - 1)
    return VarianceEstimate(variance, variance - half, variance + half, count)


def equicorrelated(d: int, rho: float = 0.0, std: float = 1.0) -> Tensor:
    """Covariance (d, d) float64 of entries with standard deviation `std` that correlate pairwise by `rho`."""
    _positive(d=d)
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must lie between 0 and 1, got {rho!r}")
    return std * std * ((1 - rho) * torch.eye(d, dtype=torch.float64) + rho)


def expected_score_variance(
    cov_q: Tensor, cov_k: Tensor, mean_q: Tensor | None = None, mean_k: Tensor | None = None
) -> float:
    """Var(q.k) for independent vectors q and k with covariances (d, d) and means (d,), zero when left out.

    Var(q.k) = tr(cov_q cov_k) + mean_q' cov_k mean_q + mean_k' cov_q mean_k. With identity covariances and no means
    this is d.
    """
    if cov_q.ndim != 2 or cov_q.shape[0] != cov_q.shape[1] or cov_q.shape != cov_k.shape:
        raise ValueError(
            f"cov_q and cov_k must be square and of one size, got {tuple(cov_q.shape)}, {tuple(cov_k.shape)}"
        )
    cov_q, cov_k = cov_q.double(), cov_k.double()
    variance = (cov_q * cov_k.T).sum()  # tr(A B) without the matrix product
    if mean_q is not None:
        variance = variance + mean_q.double() @ cov_k @ mean_q.double()
    if mean_k is not None:
        variance = variance + mean_k.double() @ cov_q @ mean_k.double()
    return variance.item()


@dataclass(frozen=True)
class ScoreVariance:
    """Var(q.k) at one head dimension: measured over `draws` pairs, and expected."""

    d: int
    draws: int
    measured: VarianceEstimate
    expected: float

    @property
    def ratio(self) -> float:
        """Measured over expected; 1 when the closed form holds."""
        return self.measured.value / self.expected


def draw_scores(
    d: int,
    draws: int,
    distribution: str = "normal",
    *,
    rho: float = 0.0,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """`draws` independent dot products q.k, float64 (draws,).

    q and k are independent of each other. Within each of them the entries have the given mean and standard deviation
    and correlate pairwise by `rho` (a shared part sqrt(rho) and an own part sqrt(1 - rho)).
    """
    _positive(d=d, draws=draws)
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must lie between 0 and 1, got {rho!r}")
    draw = entry_distribution(distribution).draw
    generator = torch.Generator().manual_seed(seed)

    def vectors(count: int) -> Tensor:
        entries = draw((count, d), generator)
        if rho:
            entries = math.sqrt(1 - rho) * entries + math.sqrt(rho) * draw((count, 1), generator)
        return entries if (mean, std) == (0.0, 1.0) else mean + std * entries

    chunk = max(1, _CHUNK_ENTRIES // d)
    counts = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    return torch.cat([(vectors(count) * vectors(count)).sum(-1) for count in counts])


def measure_score_variance(
    d: int,
    draws: int = 20_000,
    distribution: str = "normal",
    *,
    rho: float = 0.0,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    confidence: float = 0.95,
) -> ScoreVariance:
    """Measure Var(q.k) at head dimension `d` beside its closed form; arguments as in `draw_scores`."""
    scores = draw_scores(d, draws, distribution, rho=rho, mean=mean, std=std, seed=seed)
    covariance = equicorrelated(d, rho, std)
    means = torch.full((d,), mean, dtype=torch.float64)
    expected = expected_score_variance(covariance, covariance, means, means)
    return ScoreVariance(d, draws, estimate_variance(scores, confidence), expected)


# --- softmax -------------------------------------------------------------------------------------------------------


def attention_scale(d: int, rule: str = "1/sqrt(d)") -> float:
    """The factor on q.k under one of the three rules that the lesson compares: "1", "1/sqrt(d)" or "1/d"."""
    _positive(d=d)
    rules = {"1": 1.0, "1/sqrt(d)": 1 / math.sqrt(d), "1/d": 1 / d}
    if rule not in rules:
        raise ValueError(f"rule must be one of {list(rules)}, got {rule!r}")
    return rules[rule]


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats over the last dimension: ln(keys) when uniform, 0 when one key has all the weight."""
    return torch.special.entr(weights).sum(-1)


def jacobian_norm(weights: Tensor) -> Tensor:
    """Frobenius norm of the softmax Jacobian diag(p) - p p', (..., keys) -> (...), without building it.

    The square is sum p_i^2 (1 - p_i)^2 + sum_{i != j} p_i^2 p_j^2. The largest weight is treated apart: near
    saturation 1 - p_max is the small number that matters, and the sum of the others gives it without cancellation.
    """
    weights = weights.double()
    largest, index = weights.max(-1, keepdim=True)
    others = weights.scatter(-1, index, 0.0)
    largest = largest.squeeze(-1)
    square_sum = others.square().sum(-1)
    diagonal = (largest * others.sum(-1)).square() + (others * (1 - others)).square().sum(-1)
    off_diagonal = 2 * largest.square() * square_sum + square_sum.square() - others.pow(4).sum(-1)
    return (diagonal + off_diagonal).sqrt()


def query_gradient_norm(weights: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Frobenius norm of d(weights)/dq = scale * (diag(p) - p p') K: weights (..., n), keys (..., n, d) -> (...)."""
    centred = keys - weights.unsqueeze(-2) @ keys
    return scale * torch.linalg.matrix_norm(weights.unsqueeze(-1) * centred)


def entropy_estimate(keys: int, logit_std: float) -> float:
    """Expected entropy of a softmax over many independent normal logits, in nats.

    ln(keys) - logit_std^2 / 2, valid while logit_std stays below sqrt(2 ln keys); from there on a handful of keys
    hold all the weight and the leading term is 0 (the random energy model, Derrida 1981).
    """
    _positive(keys=keys)
    return max(0.0, math.log(keys) - logit_std * logit_std / 2)


def saturation_std(keys: int) -> float:
    """The logit standard deviation sqrt(2 ln keys) at which `entropy_estimate` reaches 0."""
    _positive(keys=keys)
    return math.sqrt(2 * math.log(keys))


@dataclass(frozen=True)
class SoftmaxMeasurement:
    """What a softmax over `keys` random keys does, over many queries: means, and a spread where it matters."""

    d: int
    keys: int
    scale: float
    logit_std: float
    entropy: float
    largest_weight: float
    jacobian_median: float
    jacobian_mean: float
    query_gradient_low: float  # 10 % quantile over the queries
    query_gradient_median: float
    query_gradient_high: float  # 90 % quantile


def measure_softmax(
    d: int, keys: int = 64, scale: float | None = None, rows: int = 400, distribution: str = "normal", *, seed: int = 0
) -> SoftmaxMeasurement:
    """Attention weights of `rows` random queries, each over its own `keys` random keys, at `scale` (None: 1/sqrt(d))."""
    _positive(d=d, keys=keys, rows=rows)
    factor = attention_scale(d) if scale is None else float(scale)
    draw = entry_distribution(distribution).draw
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CHUNK_ENTRIES // (d * keys))
    logits, gradients = [], []
    for start in range(0, rows, chunk):
        count = min(chunk, rows - start)
        q = draw((count, d), generator)
        k = draw((count, keys, d), generator)
        logits.append(factor * (k @ q.unsqueeze(-1)).squeeze(-1))
        gradients.append(query_gradient_norm(logits[-1].softmax(-1), k, factor))
    z, gradient = torch.cat(logits), torch.cat(gradients)
    weights = z.softmax(-1)
    jacobian = jacobian_norm(weights)
    low, median, high = gradient.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return SoftmaxMeasurement(
        d=d,
        keys=keys,
        scale=factor,
        logit_std=z.std().item(),
        entropy=entropy(weights).mean().item(),
        largest_weight=weights.max(-1).values.mean().item(),
        jacobian_median=jacobian.median().item(),
        jacobian_mean=jacobian.mean().item(),
        query_gradient_low=low,
        query_gradient_median=median,
        query_gradient_high=high,
    )


def matched_weight(keys: int, logit: float) -> float:
    """Weight of one key with the given logit while the other `keys` - 1 have logit 0: e^z / (e^z + keys - 1)."""
    _positive(keys=keys)
    return 1 / (1 + (keys - 1) * math.exp(-logit))


# --- number formats ------------------------------------------------------------------------------------------------


def spacing(value: float, dtype: torch.dtype) -> float:
    """Distance from `value` (not 0, in the normal range of `dtype`) to the next representable number away from 0."""
    info = torch.finfo(dtype)
    if not info.tiny <= abs(value) <= info.max:
        raise ValueError(f"value must lie between {info.tiny} and {info.max} in magnitude for {dtype}, got {value!r}")
    return info.eps * 2.0 ** (math.frexp(abs(value))[1] - 1)


# --- QK-norm and a real model --------------------------------------------------------------------------------------


def rms_norm(x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times `gain` (d,) if given."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed if gain is None else normed * gain


def logit_bound(q_gain: Tensor, k_gain: Tensor) -> float:
    """Largest |q.k| / sqrt(d) that QK-norm with these gains (d,) allows: sqrt(d) * max|q_gain| * max|k_gain|.

    RMS-normed vectors have norm sqrt(d) at most, a gain stretches them by at most its largest entry, RoPE rotates
    and keeps norms, and Cauchy and Schwarz do the rest.
    """
    if q_gain.ndim != 1 or q_gain.shape != k_gain.shape:
        raise ValueError(
            f"q_gain and k_gain must be vectors of one size, got {tuple(q_gain.shape)}, {tuple(k_gain.shape)}"
        )
    return math.sqrt(q_gain.numel()) * q_gain.abs().max().item() * k_gain.abs().max().item()


@dataclass(frozen=True)
class LayerHeads:
    """Queries and keys of one layer for one sequence of T tokens, float32 on the CPU.

    raw: out of the projection; normed: after QK-norm; q and k: after RoPE, as the dot product sees them.
    Queries (H, T, D), keys (KV, T, D); query head h reads key head h // (H // KV).
    """

    q_raw: Tensor
    k_raw: Tensor
    q_normed: Tensor
    k_normed: Tensor
    q: Tensor
    k: Tensor
    q_gain: Tensor
    k_gain: Tensor

    def scores(self, q: Tensor | None = None, k: Tensor | None = None) -> Tensor:
        """Unscaled causal scores q.k of every head, (H, T (T + 1) / 2) float64; q and k default to the rotated ones."""
        q = self.q if q is None else q
        k = self.k if k is None else k
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
        rows, columns = torch.tril_indices(q.shape[1], q.shape[1])
        return (q.double() @ k.double().transpose(1, 2))[:, rows, columns]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@torch.no_grad()
def capture_heads(model: Any, token_ids: Sequence[int]) -> list[LayerHeads]:
    """Run a transformers Qwen3 (`Qwen3ForCausalLM`) on `token_ids` and return what its dot products see, by layer."""
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    rotary: list[tuple[Tensor, Tensor]] = []
    hooks = [model.model.rotary_emb.register_forward_hook(lambda _m, _i, output: rotary.append(output))]
    layers = model.model.layers
    for number, layer in enumerate(layers):
        for name in ("q_norm", "k_norm"):

            def keep(
                _module: Any, inputs: tuple[Tensor], output: Tensor, key: tuple[int, str] = (number, name)
            ) -> None:
                # (1, T, heads, D) -> (heads, T, D)
                seen[key] = tuple(x[0].transpose(0, 1).float().cpu() for x in (inputs[0], output))

            hooks.append(getattr(layer.self_attn, name).register_forward_hook(keep))
    try:
        model(torch.tensor([list(token_ids)], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    cos, sin = (part[0].float().cpu() for part in rotary[0])
    captured = []
    for number, layer in enumerate(layers):
        (q_raw, q_normed), (k_raw, k_normed) = seen[number, "q_norm"], seen[number, "k_norm"]
        attention = layer.self_attn
        captured.append(
            LayerHeads(
                q_raw,
                k_raw,
                q_normed,
                k_normed,
                q=_rotate(q_normed, cos, sin),
                k=_rotate(k_normed, cos, sin),
                q_gain=attention.q_norm.weight.detach().float().cpu(),
                k_gain=attention.k_norm.weight.detach().float().cpu(),
            )
        )
    return captured


@torch.no_grad()
def engine_attention(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a layer of the engine makes of one sequence: a prefill of all tokens but the last, then a decode of the last.

    q (H, T, D), k and v (KV, T, D), float32 on the CPU -> (H, T, D). The layer gets a KV cache for it.
    """
    tokens, block_size = q.shape[1], 16
    num_blocks = -(-tokens // block_size)
    attention.kv_cache = torch.zeros(num_blocks, 2, k.shape[0], block_size, k.shape[2])
    parts = []
    for start, stop in ((0, tokens - 1), (tokens - 1, tokens)):
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, stop - start], dtype=torch.int32),
            context_lens=torch.tensor([stop], dtype=torch.int32),
            block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
            slot_mapping=torch.arange(start, stop, dtype=torch.int32),
            num_decodes=int(start > 0),
            max_query_len=stop - start,
            max_context_len=stop,
        )
        parts.append(attention(*(x[:, start:stop].transpose(0, 1).contiguous() for x in (q, k, v)), metadata))
    return torch.cat(parts).transpose(0, 1)


@contextmanager
def override_scale(model: Any, scale: float) -> Iterator[None]:
    """Run a transformers Qwen3 with another factor on q.k than its own inside the `with` block."""
    attentions = [layer.self_attn for layer in model.model.layers]
    before = [attention.scaling for attention in attentions]
    try:
        for attention in attentions:
            attention.scaling = scale
        yield
    finally:
        for attention, value in zip(attentions, before, strict=True):
            attention.scaling = value


# --- exercises of notebook 01 --------------------------------------------------------------------------------------


def _vectors(d: int, keys: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return _normal((d,), generator), _normal((keys, d), generator)


@checker("attention-weights")
def _(attention_weights: Callable[[Tensor, Tensor], Tensor]) -> str:
    for d, keys in ((64, 5), (16, 40)):
        q, k = _vectors(d, keys, seed=d)
        got = attention_weights(q, k)
        want = torch.softmax(k @ q / math.sqrt(d), -1)
        if not isinstance(got, Tensor) or got.shape != want.shape:
            raise Wrong(f"For q of shape ({d},) and keys of shape ({keys}, {d}) return a tensor of shape ({keys},).")
        if (got.sum() - 1).abs() > 1e-6:
            raise Wrong(f"With {keys} keys the weights sum to {got.sum().item():.6g}, but must sum to 1.")
        if (got - want).abs().max() > 1e-6:
            used = _scale_in_use(got, k @ q)
            said = f"behave like a softmax of q·k times {used:.5g}" if used else "are not a softmax of the scaled q·k"
            raise Wrong(
                f"At d = {d} with {keys} keys your weights {said}. The factor depends on d alone, and at d = {d} "
                "it must give logits of variance 1.",
                picture=_compare_weights(got, want),
            )
    q, k = _vectors(64, 5, seed=1)
    q, k = 100 * q, 100 * k
    got = attention_weights(q, k)
    if not torch.isfinite(got).all():
        raise Wrong("With entries 100 times as large the result is not finite. Subtract the largest logit before exp.")
    expect_close(
        "With entries 100 times as large attention_weights(q, keys)", got, torch.softmax(k @ q / 8, -1), tol=1e-3
    )
    return "Your weights equal torch's softmax of q·k / sqrt(d), for large entries too"


def _scale_in_use(weights: Tensor, scores: Tensor) -> float | None:
    """The factor f for which softmax(f * scores) gives these weights, if there is one."""
    first, last = scores.argmax(), scores.argmin()
    factor = ((weights[first] / weights[last]).log() / (scores[first] - scores[last])).item()
    return factor if torch.allclose(torch.softmax(factor * scores, -1), weights, atol=1e-6) else None


def _compare_weights(got: Tensor, want: Tensor) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        positions = torch.arange(want.numel())
        axes.bar(positions - 0.2, want, width=0.4, label="expected")
        axes.bar(positions + 0.2, got.detach(), width=0.4, label="yours")
        axes.set(xlabel="key", ylabel="attention weight")
        axes.legend()

    return draw


@checker("unit-variance-scale")
def _(unit_variance_scale: Callable[[Tensor, Tensor], float]) -> str:
    hint = "the variance of f * q·k is f^2 Var(q·k), and Var(q·k) is the trace of cov_q @ cov_k"
    identity = torch.eye(64, dtype=torch.float64)
    expect_close(
        "With two identity matrices of size 64 the scale", unit_variance_scale(identity, identity), 0.125, hint=hint
    )
    expect_close(
        "With cov_q = 4 I and cov_k = I of size 64 the scale",
        unit_variance_scale(4 * identity, identity),
        0.0625,
        hint=hint,
    )
    generator = torch.Generator().manual_seed(0)
    root_q, root_k = _normal((12, 12), generator), _normal((12, 12), generator)
    cov_q, cov_k = root_q @ root_q.T, root_k @ root_k.T
    want = expected_score_variance(cov_q, cov_k) ** -0.5
    expect_close(
        "With two correlated covariances the scale", unit_variance_scale(cov_q, cov_k), want, tol=1e-9, hint=hint
    )
    return "The scores have variance 1 whatever the covariances are, and sqrt(d) was the special case of the identity"


@checker("sharpest-weight")
def _(sharpest_weight: Callable[[int, float, int], float]) -> str:
    for d, gain, keys in ((16, 1.0, 1000), (64, 1.0, 1000), (64, 0.5, 100), (128, 1.2, 100_000)):
        bound = math.sqrt(d) * gain * gain
        want = matched_weight(keys, 2 * bound)
        got = sharpest_weight(d, gain, keys)
        if isinstance(got, (int, float, Tensor)) and abs(float(got) - matched_weight(keys, bound)) < 1e-9:
            raise Wrong(
                "You let the other keys have logit 0. They can be worse than that: a key may point away from q."
            )
        expect_close(
            f"sharpest_weight({d}, {gain}, {keys})",
            got,
            want,
            tol=1e-9,
            hint=f"the best key has logit {bound:.4g}, all others {-bound:.4g}",
        )
    return "So under QK-norm the gains decide how sharply a head can look, and that is learned"
