"""Draw why attention divides by sqrt(d), as PNG files; needs no display.

    python test-case/attention_plot_generator.py --out attention_plots

Writes qk_variance.png, softmax_saturation.png and query_gradient.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from course import plots
from course.attention_figures import draw_query_gradient, draw_saturation, draw_variance
from course.attention_variance import attention_scale, measure_score_variance, measure_softmax

DIMS = (4, 8, 16, 32, 64, 128, 256, 512)
RULES = ("1", "1/sqrt(d)", "1/d")


def generate(out: Path, *, draws: int = 20_000, keys: int = 64, rows: int = 300, seed: int = 0) -> list[Path]:
    """Measure, draw and write the three pictures into `out` (made if missing); returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    by_rule = {
        rule: [measure_softmax(d, keys, attention_scale(d, rule), rows, seed=seed) for d in DIMS] for rule in RULES
    }
    pictures = {
        "qk_variance.png": draw_variance([measure_score_variance(d, draws, seed=seed) for d in DIMS]),
        "softmax_saturation.png": draw_saturation(by_rule),
        "query_gradient.png": draw_query_gradient(by_rule),
    }
    for name, figure in pictures.items():
        (out / name).write_bytes(plots.png(figure))
    return [out / name for name in pictures]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Draw the variance of q.k and its effect on the softmax as PNG files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("attention_plots"), help="folder to write into")
    parser.add_argument("--draws", type=int, default=20_000, help="pairs (q, k) for each variance")
    parser.add_argument("--keys", type=int, default=64, help="keys that one query looks at")
    parser.add_argument("--rows", type=int, default=300, help="queries for each softmax measurement")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator")
    options = parser.parse_args(arguments)
    for name in ("draws", "keys", "rows"):
        if getattr(options, name) < 2:
            parser.error(f"--{name} must be at least 2")
    matplotlib.use("Agg")
    for path in generate(options.out, draws=options.draws, keys=options.keys, rows=options.rows, seed=options.seed):
        print(path)


if __name__ == "__main__":
    main()
