"""What ef_construction and ef_search do, each by itself; and what the seed's three recommendations are worth.

    python test-case/hnsw_compare_ef.py
    python test-case/hnsw_compare_ef.py --n 20000 --seed 1

Writes EF_PARAMETERS_GUIDE.md, EF_SEPARATION_SUMMARY.txt and ef_comparison_result.log.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hnsw_experiment import Log, build, common_arguments, measure, provenance, table, truth_of, vectors
from tqdm import tqdm

SETS = ("uniform", "clusters")
MAX_M = 6
CONSTRUCTION = (20, 50, 100, 200, 400)
SEARCH = (10, 20, 50, 100, 200, 400)
# The seed's table: name, max_m, ef_construction, ef_search
RECOMMENDED = (("low latency", 5, 50, 20), ("balanced", 6, 100, 50), ("high precision", 8, 200, 100))
# The same purposes, with settings that spend the distances otherwise
ALTERNATIVES = (("M 16, ef 20", 16, 100, 20), ("M 16, ef 50", 16, 200, 50), ("M 16, ef 100", 16, 200, 100))


def run(
    options: argparse.Namespace, construction: Sequence[int] = CONSTRUCTION, search: Sequence[int] = SEARCH
) -> dict:
    """{"grid": a row for each set, ef_construction and ef_search; "settings": one for each set and recommendation}"""
    data = {name: vectors(name, options.n, options.dim, options.queries, options.seed) for name in SETS}
    truths = {name: truth_of(*data[name]) for name in SETS}
    build(data["uniform"][0][:100], 4, 10, 0)  # compiles
    grid, settings = [], []
    with tqdm(total=len(SETS) * (len(construction) + len(RECOMMENDED + ALTERNATIVES)), desc="ef", unit="index") as bar:
        for name in SETS:
            X, Q = data[name]
            for ef_construction in construction:
                built = build(X, MAX_M, ef_construction, options.seed)
                for ef in search:
                    point = measure(built, Q, truths[name], ef)
                    grid.append(_row(name, MAX_M, ef_construction, ef, built, point))
                bar.update()
            for label, m, ef_construction, ef in RECOMMENDED + ALTERNATIVES:
                built = build(X, m, ef_construction, options.seed)
                settings.append(_row(name, m, ef_construction, ef, built, measure(built, Q, truths[name], ef)))
                settings[-1]["label"] = label
                bar.update()
    return {"grid": grid, "settings": settings}


def _row(name, m, ef_construction, ef, built, point) -> dict:
    return {"set": name, "max_m": m, "ef_construction": ef_construction, "ef_search": ef} | {
        "recall": point.recall,
        "distances": point.distances,
        "queries_per_second": point.queries_per_second,
        "build_seconds": built.build_seconds,
    }


def separation(grid: list[dict]) -> list[str]:
    """What each parameter does while the other stands still, a sentence for each and for each set."""
    constructions = sorted({r["ef_construction"] for r in grid})
    searches = sorted({r["ef_search"] for r in grid})
    middle_c, middle_s = constructions[len(constructions) // 2], searches[len(searches) // 2 - 1]
    sentences = []
    for name in SETS:
        at = {(r["ef_construction"], r["ef_search"]): r for r in grid if r["set"] == name}
        a, b = at[constructions[0], middle_s], at[constructions[-1], middle_s]
        sentences.append(
            f"{name}: ef_construction {constructions[0]} to {constructions[-1]} at ef_search {middle_s}: recall "
            f"{a['recall']:.3f} to {b['recall']:.3f}, distances a query {a['distances']:.0f} to {b['distances']:.0f}, "
            f"build time x {b['build_seconds'] / a['build_seconds']:.1f}."
        )
        a, b = at[middle_c, searches[0]], at[middle_c, searches[-1]]
        sentences.append(
            f"{name}: ef_search {searches[0]} to {searches[-1]} at ef_construction {middle_c}: recall {a['recall']:.3f} "
            f"to {b['recall']:.3f}, distances a query {a['distances']:.0f} to {b['distances']:.0f}, on the same graph."
        )
    return sentences


def judgements(settings: list[dict]) -> list[str]:
    """The recommendations against the alternatives: is there one that finds more for no more distances?"""
    sentences = []
    for name in SETS:
        rows = {r["label"]: r for r in settings if r["set"] == name}
        for label, *_ in RECOMMENDED:
            r = rows[label]
            better = [
                (a, rows[a])
                for a, *_ in ALTERNATIVES
                if rows[a]["recall"] > r["recall"] and rows[a]["distances"] <= 1.05 * r["distances"]
            ]
            text = f"{name}, {label} ({r['max_m']}/{r['ef_construction']}/{r['ef_search']}): recall {r['recall']:.3f}, "
            text += f"{r['distances']:.0f} distances a query. "
            if better:
                best, row = max(better, key=lambda pair: pair[1]["recall"])
                text += f"{best} finds {row['recall']:.3f} with {row['distances']:.0f}."
            else:
                text += "None of the alternatives finds more for as few distances."
            if label == "high precision" and r["recall"] < 0.99:
                text += " Not a high precision on this set."
            if r["recall"] < 0.9:
                text += f" It misses {10 * (1 - r['recall']):.1f} of ten neighbours: too many for most uses."
            sentences.append(text)
    return sentences


HEAD = ["set", "max_m", "ef_construction", "ef_search", "recall@10", "distances", "queries/s", "build s"]


def cells(rows: list[dict], labelled: bool = False) -> list[list[str]]:
    return [
        ([r["label"]] if labelled else [])
        + [r["set"], r["max_m"], r["ef_construction"], r["ef_search"], f"{r['recall']:.4f}", f"{r['distances']:.0f}"]
        + [f"{r['queries_per_second']:.0f}", f"{r['build_seconds']:.2f}"]
        for r in rows
    ]


def write_reports(results: dict, options: argparse.Namespace, log: Log) -> list[Path]:
    options.out.mkdir(parents=True, exist_ok=True)
    origin = provenance(options, "python test-case/hnsw_compare_ef.py")
    grid, settings = results["grid"], results["settings"]
    log()
    log(table(HEAD, cells(grid)))
    log()
    log(table(["setting", *HEAD], cells(settings, labelled=True)))
    log()
    for sentence in separation(grid) + judgements(settings):
        log(sentence)
    guide = options.out / "EF_PARAMETERS_GUIDE.md"
    guide.write_text(
        "\n\n".join(
            [
                "# ef_construction and ef_search",
                origin,
                "ef_construction is how many candidates an insertion looks at: it is paid once, while building. "
                "ef_search is how many a query keeps: it is paid by every query, and can change from one to the next.",
                "\n".join(f"- {sentence}" for sentence in separation(grid)),
                "## The recommendations, measured",
                "As max_m/ef_construction/ef_search; below them, alternatives with more links and the same ef.",
                table(["setting", *HEAD], cells(settings, labelled=True), markdown=True),
                "\n".join(f"- {sentence}" for sentence in judgements(settings)),
                f"## The grid, max_m {MAX_M}",
                table(HEAD, cells(grid), markdown=True),
            ]
        )
        + "\n"
    )
    summary = options.out / "EF_SEPARATION_SUMMARY.txt"
    summary.write_text("\n\n".join([origin, *separation(grid), *judgements(settings)]) + "\n")
    written = options.out / "ef_comparison_result.log"
    log.save(written)
    return [guide, summary, written]


def main(arguments: Sequence[str] | None = None) -> dict:
    options = common_arguments(__doc__).parse_args(arguments)
    log = Log()
    log(provenance(options, "python test-case/hnsw_compare_ef.py"))
    results = run(options)
    for path in write_reports(results, options, log):
        print(f"wrote {path}")
    return results


if __name__ == "__main__":
    main()
