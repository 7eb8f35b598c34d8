"""Any sequence of changes keeps the graph whole and the answers those of brute force."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from vector_sets import clusters, exact, recall

from hnsw import HNSWSimple, Index
from hnsw.simple import METRICS

vector = st.lists(st.integers(-9, 9), min_size=4, max_size=4).filter(any)
vectors = st.lists(vector, min_size=1, max_size=40)
id_lists = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True)


class Life(RuleBasedStateMachine):
    """An index beside a dictionary that says what it must hold."""

    @initialize(metric=st.sampled_from(METRICS), m=st.integers(2, 6), ef=st.integers(1, 30), seed=st.integers(0, 9))
    def create(self, metric, m, ef, seed):
        self.index = Index(4, metric, m, ef, seed=seed)
        self.live, self.deleted = {}, {}

    @rule(rows=vectors, threads=st.integers(1, 3), batch=st.sampled_from([None, 1, 5]))
    def add(self, rows, threads, batch):
        for id, row in zip(self.index.add(rows, num_threads=threads, batch_size=batch).tolist(), rows):
            assert id not in self.live and id not in self.deleted
            self.live[id] = row

    @rule(ids=id_lists, rows=st.lists(vector, min_size=12, max_size=12))
    def update(self, ids, rows):
        self.index.add(rows[: len(ids)], ids=ids)
        for id, row in zip(ids, rows):
            self.deleted.pop(id, None)
            self.live[id] = row

    @precondition(lambda self: self.live)
    @rule(draw=st.data())
    def delete(self, draw):
        ids = draw.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True))
        self.index.delete(ids)
        self.deleted |= {id: self.live.pop(id) for id in ids}

    @precondition(lambda self: self.deleted)
    @rule(draw=st.data())
    def undelete(self, draw):
        ids = draw.draw(st.lists(st.sampled_from(sorted(self.deleted)), unique=True))
        self.index.undelete(ids)
        self.live |= {id: self.deleted.pop(id) for id in ids}

    @rule()
    def compact(self):
        self.index.compact()
        self.deleted = {}

    @rule(way=st.sampled_from(["load", "mmap", "pickle"]))
    def save_and_load(self, way):
        if way == "pickle":
            self.index = pickle.loads(pickle.dumps(self.index))
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            self.index.save(path)
            self.index = Index.load(path, mmap=way == "mmap")

    @rule(query=vector, k=st.integers(1, 12), subset=st.none() | id_lists)
    def search(self, query, k, subset):
        allowed = sorted(self.live if subset is None else self.live.keys() & set(subset))
        exist = min(k, len(allowed))
        ids, distances = self.index.search(query, k, ef=500, mask=subset)
        assert (ids[0, exist:] == -1).all() and np.isinf(distances[0, exist:]).all()
        found = ids[0, :exist].tolist()
        assert len(set(found)) == exist and set(found) <= set(allowed)
        if not exist:
            return
        X, q = np.array([self.live[id] for id in allowed], np.float64), np.array(query, np.float64)
        truth = ((X - q) ** 2).sum(1) if self.index.metric == "l2" else 1 - X @ q
        if self.index.metric == "cosine":
            truth = 1 - X @ q / (np.linalg.norm(X, axis=1) * np.linalg.norm(q))
        by_id = dict(zip(allowed, truth))
        np.testing.assert_allclose(distances[0, :exist], [by_id[id] for id in found], atol=1e-4)
        exactly = self.index.search(query, k, mask=subset, exact=True)[1][0, :exist]
        np.testing.assert_allclose(exactly, np.sort(truth)[:exist], atol=1e-4)
        if subset is None and not len(self.index.unreachable()):  # ef is larger than the index: a walk sees all
            np.testing.assert_allclose(distances[0, :exist], np.sort(truth)[:exist], atol=1e-4)

    @invariant()
    def is_whole(self):
        if not hasattr(self, "index"):
            return
        self.index.check()
        assert sorted(self.index.ids.tolist()) == sorted(self.live)
        assert (len(self.index), self.index.deleted_count) == (len(self.live), len(self.deleted))
        if self.live:
            ids = sorted(self.live)
            np.testing.assert_allclose(self.index.get(ids), [self.live[id] for id in ids], rtol=1e-5, atol=1e-5)
        for id in list(self.live)[:5]:
            links = self.index.links(id)
            assert all(len(row) <= self.index.M for row in links[1:]) and len(links[0]) <= 2 * self.index.M


Life.TestCase.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestLife = Life.TestCase


# Recall floors: what these sets reach, less a little. With algorithm 3, or with the seed's level sampler, they fall.


def seeds_levels(rng, count, ml):
    """The seed's sampler: go up while random() < 1 / ml, where ml is 1 / ln 2 for every M."""
    levels = np.zeros(count, dtype=np.int64)
    climbing = np.ones(count, dtype=bool)
    while climbing.any():
        climbing &= rng.random(count) < np.log(2)
        levels += climbing
    return levels


def set_named(name):
    rng = np.random.default_rng(5)
    X = {
        "uniform": lambda: rng.random((5300, 16), dtype=np.float32),
        "clusters": lambda: clusters(5300, 16, 100, 0.3),
        "near-duplicates": lambda: clusters(5300, 16, 50, 0.001),
    }[name]()
    return X[:5000], X[5000:]


def measure(X, Q, **settings):
    """Recall@10 at ef 40, and links on upper layers per node."""
    index = Index(16, M=8, ef_construction=60, **settings)
    index.add(X)
    return recall(index.search(Q, 10, ef=40)[0], exact(X, Q, 10)), index._rows / len(X), index


FLOORS = {"uniform": 0.96, "clusters": 0.99, "near-duplicates": 0.99}
MOST_UPPER_ROWS = 0.17  # a node has 1/7 of a row on average at M 8: the sum of 8 ** -l


@pytest.mark.parametrize("name", FLOORS)
def test_recall_floor(name):
    X, Q = set_named(name)
    found, upper, index = measure(X, Q)
    assert found > FLOORS[name]
    assert len(index.unreachable()) <= 5  # 99.9 %
    assert upper < MOST_UPPER_ROWS
    if name == "uniform":
        simple = HNSWSimple(16, 8, 60, 40)
        simple.add(X[:1500])
        assert recall(np.array([[i for i, _ in simple.search(q, 10)] for q in Q]), exact(X[:1500], Q, 10)) > 0.95


def test_the_seeds_sampler_falls_through(monkeypatch):
    monkeypatch.setattr("hnsw.index.draw_levels", seeds_levels)
    assert measure(*set_named("uniform"))[1] > 10 * MOST_UPPER_ROWS
