"""The pictures of the lesson on 1/sqrt(d): each takes measurements and draws them, none measures in secret.

`draw_scores_and_weights` is the exception: it is what the lesson's slider redraws, so it takes the slider's values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from course import plots
from course.attention_variance import (
    LayerHeads,
    ScoreVariance,
    SoftmaxMeasurement,
    attention_scale,
    draw_scores,
    entropy_estimate,
    logit_bound,
)

RULE_COLOURS = {"1": plots.COLOURS[1], "1/sqrt(d)": plots.COLOURS[0], "1/d": plots.COLOURS[2]}
"""One colour for each rule of `attention_scale`, the same in every picture."""


def _powers_of_two(axis: Any, values: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(values), [str(value) for value in values])
    axis.minorticks_off()
    axis.set_xlabel("head dimension d")


def draw_variance(measurements: Sequence[ScoreVariance]) -> Any:
    """Var(q.k) against d: measured with 95 % intervals, beside the closed form; then their ratio."""
    dims = [m.d for m in measurements]
    figure, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.4))
    left.plot(dims, [m.expected for m in measurements], color=plots.COLOURS[6], linestyle="--", label="Var(q·k) = d")
    left.plot(dims, [m.measured.value for m in measurements], "o", color=plots.COLOURS[0], label="measured")
    left.set_yscale("log", base=2)
    left.set_yticks(dims, [str(d) for d in dims])
    left.set(ylabel="variance of q·k", title="The variance is the dimension")
    left.legend()

    ratios = [m.ratio for m in measurements]
    below = [m.ratio - m.measured.low / m.expected for m in measurements]
    above = [m.measured.high / m.expected - m.ratio for m in measurements]
    right.axhline(1.0, color=plots.COLOURS[6], linestyle="--", linewidth=1.2)
    right.errorbar(dims, ratios, yerr=[below, above], fmt="o", capsize=3, color=plots.COLOURS[0])
    right.set(ylabel="measured / d", ylim=(0.9, 1.1), title=f"Ratio, {measurements[0].draws:,} draws, 95 % interval")
    for axis in (left, right):
        _powers_of_two(axis, dims)
    return figure


def draw_saturation(by_rule: Mapping[str, Sequence[SoftmaxMeasurement]]) -> Any:
    """Entropy, largest weight and Jacobian norm of the softmax against d, one line for each scaling rule."""
    figure, axes = plots.figure(1, 3, figsize=(11.0, 3.4))
    keys = next(iter(by_rule.values()))[0].keys
    for rule, measurements in by_rule.items():
        dims = [m.d for m in measurements]
        style = {"color": RULE_COLOURS[rule], "marker": "o", "markersize": 4}
        axes[0].plot(dims, [m.entropy for m in measurements], label=f"scale {rule}", **style)
        axes[1].plot(dims, [m.largest_weight for m in measurements], **style)
        axes[2].plot(dims, [m.jacobian_median for m in measurements], **style)
        # The closed form holds while many keys share the weight; unscaled logits are past that from the start.
        if all(m.scale * math.sqrt(m.d) <= 1 for m in measurements):
            expected = [entropy_estimate(keys, m.scale * math.sqrt(m.d)) for m in measurements]
            axes[0].plot(dims, expected, color=plots.COLOURS[6], linestyle=":", zorder=5)
    axes[0].set(ylabel="nats", ylim=(-0.1, 1.1 * math.log(keys)), title="Entropy (dotted: closed form)")
    axes[0].legend(loc="center right", bbox_to_anchor=(1.0, 0.62))
    axes[1].set(ylabel="weight", ylim=(0, 1.05), title="Largest weight")
    axes[2].set_yscale("log")
    axes[2].set(ylabel="Frobenius norm", title="Softmax Jacobian (median query)")
    for axis in axes:
        _powers_of_two(axis, dims)
    return figure


def draw_query_gradient(by_rule: Mapping[str, Sequence[SoftmaxMeasurement]]) -> Any:
    """Norm of d(weights)/dq against d: median and the band that holds the middle 80 % of the queries."""
    figure, axis = plots.figure(figsize=(6.6, 3.8))
    for rule, measurements in by_rule.items():
        dims = [m.d for m in measurements]
        low = [m.query_gradient_low for m in measurements]
        high = [m.query_gradient_high for m in measurements]
        axis.fill_between(dims, low, high, color=RULE_COLOURS[rule], alpha=0.2, linewidth=0)
        axis.plot(
            dims, [m.query_gradient_median for m in measurements], color=RULE_COLOURS[rule], label=f"scale {rule}"
        )
    axis.set_yscale("log")
    axis.set(ylabel="norm of d(weights) / dq", title="What reaches the query: median, and 80 % of the queries")
    axis.legend(loc="lower left")
    _powers_of_two(axis, dims)
    return figure


def draw_scores_and_weights(d: int, scaled: bool, distribution: str, keys: int = 16, seed: int = 0) -> Any:
    """Histogram of many logits at dimension `d`, and the attention weights of one query over the first `keys` of them.

    The logits of the right panel are the first of the left one: independent pairs (q, k), as in the derivation.
    """
    import numpy as np

    factor = attention_scale(d) if scaled else 1.0
    logits = factor * draw_scores(d, 4000, distribution, seed=seed)
    std = factor * math.sqrt(d)
    figure, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.2))
    reach = 4 * max(std, 1.0)
    bins = np.linspace(-reach, reach, 61)
    if distribution == "signs":
        # q.k takes every second integer from -d to d: bins that hold equally many of them, or the shape lies.
        width = 2 * factor * max(1, round(std / (8 * factor)))
        bins = np.arange(-(d + 1) * factor, (d + 1) * factor + width, width)
        reach = min(reach, (d + 1) * factor)
    heights, _, _ = left.hist(logits.numpy(), bins=bins, density=True, color=plots.COLOURS[5])
    x = np.linspace(-reach, reach, 301)
    density = np.exp(-0.5 * (x / std) ** 2) / (std * math.sqrt(2 * math.pi))
    left.plot(x, density, color=plots.COLOURS[6], linewidth=1.2, label=f"normal, variance {std * std:g}")
    name = "q·k / sqrt(d)" if scaled else "q·k"
    left.set(xlim=(-reach, reach), ylim=(0, 1.3 * max(heights.max(), density.max())))
    left.set(xlabel=name, ylabel="density", title=f"Logits at d = {d}: measured variance {logits.var().item():.2f}")
    left.legend(loc="upper right")
    weights = logits[:keys].softmax(-1)
    right.bar(range(keys), weights.numpy(), color=RULE_COLOURS["1/sqrt(d)" if scaled else "1"])
    right.axhline(1 / keys, color=plots.COLOURS[6], linestyle="--", linewidth=1.2, label="uniform")
    right.set(
        xlabel="key", ylabel="attention weight", ylim=(0, 1.2), title=f"Largest weight {weights.max().item():.3f}"
    )
    right.legend(loc="upper right")
    return figure


def draw_model_scores(layers: Sequence[LayerHeads]) -> Any:
    """Each layer of a real model: spread of q.k before and after QK-norm, and logits against their bound."""
    figure, (left, right) = plots.figure(1, 2, figsize=(9.0, 3.4))
    numbers = list(range(len(layers)))
    d = layers[0].q.shape[-1]
    before = [layer.scores(layer.q_raw, layer.k_raw).std(-1) for layer in layers]
    after = [layer.scores().std(-1) for layer in layers]
    for spread, offset, colour, label in (
        (before, -0.12, plots.COLOURS[1], "projected"),
        (after, 0.12, plots.COLOURS[0], "after QK-norm and RoPE"),
    ):
        for number, heads in zip(numbers, spread, strict=True):
            x = [number + offset] * len(heads)
            left.plot(x, heads, "o", color=colour, alpha=0.7, label=label if number == 0 else None)
    left.axhline(math.sqrt(d), color=plots.COLOURS[6], linestyle="--", linewidth=1.2, label="sqrt(d)")
    left.set(xlabel="layer", ylabel="standard deviation of q·k", title="One dot for each query head", xticks=numbers)
    left.set_yscale("log")
    low, high = left.get_ylim()
    left.set_ylim(low, high * (high / low) ** 0.5)
    left.legend(loc="upper left")

    largest = [layer.scores().abs().max().item() / math.sqrt(d) for layer in layers]
    bounds = [logit_bound(layer.q_gain, layer.k_gain) for layer in layers]
    right.bar(numbers, largest, color=plots.COLOURS[0], label="largest |q·k| / sqrt(d)")
    right.plot(numbers, bounds, "_", markersize=28, color=plots.COLOURS[1], label="bound from the gains")
    right.set(
        xlabel="layer", ylabel="logit", ylim=(0, 1.4 * max(bounds)), title="QK-norm bounds every logit", xticks=numbers
    )
    right.legend(loc="upper left", ncols=2)
    return figure
