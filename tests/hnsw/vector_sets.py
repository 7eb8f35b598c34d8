"""Data sets and helpers of the index's tests."""

import numpy as np


def exact(X, Q, k, metric="l2"):
    """Indices of the k nearest rows of X by float64 brute force, ties by the smaller row."""
    X, Q = X.astype(np.float64), Q.astype(np.float64)
    if metric == "l2":
        distances = ((Q[:, None] - X[None]) ** 2).sum(-1)
    else:
        if metric == "cosine":
            X, Q = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (X, Q))
        distances = 1 - Q @ X.T
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def recall(found, truth):
    """The mean share of each row of `truth` that the same row of `found` has."""
    return float(np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found.tolist(), truth.tolist())]))


def grid(n, dim, metric, seed=0):
    """Vectors whose distances float32 computes exactly, in whatever order it adds: small integers; for cosine, points
    of {-1, 1}^16, whose length is 4."""
    rng = np.random.default_rng(seed)
    if metric == "cosine":
        return rng.choice([-1.0, 1.0], (n, 16)).astype(np.float32)
    return rng.integers(-50, 50, (n, dim)).astype(np.float32)


def clusters(n, dim, centres, spread, seed=0):
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((centres, dim))
    return (centre[rng.integers(0, centres, n)] + spread * rng.standard_normal((n, dim))).astype(np.float32)
