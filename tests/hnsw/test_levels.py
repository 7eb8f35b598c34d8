"""Where the levels' random numbers come from: not from the stream that a caller draws vectors from."""

import numpy as np
import pytest

from hnsw import HNSWSimple, Index, NearestNeighbors, compat


def levels_of_simple(X, seed):
    index = HNSWSimple(X.shape[1], 5, 10, seed=seed)
    index.add(X, batch_size=None)
    return [index.level(node) for node in range(len(X))]


def levels_of_index(X, seed):
    index = Index(X.shape[1], M=5, ef_construction=10, seed=seed)
    index.add(X)
    return [len(index.links(id)) - 1 for id in range(len(X))]


def levels_of_compat(X, seed):
    index = compat.Index("l2", X.shape[1])
    index.init_index(len(X), M=5, ef_construction=10, random_seed=seed)
    index.add_items(X)
    return [len(index._index.links(id)) - 1 for id in range(len(X))]


def levels_of_neighbors(X, seed):
    index = NearestNeighbors(M=5, ef_construction=10, random_state=seed).fit(X).index_
    return [len(index.links(id)) - 1 for id in range(len(X))]


EVERY_FRONT = [levels_of_simple, levels_of_index, levels_of_compat, levels_of_neighbors]


@pytest.mark.parametrize("seed", [0, 1, 100])
@pytest.mark.parametrize("levels_of", EVERY_FRONT)
def test_a_nodes_level_says_nothing_of_its_place(levels_of, seed):
    X = np.random.default_rng(seed).random((1000, 1))
    upper = X[np.array(levels_of(X, seed)) > 0]  # 200 of them; of one stream, they are those with X > 0.8
    assert abs(upper.mean() - 0.5) < 0.1


def test_every_front_draws_the_same_levels():
    X = np.random.default_rng(3).random((300, 2))
    one, *others = [levels_of(X, 7) for levels_of in EVERY_FRONT]
    assert all(levels == one for levels in others)


def test_one_seed_for_data_and_index_costs_no_more_than_two():
    X = np.random.default_rng(0).integers(0, 1000, (8000, 2)).astype(np.float32)

    def distances(seed):
        index = Index(2, M=5, ef_construction=40, seed=seed)
        index.add(X)
        readable, trace = index.readable(), []
        for q in X[:100] + 0.25:
            readable.search(q, 5, ef=20, trace=trace)
        return sum(len(step.seen) for step in trace)

    assert distances(0) < 1.15 * min(distances(1), distances(2))  # of one stream: 2.6 times as many
