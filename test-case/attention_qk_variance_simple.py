"""Show in a terminal why attention divides by sqrt(d): the variance of q.k, and what a softmax makes of it.

    python test-case/attention_qk_variance_simple.py
    python test-case/attention_qk_variance_simple.py --dims 8 64 512 --distribution signs --seed 7

Needs torch only. The notebook 01_attention_variance tells the story behind the figures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from course.attention_variance import (
    DISTRIBUTIONS,
    ScoreVariance,
    SoftmaxMeasurement,
    attention_scale,
    measure_score_variance,
    measure_softmax,
)

RULES = ("1", "1/sqrt(d)", "1/d")


def bar(value: float, largest: float, width: int) -> str:
    """A bar whose length grows with log2 of `value`: one d twice as large adds one step of fixed length."""
    steps = math.log2(max(value, 1.0) * 2) / math.log2(max(largest, 1.0) * 2)
    return "#" * max(1, round(width * steps))


def variance_plot(measurements: Sequence[ScoreVariance], width: int = 40) -> str:
    """Table and bar chart of Var(q.k), a line for each head dimension."""
    largest = max(m.measured.value for m in measurements)
    lines = [f"{'d':>6} {'Var(q.k)':>10} {'95 % interval':>20} {'closed form':>12} {'ratio':>7}  log2 scale"]
    for m in measurements:
        interval = f"[{m.measured.low:.2f}, {m.measured.high:.2f}]"
        lines.append(
            f"{m.d:>6} {m.measured.value:>10.2f} {interval:>20} {m.expected:>12.0f} {m.ratio:>7.3f}  "
            + bar(m.measured.value, largest, width)
        )
    return "\n".join(lines)


def softmax_table(rows: Sequence[tuple[str, SoftmaxMeasurement]]) -> str:
    """What the softmax does under each scaling rule, a line for each head dimension and rule."""
    lines = [f"{'d':>6} {'scale':>10} {'std of logits':>14} {'entropy':>8} {'largest weight':>15} {'Jacobian':>10}"]
    for rule, m in rows:
        lines.append(
            f"{m.d:>6} {rule:>10} {m.logit_std:>14.3f} {m.entropy:>8.3f} {m.largest_weight:>15.3f} "
            f"{m.jacobian_median:>10.2e}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the variance of q.k against the head dimension d, and what the softmax makes of it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[4, 16, 64, 256, 1024], help="head dimensions")
    parser.add_argument("--draws", type=int, default=20_000, help="pairs (q, k) for each variance")
    parser.add_argument("--keys", type=int, default=64, help="keys that one query looks at")
    parser.add_argument("--rows", type=int, default=200, help="queries for each softmax measurement")
    parser.add_argument("--distribution", choices=sorted(DISTRIBUTIONS), default="normal", help="of the entries")
    parser.add_argument("--width", type=int, default=40, help="characters of the longest bar")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator")
    options = parser.parse_args(arguments)
    for name in ("draws", "keys", "rows", "width"):
        if getattr(options, name) < 2:
            parser.error(f"--{name} must be at least 2")
    if min(options.dims) < 1:
        parser.error("--dims must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    print(f"Variance of q.k over {options.draws:,} pairs, entries {options.distribution}, seed {options.seed}\n")
    variances = [
        measure_score_variance(d, options.draws, options.distribution, seed=options.seed) for d in options.dims
    ]
    print(variance_plot(variances, options.width))
    uniform = math.log(options.keys)
    print(
        f"\nSoftmax over {options.keys} keys (uniform entropy {uniform:.3f}), {options.rows} queries; Jacobian: median\n"
    )
    rows = [
        (
            rule,
            measure_softmax(
                d, options.keys, attention_scale(d, rule), options.rows, options.distribution, seed=options.seed
            ),
        )
        for d in options.dims
        for rule in RULES
    ]
    print(softmax_table(rows))
    print("\nUnscaled, one key takes all the weight; over d, every key gets the same; over sqrt(d), d does not matter.")


if __name__ == "__main__":
    main()
