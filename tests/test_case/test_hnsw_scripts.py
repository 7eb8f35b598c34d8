"""The HNSW experiments run alone, are seeded, and their reports say what their data says."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "test-case"
SCRIPTS = ("hnsw_simple", "hnsw_demo", "hnsw_compare_max_m", "hnsw_compare_ef", "hnsw_compare_ef_quick", "hnsw_reports")
REPORTS = (
    "HNSW_max_m_comparison.md",
    "max_m_comparison_summary.txt",
    "max_m_comparison_data.csv",
    "EF_PARAMETERS_GUIDE.md",
    "EF_SEPARATION_SUMMARY.txt",
    "FINAL_REPORT.txt",
    "compare_result.log",
    "ef_comparison_result.log",
    "README_comparison.txt",
)


def run(name: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import hnsw_experiment

    return hnsw_experiment


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name):
    assert "--seed" in run(name, "--help")


def test_the_smallest_walk_through_finds_what_brute_force_finds():
    line = next(line for line in run("hnsw_simple", "--n", "200").splitlines() if line.startswith("found"))
    found, truth = line.removeprefix("found ").split(", brute force ")
    assert found == truth


def test_demo():
    out = run("hnsw_demo", "--n", "600", "--queries", "50")
    assert "an even id among the answers: False" in out and "same answers: True" in out
    assert "-1, -1, -1" in out


def test_all_reports_from_one_command_and_the_same_csv_for_the_same_seed(tmp_path, experiment):
    import hnsw_compare_max_m

    small = ["--n", "400", "--queries", "60", "--dim", "8"]
    run("hnsw_reports", *small, "--out", str(tmp_path / "a"))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(REPORTS)
    hnsw_compare_max_m.main([*small, "--out", str(tmp_path / "b")])
    data = (tmp_path / "a" / "max_m_comparison_data.csv").read_bytes()
    assert data == (tmp_path / "b" / "max_m_comparison_data.csv").read_bytes()
    with (tmp_path / "a" / "max_m_comparison_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["set"], r["max_m"], r["sampler"]) for r in rows} == {
        (s, str(m), sampler)
        for s in ("uniform", "clusters")
        for m in (5, 6, 7, 8, 16, 32)
        for sampler in ("paper", "seed")
    }
    markdown = (tmp_path / "a" / "HNSW_max_m_comparison.md").read_text()
    for row in rows:
        if row["sampler"] == "paper":
            assert f"| {row['set']} | {row['max_m']} | {row['ef_search']} | {float(row['recall']):.4f} |" in markdown
    final = (tmp_path / "a" / "FINAL_REPORT.txt").read_text()
    assert all(
        sentence in final for sentence in (tmp_path / "a" / "EF_SEPARATION_SUMMARY.txt").read_text().split("\n\n")[1:]
    )


def test_committed_reports_belong_together():
    """What stands in the repository was written by one run: the verdicts of the reports are those of its CSV."""
    with (FOLDER / "max_m_comparison_data.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["sampler"] == "paper"]
    final = (FOLDER / "FINAL_REPORT.txt").read_text()
    for name in ("uniform", "clusters"):
        at = {int(r["max_m"]): r for r in rows if r["set"] == name and r["ef_search"] == "50"}
        a, b = at[min(at)], at[max(at)]
        assert f"({float(a['distances']):.0f} against {float(b['distances']):.0f})" in final
        assert f"finds {float(a['recall']):.3f} against {float(b['recall']):.3f}" in final
    for report in REPORTS:
        assert (FOLDER / report).exists()


def test_distances_are_counted_and_recall_is_brute_forces(experiment):
    X, Q = experiment.vectors("uniform", 300, 6, 40, seed=2)
    again = experiment.vectors("uniform", 300, 6, 40, seed=2)
    assert np.array_equal(X, again[0]) and np.array_equal(Q, again[1])
    truth = experiment.truth_of(X, Q)
    assert np.array_equal(truth, np.argsort(((Q[:, None] - X[None]) ** 2).sum(-1), axis=1)[:, :10])
    point = experiment.measure(experiment.build(X, 8, 60, 0), Q, truth, 300, rounds=1)
    assert point.recall == 1.0
    assert 299 <= point.distances <= 330  # ef is everything: each node once, and some again on the way down


def test_samplers(experiment):
    rng = np.random.default_rng(0)
    seeds = experiment.seeds_levels(rng, 100_000, ml=123.0)
    assert abs((seeds >= 1).mean() - np.log(2)) < 0.006
    assert abs(seeds.mean() - np.log(2) / (1 - np.log(2))) < 0.04
    X, _ = experiment.vectors("clusters", 500, 6, 1, seed=0)
    assert experiment.build(X, 8, 20, 0, "seed").mean_level > 10 * experiment.build(X, 8, 20, 0).mean_level
