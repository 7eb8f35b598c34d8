"""Run the HNSW comparisons and write all of their reports: one command for the whole set.

    python test-case/hnsw_reports.py

Besides what hnsw_compare_max_m.py and hnsw_compare_ef.py write: FINAL_REPORT.txt and README_comparison.txt.
"""

from __future__ import annotations

from collections.abc import Sequence

import hnsw_compare_ef
import hnsw_compare_max_m
from hnsw_experiment import Log, common_arguments, provenance, table

FILES = (
    ("hnsw_compare_max_m.py", "HNSW_max_m_comparison.md", "max_m: verdict, every measurement, the two level samplers"),
    ("hnsw_compare_max_m.py", "max_m_comparison_summary.txt", "the same in a few lines"),
    ("hnsw_compare_max_m.py", "max_m_comparison_data.csv", "the data; the same seed writes the same bytes"),
    ("hnsw_compare_max_m.py", "compare_result.log", "what the run printed"),
    ("hnsw_compare_ef.py", "EF_PARAMETERS_GUIDE.md", "ef_construction, ef_search and the recommendations, measured"),
    ("hnsw_compare_ef.py", "EF_SEPARATION_SUMMARY.txt", "what each of the two does by itself"),
    ("hnsw_compare_ef.py", "ef_comparison_result.log", "what the run printed"),
    ("hnsw_reports.py", "FINAL_REPORT.txt", "both comparisons: every verdict"),
    ("hnsw_reports.py", "README_comparison.txt", "this list"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = common_arguments(__doc__).parse_args(arguments)
    options.max_m = [5, 6, 7, 8, 16, 32]
    options.out.mkdir(parents=True, exist_ok=True)
    silent = lambda line: None  # noqa: E731
    log = Log(silent)
    log(provenance(options, "python test-case/hnsw_compare_max_m.py"))
    rows = hnsw_compare_max_m.run(options)
    hnsw_compare_max_m.write_reports(rows, options, log)
    log = Log(silent)
    log(provenance(options, "python test-case/hnsw_compare_ef.py"))
    results = hnsw_compare_ef.run(options)
    hnsw_compare_ef.write_reports(results, options, log)

    parts = [
        provenance(options, "python test-case/hnsw_reports.py"),
        'IS A SMALLER max_m SLOWER, AS THE SEED SAID ("smaller max_m searches slower")?',
        *hnsw_compare_max_m.verdicts(rows),
        "WHAT DO ef_construction AND ef_search DO?",
        *hnsw_compare_ef.separation(results["grid"]),
        "WHAT ARE THE SEED'S RECOMMENDATIONS WORTH (max_m/ef_construction/ef_search)?",
        *hnsw_compare_ef.judgements(results["settings"]),
        "THE LEVEL SAMPLER: paper / seed",
        table(hnsw_compare_max_m.SAMPLER_HEAD, hnsw_compare_max_m.sampler_rows(rows)),
    ]
    (options.out / "FINAL_REPORT.txt").write_text("\n\n".join(parts) + "\n")
    readme = [
        "The HNSW comparisons. All of the files below: python test-case/hnsw_reports.py",
        "In seconds, printed only: python test-case/hnsw_compare_ef_quick.py",
        "Every script takes --help, --n, --queries and --seed.",
        table(["written by", "file", "what it holds"], FILES),
    ]
    (options.out / "README_comparison.txt").write_text("\n\n".join(readme) + "\n")
    print(f"wrote {len(FILES)} files into {options.out}")


if __name__ == "__main__":
    main()
