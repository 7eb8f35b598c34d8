"""The scikit-learn style front against scikit-learn."""

import numpy as np
import pytest

from hnsw import NearestNeighbors


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("own", [True, False])
def test_as_scikit_learn(metric, own):
    sklearn = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    X, Q = rng.random((300, 6)) + 0.1, None if own else rng.random((40, 6)) + 0.1
    theirs = sklearn.NearestNeighbors(n_neighbors=4, metric=metric, algorithm="brute").fit(X).kneighbors(Q)
    ours = NearestNeighbors(4, metric, ef=300).fit(X).kneighbors(Q)
    assert (ours[1] == theirs[1]).mean() > 0.99
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)


def test_all_threads_by_scikit_learns_name():
    X = np.random.default_rng(0).random((60, 3))
    for a, b in zip(NearestNeighbors(n_jobs=-1).fit(X).kneighbors(), NearestNeighbors(n_jobs=1).fit(X).kneighbors()):
        assert np.array_equal(a, b)


def test_duplicates_parameters_and_errors():
    model = NearestNeighbors(n_neighbors=2)
    with pytest.raises(ValueError, match="call fit"):
        model.kneighbors([[0, 0]])
    assert model.set_params(M=8).get_params()["M"] == 8
    with pytest.raises(ValueError, match="no such parameters: leaf_size"):
        model.set_params(leaf_size=3)
    model.fit([[0, 0]] * 5)
    indices = model.kneighbors(return_distance=False)
    assert indices.shape == (5, 2) and (indices != np.arange(5)[:, None]).all()
    assert "index_" not in model.get_params()
    with pytest.raises(ValueError, match="n_neighbors=5 of 5 samples"):
        model.kneighbors(n_neighbors=5)
    with pytest.raises(ValueError, match="metric must be one of"):
        NearestNeighbors(metric="manhattan").fit([[0, 0]])
    with pytest.raises(ValueError, match="at least one row"):
        NearestNeighbors().fit(np.empty((0, 3)))
