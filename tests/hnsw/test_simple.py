"""The readable HNSW against brute force and against the paper's own statements."""

import math

import numpy as np
import pytest
from vector_sets import clusters, exact, grid, recall

from hnsw import HNSWSimple
from hnsw.simple import draw_levels


def build(X, **settings):
    index = HNSWSimple(X.shape[1], **settings)
    index.add(X)
    return index


@pytest.mark.parametrize("m", [2, 5, 8, 16])
def test_levels_follow_the_papers_distribution(m):
    levels = draw_levels(np.random.default_rng(0), 200_000, 1 / math.log(m))
    for level in (1, 2, 3):
        expected = m**-level
        tolerance = 5 * math.sqrt(expected / len(levels))
        assert abs((levels >= level).mean() - expected) < tolerance


def test_levels_of_the_index_follow_it_too():
    index = build(np.random.default_rng(0).random((1500, 4)), max_m=5, ef_construction=10)
    share = len(index.graph[1]) / len(index)
    assert 0.15 < share < 0.25  # 1/5; the seed's sampler gives 0.69


def test_every_node_of_a_layer_is_on_all_layers_below_and_links_stay_on_their_layer():
    index = build(grid(400, 6, "l2"), max_m=4, ef_construction=30)
    for below, above in zip(index.graph, index.graph[1:]):
        assert set(above) <= set(below)
    for layer, nodes in enumerate(index.graph):
        for node, links in nodes.items():
            assert node not in links and len(set(links)) == len(links)
            assert set(links) <= set(nodes)
            assert len(links) <= (8 if layer == 0 else 4)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_search_with_ef_of_everything_is_brute_force(metric):
    X = grid(150, 8, metric)
    index = build(X, max_m=8, ef_construction=150, metric=metric)
    for q, truth in zip(X[:20], exact(X, X[:20], 7, metric)):
        found = index.search(q, 7, ef=150)
        assert [node for node, _ in found] == truth.tolist()
        assert [d for _, d in found] == sorted(d for _, d in found)


def test_recall_grows_with_ef(uniform):
    X, Q, truth = uniform
    index = build(X[:1000], max_m=8, ef_construction=60)
    truth = exact(X[:1000], Q[:100], 10)
    by_ef = [
        recall(np.array([[i for i, _ in index.search(q, 10, ef)] for q in Q[:100]]), truth) for ef in (10, 40, 160)
    ]
    assert by_ef == sorted(by_ef)
    assert by_ef[1] > 0.93 and by_ef[2] > 0.99


def test_algorithm_3_takes_the_nearest_and_algorithm_4_those_that_point_elsewhere():
    # q at the origin; b lies behind a, c on the other side.
    index = HNSWSimple(2)
    index._store(np.array([[1, 0], [1.5, 0], [-2, 0]], dtype=np.float32))
    candidates = [(1.0, 0), (2.25, 1), (4.0, 2)]
    assert index.select_neighbors_simple(candidates, 2) == [0, 1]
    assert index.select_neighbors_heuristic(candidates, 2, keep_pruned=False) == [0, 2]
    assert index.select_neighbors_heuristic(candidates, 3, keep_pruned=True) == [0, 2, 1]


def test_the_heuristic_keeps_clusters_connected():
    X = clusters(1500, 8, 60, 0.001)
    truth = exact(X, X[:80], 5)
    share = {}
    for heuristic in (True, False):
        index = build(X, max_m=4, ef_construction=30, heuristic=heuristic)
        share[heuristic] = recall(np.array([[i for i, _ in index.search(q, 5, 20)] for q in X[:80]]), truth)
    assert share[True] > 0.9 > share[False] + 0.2


def test_ef_construction_and_ef_search_are_apart(uniform):
    X, Q, _ = uniform
    truth = exact(X[:800], Q[:60], 10)

    def found(construction, search):
        index = build(X[:800], max_m=6, ef_construction=construction, ef_search=search)
        return recall(np.array([[i for i, _ in index.search(q, 10)] for q in Q[:60]]), truth)

    base = found(10, 10)
    assert found(80, 10) > base + 0.02
    assert found(10, 80) > base + 0.02


def test_trace_tells_the_walk():
    X = grid(300, 4, "l2")
    index = build(X, max_m=4, ef_construction=30)
    trace = []
    found = index.search(X[7] + 1, 3, ef=8, trace=trace)
    layers = [step.layer for step in trace]
    assert layers == sorted(layers, reverse=True) and layers[0] == len(index.graph) - 1 and layers[-1] == 0
    assert trace[0].node == index.entry_point
    for step in trace:
        assert step.node in index.graph[step.layer]
        assert set(step.seen) <= set(index.graph[step.layer][step.node])
        assert step.distance == pytest.approx(float(((X[step.node] - X[7] - 1) ** 2).sum()))
        assert step.results == sorted(step.results)
    assert [(e, d) for d, e in trace[-1].results[:3]] == found
    assert index.search(X[7] + 1, 3, ef=8) == found


def test_a_batch_of_one_is_the_paper():
    X = grid(200, 5, "l2")
    one, batch = HNSWSimple(5, 4, 20), HNSWSimple(5, 4, 20)
    one.add(X)
    for start in range(0, 200, 50):
        batch.add(X[start : start + 50], batch_size=1)
    assert one.graph == batch.graph and one.entry_point == batch.entry_point


def test_few_vectors():
    index = HNSWSimple(3)
    assert index.search([0, 0, 0], 5) == []
    index.add([1, 2, 3])
    assert index.search([0, 0, 0], 5) == [(0, 14.0)]
    index.add(np.empty((0, 3)))
    assert len(index) == 1 and index.level(0) >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"max_m": 1}, "max_m"),
        ({"ef_construction": 0}, "ef_construction"),
        ({"ef_search": 0}, "ef_search"),
        ({"metric": "L2"}, "metric must be one of l2, ip, cosine"),
        ({"ml": math.inf}, "ml"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HNSWSimple(**{"dim": 4, **arguments})


def test_bad_vectors_are_named():
    index = HNSWSimple(2, metric="cosine")
    for vectors, message in (
        ([[1, 2, 3]], "shape"),
        ([[1, math.nan]], "row 0 has NaN"),
        ([[1, 1], [0, 0]], "row 1 is zero"),
        ([[1e30, 0]], "too large"),
    ):
        with pytest.raises(ValueError, match=message):
            index.add(vectors)
    with pytest.raises(TypeError, match="numbers"):
        index.add([["a", "b"]])
    assert len(index) == 0
    index.add([1, 1])
    with pytest.raises(ValueError, match="one vector"):
        index.search([[1, 1], [1, 2]])
    with pytest.raises(ValueError, match="k must"):
        index.search([1, 1], 0)
