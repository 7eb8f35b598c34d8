"""What the HNSW experiments share: the sets, a measurement, the seed's level sampler, tables.

Recall and the number of distances computed depend on the seed only; seconds depend on the machine and its neighbours.
Verdicts rest on the former.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hnsw.index
from hnsw import HNSWSimple, Index
from hnsw.simple import draw_levels

K = 10
COUNTED = 200  # queries whose distances are counted, in Python
FOLDER = Path(__file__).resolve().parent


def common_arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5000, help="vectors (default: 5,000)")
    parser.add_argument("--dim", type=int, default=32, help="their dimension (default: 32)")
    parser.add_argument("--queries", type=int, default=1000, help="queries (default: 1,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of vectors and levels (default: 0)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the reports (default: beside the scripts)")
    return parser


def vectors(name: str, n: int, dim: int, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Base and queries of the set "uniform" or "clusters" (n / 50 Gaussian centres)."""
    rng = np.random.default_rng(seed)
    if name == "uniform":
        data = rng.random((n + queries, dim))
    else:
        centres = rng.standard_normal((max(n // 50, 1), dim))
        data = centres[rng.integers(0, len(centres), n + queries)] + 0.5 * rng.standard_normal((n + queries, dim))
    data = data.astype(np.float32)
    return data[:n], data[n:]


def seeds_levels(rng: np.random.Generator, count: int, ml: float) -> np.ndarray:
    """The level sampler that this project started from: up while random() < 1 / ml with ml = 1 / ln 2, whatever M is."""
    levels = np.zeros(count, dtype=np.int64)
    climbing = np.ones(count, dtype=bool)
    while climbing.any():
        climbing &= rng.random(count) < np.log(2)
        levels += climbing
    return levels


SAMPLERS = {"paper": draw_levels, "seed": seeds_levels}


class Counting(HNSWSimple):
    """Counts the distances that it computes."""

    counted = 0

    def _distances(self, q, nodes):
        self.counted += len(nodes)
        return super()._distances(q, nodes)


@dataclass
class Built:
    """An index with what was measured while it was built."""

    index: Index
    readable: Counting
    build_seconds: float
    mean_level: float
    top_level: int
    share_above_0: float
    link_bytes: float  # a vector


def build(X: np.ndarray, max_m: int, ef_construction: int, seed: int, sampler: str = "paper") -> Built:
    """Build an index, one thread, with the paper's or the seed's level sampler."""
    index = Index(X.shape[1], M=max_m, ef_construction=ef_construction, seed=seed, num_threads=1)
    original = hnsw.index.draw_levels
    hnsw.index.draw_levels = SAMPLERS[sampler]
    try:
        start = time.process_time()
        index.add(X, progress=False)
        seconds = time.process_time() - start
    finally:
        hnsw.index.draw_levels = original
    readable = index.readable()
    readable.__class__ = Counting
    members = [len(nodes) for nodes in readable.graph]
    return Built(
        index,
        readable,
        seconds,
        mean_level=sum(members[1:]) / len(X),
        top_level=len(members) - 1,
        share_above_0=(members[1] if len(members) > 1 else 0) / len(X),
        link_bytes=4 * (2 * max_m + max_m * sum(members[1:]) / len(X)),
    )


@dataclass
class Point:
    """One setting of a search."""

    recall: float
    distances: float  # computed a query
    queries_per_second: float


def measure(built: Built, Q: np.ndarray, truth: np.ndarray, ef: int, rounds: int = 5) -> Point:
    """Recall@10 over all queries, distances a query over the first 200, and the median speed of `rounds`."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        ids, _ = built.index.search(Q, K, ef, num_threads=1)
        seconds.append(time.process_time() - start)
    built.readable.counted = 0
    for q in Q[:COUNTED]:
        built.readable.search(q, K, ef)
    hits = sum(len(set(f) & set(t)) for f, t in zip(ids.tolist(), truth.tolist()))
    return Point(
        recall=hits / truth.size,
        distances=built.readable.counted / min(COUNTED, len(Q)),
        queries_per_second=len(Q) / max(statistics.median(seconds), 1e-9),
    )


def distances_at(points: Sequence[Point], recall: float) -> float | None:
    """Distances a query at a recall, interpolated between the settings around it; None where none reaches it."""
    if points[0].recall >= recall:
        return points[0].distances
    for a, b in zip(points, points[1:]):
        if a.recall < recall <= b.recall:
            return a.distances + (recall - a.recall) / (b.recall - a.recall) * (b.distances - a.distances)
    return None


def truth_of(X: np.ndarray, Q: np.ndarray) -> np.ndarray:
    exact = Index(X.shape[1], M=2, ef_construction=1)
    exact.add(X, progress=False)
    return exact.search(Q, K, exact=True)[0]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], markdown: bool = False) -> str:
    """Rows under a head, aligned, or as a Markdown table."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in cells)


def provenance(options: argparse.Namespace, command: str) -> str:
    import numba

    return (
        f"Written by `{command}`: {options.n} vectors of dimension {options.dim}, {options.queries} queries, "
        f"recall@{K} against brute force, seed {options.seed}. Speeds: one thread, CPU time, {platform.machine()}, "
        f"Python {platform.python_version()}, numba {numba.__version__}."
    )


class Log:
    """Prints lines and keeps them for a log file."""

    def __init__(self, show: Callable[[str], None] = print):
        self.lines: list[str] = []
        self.show = show

    def __call__(self, line: str = "") -> None:
        self.lines.append(line)
        self.show(line)

    def save(self, path: Path) -> None:
        path.write_text("\n".join(self.lines) + "\n")
