"""What max_m does: 5, 6, 7 and wider, on uniform and on clustered vectors; and what the seed's level sampler did.

    python test-case/hnsw_compare_max_m.py
    python test-case/hnsw_compare_max_m.py --max-m 5 6 7 8 12 16 32 --n 20000

Writes HNSW_max_m_comparison.md, max_m_comparison_summary.txt, max_m_comparison_data.csv and compare_result.log. The CSV
has nothing that depends on the machine: the same seed writes the same file.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from hnsw_experiment import (
    Log,
    Point,
    build,
    common_arguments,
    distances_at,
    measure,
    provenance,
    table,
    truth_of,
    vectors,
)
from tqdm import tqdm

SETS = ("uniform", "clusters")
EFS = (10, 20, 50, 100, 200)
EF_CONSTRUCTION = 100


def run(options: argparse.Namespace) -> list[dict]:
    """One row for each set, max_m, level sampler and ef_search."""
    rows = []
    settings = [(name, m, sampler) for name in SETS for m in options.max_m for sampler in ("paper", "seed")]
    data = {name: vectors(name, options.n, options.dim, options.queries, options.seed) for name in SETS}
    truths = {name: truth_of(*data[name]) for name in SETS}
    build(data["uniform"][0][:100], 4, 10, 0)  # compiles
    for name, m, sampler in tqdm(settings, desc="max_m", unit="index"):
        X, Q = data[name]
        built = build(X, m, EF_CONSTRUCTION, options.seed, sampler)
        for ef in EFS:
            point = measure(built, Q, truths[name], ef)
            rows.append(
                {"set": name, "max_m": m, "sampler": sampler, "ef_construction": EF_CONSTRUCTION, "ef_search": ef}
                | {"recall": point.recall, "distances": point.distances, "link_bytes": built.link_bytes}
                | {"mean_level": built.mean_level, "top_level": built.top_level, "share": built.share_above_0}
                | {"build_seconds": built.build_seconds, "queries_per_second": point.queries_per_second}
            )
    return rows


def points(rows: list[dict], name: str, m: int, sampler: str = "paper") -> list[Point]:
    chosen = [r for r in rows if (r["set"], r["max_m"], r["sampler"]) == (name, m, sampler)]
    return [Point(r["recall"], r["distances"], r["queries_per_second"]) for r in chosen]


def verdicts(rows: list[dict], recall: float = 0.95) -> list[str]:
    """What the measurements say about "a smaller max_m searches slower", a sentence or two a set."""
    sizes = sorted({r["max_m"] for r in rows})
    small, large = sizes[0], sizes[-1]
    sentences = []
    for name in SETS:
        at = EFS.index(50)
        a, b = points(rows, name, small)[at], points(rows, name, large)[at]
        word = "fewer" if a.distances < b.distances else "more"
        faster = "faster" if a.queries_per_second > b.queries_per_second else "slower"
        text = (
            f"{name}: at the same ef_search (50), max_m {small} computes {word} distances a query than max_m {large} "
            f"({a.distances:.0f} against {b.distances:.0f}), searches {faster} "
            f"({a.queries_per_second:.0f} against {b.queries_per_second:.0f} queries/s here), "
            f"and finds {a.recall:.3f} against {b.recall:.3f} of the neighbours. "
        )
        needs = {m: distances_at(points(rows, name, m), recall) for m in sizes}
        reach = {m: d for m, d in needs.items() if d is not None}
        if reach:
            best = min(reach, key=reach.get)
            text += f"For recall {recall} the cheapest is max_m {best} with {reach[best]:.0f} distances a query"
            text += (
                f"; max_m {small} needs {reach[small]:.0f}."
                if small in reach and small != best
                else f"; max_m {small} does not reach it with ef_search up to {EFS[-1]}."
                if small not in reach
                else "."
            )
        else:
            text += f"No max_m reaches recall {recall} with ef_search up to {EFS[-1]}."
        sentences.append(text)
    return sentences


def sampler_rows(rows: list[dict]) -> list[list[str]]:
    """The two level samplers beside each other, on uniform vectors, a line for each max_m."""
    lines = []
    for m in sorted({r["max_m"] for r in rows}):
        pair = [
            next(r for r in rows if (r["set"], r["max_m"], r["sampler"], r["ef_search"]) == ("uniform", m, s, 50))
            for s in ("paper", "seed")
        ]
        both = lambda key, form, pair=pair: " / ".join(form.format(r[key]) for r in pair)  # noqa: E731
        lines.append(
            [m, f"{1 / m:.3f}", both("share", "{:.3f}"), both("mean_level", "{:.2f}"), both("top_level", "{}")]
            + [both("link_bytes", "{:.0f}"), both("distances", "{:.0f}"), both("recall", "{:.3f}")]
        )
    return lines


SAMPLER_HEAD = ["max_m", "1/max_m", "share above layer 0", "mean level", "top", "link bytes", "distances", "recall"]
HEAD = ["set", "max_m", "ef_search", "recall@10", "distances", "queries/s", "build s", "link bytes"]


def result_rows(rows: list[dict]) -> list[list[str]]:
    return [
        [r["set"], r["max_m"], r["ef_search"], f"{r['recall']:.4f}", f"{r['distances']:.0f}"]
        + [f"{r['queries_per_second']:.0f}", f"{r['build_seconds']:.2f}", f"{r['link_bytes']:.0f}"]
        for r in rows
        if r["sampler"] == "paper"
    ]


def write_reports(rows: list[dict], options: argparse.Namespace, log: Log) -> list[Path]:
    options.out.mkdir(parents=True, exist_ok=True)
    origin = provenance(options, "python test-case/hnsw_compare_max_m.py")
    sampler_text = (
        "The seed went up a layer while random() < 1/ml with ml = 1/ln 2, that is with probability ln 2 = 0.693 for "
        "every max_m; the paper's floor(-ln(U) * mL) with mL = 1/ln(M) goes up with probability 1/M. Columns: paper / "
        "seed, ef_search 50, uniform vectors."
    )
    log()
    log(table(HEAD, result_rows(rows)))
    log()
    log(table(SAMPLER_HEAD, sampler_rows(rows)))
    log()
    for sentence in verdicts(rows):
        log(sentence)

    comparison = options.out / "HNSW_max_m_comparison.md"
    comparison.write_text(
        "\n\n".join(
            [
                "# max_m compared",
                origin,
                "## Is a smaller max_m slower?",
                "\n".join(f"- {sentence}" for sentence in verdicts(rows)),
                "## All measurements",
                f"ef_construction {EF_CONSTRUCTION}; `distances` is how many a query computes.",
                table(HEAD, result_rows(rows), markdown=True),
                "## The level sampler: the paper's and the seed's",
                sampler_text,
                table(SAMPLER_HEAD, sampler_rows(rows), markdown=True),
            ]
        )
        + "\n"
    )
    summary = options.out / "max_m_comparison_summary.txt"
    summary.write_text(
        "\n\n".join([origin, *verdicts(rows), sampler_text, table(SAMPLER_HEAD, sampler_rows(rows))]) + "\n"
    )
    data = options.out / "max_m_comparison_data.csv"
    columns = ["set", "max_m", "sampler", "ef_construction", "ef_search", "recall", "distances", "link_bytes"]
    columns += ["mean_level", "top_level"]
    with data.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([f"{row[c]:.4f}" if isinstance(row[c], float) else row[c] for c in columns])
    written = options.out / "compare_result.log"
    log.save(written)
    return [comparison, summary, data, written]


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    parser = common_arguments(__doc__)
    parser.add_argument("--max-m", type=int, nargs="+", default=[5, 6, 7, 8, 16, 32], help="values to compare")
    options = parser.parse_args(arguments)
    log = Log()
    log(provenance(options, "python test-case/hnsw_compare_max_m.py"))
    rows = run(options)
    for path in write_reports(rows, options, log):
        print(f"wrote {path}")
    return rows


if __name__ == "__main__":
    main()
