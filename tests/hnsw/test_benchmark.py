"""The displayed figures of the benchmark are those of its samples; how it gets them is right."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for library in ("hnswlib", "faiss", "usearch"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    import hnsw_peers

    return hnsw_peers


def test_the_report_is_computed_from_the_committed_samples(peers):
    results = peers.load()
    assert results, "no results are committed"
    assert (peers.RESULTS / "hnsw_peers.md").read_text() == peers.report(peers.summary(results))
    for result in results.values():
        assert result["median"] == np.median(result["samples"]) and result["commit"] and result["command"]


def test_speed_at_a_recall(peers):
    curve = [{"recall": r, "queries_per_second": [s, s, 9e9]} for r, s in ((0.8, 400.0), (0.9, 100.0), (0.99, 50.0))]
    assert peers.speed_at(curve, 0.9) == pytest.approx(100)
    assert peers.speed_at(curve, 0.85) == pytest.approx(200)  # halfway between 400 and 100 in the logarithm
    assert peers.speed_at(curve, 0.5) == 400
    assert peers.speed_at(curve, 0.995) is None


def test_truth_and_recall(peers):
    rng = np.random.default_rng(0)
    X, Q = rng.random((400, 5), dtype=np.float32), rng.random((30, 5), dtype=np.float32)
    truth = peers.true_neighbours(X, Q, 10)
    assert np.array_equal(truth, np.argsort(((Q[:, None] - X[None]) ** 2).sum(-1), axis=1)[:, :10])
    assert peers.recall(truth, truth) == 1.0
    assert peers.recall(np.full_like(truth, -1), truth) == 0.0


@pytest.mark.parametrize("peer", ["hnswlib", "faiss", "usearch", "ours"])
def test_every_library_is_asked_the_same(peers, peer):
    rng = np.random.default_rng(0)
    X, Q = rng.random((500, 8), dtype=np.float32), rng.random((20, 8), dtype=np.float32)
    found = peers.LIBRARIES[peer](X, 16, 100).search(Q, 100)
    assert peers.recall(np.asarray(found).astype(np.int64), peers.true_neighbours(X, Q, peers.K)) > 0.98


def test_an_absent_wheel_is_a_reason_not_a_crash(peers, monkeypatch):
    import hnsw_sets

    monkeypatch.delenv("WORDLLAMA", raising=False)
    with pytest.raises(hnsw_sets.Unavailable, match="set WORDLLAMA"):
        hnsw_sets.split("text")
    assert "hnsw_peers" in sys.modules
