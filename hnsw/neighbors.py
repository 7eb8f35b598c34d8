"""A scikit-learn style front: `fit`, then `kneighbors`. Needs no scikit-learn."""

from __future__ import annotations

import numpy as np

from .index import Index

METRIC_NAMES = {"euclidean": "l2", "sqeuclidean": "l2", "cosine": "cosine"}


class NearestNeighbors:
    """Approximate stand-in for sklearn.neighbors.NearestNeighbors.

    Args:
        n_neighbors: neighbours of each query.
        metric: "euclidean", "sqeuclidean" or "cosine", with scikit-learn's distances.
        M, ef_construction, random_state: as `Index`'s M, ef_construction and seed.
        ef: candidates of a search, raised to the number of neighbours.
        n_jobs: threads; None and -1 are all that the process may run on.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        metric: str = "euclidean",
        *,
        M: int = 16,
        ef_construction: int = 200,
        ef: int = 100,
        random_state: int = 0,
        n_jobs: int | None = None,
    ):
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.M = M
        self.ef_construction = ef_construction
        self.ef = ef
        self.random_state = random_state
        self.n_jobs = n_jobs

    def get_params(self, deep: bool = True) -> dict:
        return {name: value for name, value in vars(self).items() if not name.endswith("_")}

    def set_params(self, **params) -> NearestNeighbors:
        unknown = params.keys() - self.get_params().keys()
        if unknown:
            raise ValueError(f"no such parameters: {', '.join(sorted(unknown))}")
        vars(self).update(params)
        return self

    def fit(self, X: np.ndarray, y: object = None) -> NearestNeighbors:
        """Index the rows of X (n, d); y is ignored."""
        if self.metric not in METRIC_NAMES:
            raise ValueError(f"metric must be one of {', '.join(METRIC_NAMES)}, not {self.metric!r}")
        X = np.asarray(X)
        if X.ndim != 2 or not X.size:
            raise ValueError(f"X must have shape (n, d) and at least one row, not {X.shape}")
        metric = METRIC_NAMES[self.metric]
        threads = None if self.n_jobs == -1 else self.n_jobs
        index = Index(X.shape[1], metric, self.M, self.ef_construction, self.random_state, num_threads=threads)
        index.add(X)
        self.index_, self.n_features_in_, self.n_samples_fit_ = index, X.shape[1], len(X)
        return self

    def kneighbors(
        self, X: np.ndarray | None = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """(distances, indices), each (n, n_neighbors); for X = None, of the fitted rows without themselves."""
        if not hasattr(self, "index_"):
            raise ValueError("call fit before kneighbors")
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        own = X is None
        if k + own > self.n_samples_fit_:
            raise ValueError(f"n_neighbors={k} of {self.n_samples_fit_} samples, the query {'not ' * own}counted")
        queries = self.index_.get(np.arange(self.n_samples_fit_)) if own else X
        indices, distances = self.index_.search(queries, k + own, max(self.ef, k + own))
        if own:  # drop the row itself, or the last of its duplicates
            drop = indices == np.arange(len(indices))[:, None]
            drop[~drop.any(axis=1), -1] = True
            indices, distances = (a[~drop].reshape(len(a), k) for a in (indices, distances))
        if self.metric == "euclidean":
            distances = np.sqrt(distances)
        return (distances, indices) if return_distance else indices
