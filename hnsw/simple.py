"""HNSW as the paper writes it: Malkov and Yashunin, arXiv 1603.09320, algorithms 1 to 5.

Read this file beside the paper; `core.py` is the same algorithm, compiled. A pair (distance, node) stands for a node
seen from a query, so that Python's own order on tuples is "nearest first, ties by the smaller id".
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

METRICS = ("l2", "ip", "cosine")
BLOCK = 4096  # rows that are checked, and levels that are drawn, at a time
LEVELS = 1603_09320  # names the levels' stream of random numbers: any number but 0, which would name default_rng(seed)


def level_generator(seed: int) -> np.random.Generator:
    """The random numbers of an index's levels: a stream of their own, apart from `default_rng(seed)`.

    Callers draw their vectors from that one, often with the same seed. Shared, it would tie a node's level to its place:
    the upper layers would lie at one edge of the data, and a search would start far from most of what it looks for.
    """
    return np.random.default_rng([seed, LEVELS])


def draw_levels(rng: np.random.Generator, count: int, ml: float) -> np.ndarray:
    """Levels of `count` new nodes, int8: floor(-ln(U) * ml) with U uniform in (0, 1] (paper, section 4).

    P(level >= l) = exp(-l / ml), which is M ** -l for the paper's ml = 1 / ln(M).
    """
    levels = np.empty(count, dtype=np.int8)
    for start in range(0, count, BLOCK):  # in blocks, so that a large build leaves no large temporary arrays behind
        uniform = 1.0 - rng.random(min(BLOCK, count - start))
        levels[start : start + BLOCK] = np.minimum(np.floor(-np.log(uniform) * ml), 100)
    return levels


def default_batch(nodes: int) -> int:
    """How many points `Index` inserts at once into a graph of `nodes` nodes: 1/64 of it, 1 to 256."""
    return min(max(nodes // 64, 1), 256)


LARGEST_SQUARE = 8e37  # of a vector's length: beyond it, squared distances may overflow float32


def as_float32(vectors: np.ndarray, name: str) -> np.ndarray:
    """`vectors` as a float32 array; TypeError if they are not real numbers in rows of equal length."""
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        raise TypeError(f"{name} must be numbers in rows of equal length: {error}") from None
    if array.dtype.kind not in "fiub" and array.size:
        raise TypeError(f"{name} must be numbers in rows of equal length, not {array.dtype}")
    with np.errstate(over="ignore"):  # infinite then, and refused with its row
        return array.astype(np.float32, copy=False)


def check_vectors(vectors: np.ndarray, dim: int, name: str = "vectors") -> np.ndarray:
    """`vectors`, (n, dim) or (dim,), as float32 (n, dim).

    TypeError if they are not numbers, ValueError for another shape, NaN, infinite and far too large values.
    """
    array = as_float32(vectors, name)
    if array.ndim == 1:
        array = array[None, :] if array.size else array.reshape(0, dim)
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"{name} must have shape (n, {dim}) or ({dim},), not {np.shape(vectors)}")
    for start in range(0, len(array), BLOCK):
        rows = array[start : start + BLOCK]
        usable = np.einsum("ij,ij->i", rows, rows, dtype=np.float64) <= LARGEST_SQUARE  # False for NaN, too
        if not usable.all():
            bad = start + int(np.flatnonzero(~usable)[0])
            raise ValueError(f"{name}: row {bad} has NaN, infinite or too large values (float32)")
    return np.ascontiguousarray(array)


def unit_length(vectors: np.ndarray, name: str = "vectors") -> tuple[np.ndarray, np.ndarray]:
    """Float32 `vectors` (n, dim) at length 1, and their lengths, float32 (n,). ValueError if one is zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if (lengths == 0).any():
        raise ValueError(f"{name}: row {int(np.flatnonzero(lengths == 0)[0])} is zero and has no direction (cosine)")
    return (vectors / lengths[:, None]).astype(np.float32), lengths.astype(np.float32)


def check_integer(name: str, value: int, least: int) -> int:
    """`value` as int; TypeError if it is not an integer, ValueError below `least`."""
    if type(value) is int and value >= least:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return int(value)


def check_metric(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    return metric


@dataclass
class Step:
    """One turn of algorithm 2: node `node` was expanded on `layer`.

    `seen` are its neighbours that were met for the first time; `candidates` (still to expand) and `results` (the best
    so far) are (distance, node) pairs, nearest first, after the turn.
    """

    layer: int
    node: int
    distance: float
    seen: list[int]
    candidates: list[tuple[float, int]] = field(repr=False)
    results: list[tuple[float, int]] = field(repr=False)


class HNSWSimple:
    """A navigable small world graph in layers, in Python and NumPy.

    Args:
        dim: length of the vectors.
        max_m: M, the number of links that a new node makes on each layer; a node keeps at most M links on the upper
            layers and 2 M on layer 0.
        ef_construction: how many candidates an insertion looks at on each layer.
        ef_search: how many candidates a search keeps on layer 0; raised to k where k is larger.
        ml: mL, the scale of the level distribution; None is the paper's 1 / ln(M).
        metric: "l2" (squared distance), "ip" (1 - dot product) or "cosine" (1 - cosine).
        heuristic: choose neighbours by algorithm 4; False is algorithm 3, the plain nearest.
        keep_pruned: algorithm 4's keepPrunedConnections, for the links that a new node makes. A full node that
            shrinks keeps only diverse links: what it drops makes room, so that it seldom shrinks.
        seed: seed of the level sampler.
        ef_upper: candidates on layers 2 and up, on the way down; the paper's is 1, `Index` takes 4.
    """

    def __init__(
        self,
        dim: int,
        max_m: int = 5,
        ef_construction: int = 100,
        ef_search: int = 50,
        ml: float | None = None,
        metric: str = "l2",
        heuristic: bool = True,
        keep_pruned: bool = True,
        seed: int = 0,
        ef_upper: int = 1,
    ):
        if ml is not None and not (math.isfinite(ml) and ml >= 0):
            raise ValueError(f"ml must be a finite number, 0 or more, not {ml!r}")
        self.dim = check_integer("dim", dim, 1)
        self.max_m = check_integer("max_m", max_m, 2)
        self.ef_construction = check_integer("ef_construction", ef_construction, 1)
        self.ef_search = check_integer("ef_search", ef_search, 1)
        self.ef_upper = check_integer("ef_upper", ef_upper, 1)
        self.ml = 1.0 / math.log(max_m) if ml is None else ml
        self.metric = check_metric(metric)
        self.heuristic = heuristic
        self.keep_pruned = keep_pruned
        self.graph: list[dict[int, list[int]]] = []  # graph[layer][node] = its links there
        self.entry_point: int | None = None
        self._vectors = np.empty((16, dim), dtype=np.float32)
        self._count = 0
        self._rng = level_generator(check_integer("seed", seed, 0))

    def __len__(self) -> int:
        return self._count

    @property
    def vectors(self) -> np.ndarray:
        """The stored vectors, float32 (n, dim); of length 1 under the cosine metric."""
        return self._vectors[: self._count]

    def level(self, node: int) -> int:
        """The highest layer that has `node`."""
        return max(layer for layer in range(len(self.graph)) if node in self.graph[layer])

    def add(self, vectors: np.ndarray, batch_size: int | None = 1) -> None:
        """Insert `vectors` (n, dim) or (dim,); the ids are 0, 1, 2 ... in the order of insertion.

        `batch_size=1` is the paper; None takes the batches of `default_batch`, as `Index.add` does by default.
        """
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        vectors = self._prepare(vectors, "vectors")
        levels = draw_levels(self._rng, len(vectors), self.ml).tolist()
        first = self._store(vectors)
        if batch_size == 1:
            for node, level in enumerate(levels, first):
                self.insert(node, level)
            return
        start = 0
        while start < len(levels):
            batch = levels[start : start + (batch_size or default_batch(first + start))]
            # A node that opens a new top layer goes alone: those after it must find it.
            opens = next((i for i, level in enumerate(batch) if level >= len(self.graph)), len(batch))
            if opens == 0:
                self.insert(first + start, batch[0])
            else:
                self.insert_batch(first + start, batch[:opens])
            start += max(opens, 1)

    # Algorithm 1: INSERT(hnsw, q, M, Mmax, efConstruction, mL)
    def insert(self, q: int, level: int) -> None:
        """Link node `q`, whose vector is stored already, into layers `level` to 0."""
        vector = self._vectors[q]
        top = len(self.graph) - 1
        nearest = self._descend(vector, level)
        for _ in range(top + 1, level + 1):
            self.graph.append({})
            self.entry_point = q
        for layer in range(level, -1, -1):
            if layer <= top:
                nearest = self.search_layer(vector, nearest, self.ef_construction, layer)
                neighbours = self._select(nearest, self.max_m, self.keep_pruned)
            else:
                neighbours = []
            self.graph[layer][q] = neighbours
            for e in neighbours:
                self._link_back(e, q, layer)

    def _descend(self, q: np.ndarray, level: int, trace: list[Step] | None = None) -> list[tuple[float, int]]:
        """How algorithms 1 and 5 begin: from the entry point down to just above `level`, to the nearest node there."""
        if self.entry_point is None:
            return []
        nearest = [(self._distance(q, self.entry_point), self.entry_point)]
        for layer in range(len(self.graph) - 1, level, -1):
            ef = self.ef_upper if layer > 1 else 1
            nearest = self.search_layer(q, nearest[:ef], ef, layer, trace)
        return nearest[:1]

    def _link_back(self, e: int, q: int, layer: int) -> None:
        """The end of algorithm 1: e links to the new node q, and drops links if it has too many."""
        links = self.graph[layer][e]
        links.append(q)
        most = 2 * self.max_m if layer == 0 else self.max_m
        if len(links) > most:
            self.graph[layer][e] = self._select(self._seen_from(self._vectors[e], links), most, keep_pruned=False)

    # Algorithm 2: SEARCH-LAYER(q, ep, ef, lc)
    def search_layer(
        self,
        q: np.ndarray,
        entry_points: list[tuple[float, int]],
        ef: int,
        layer: int,
        trace: list[Step] | None = None,
    ) -> list[tuple[float, int]]:
        """The `ef` nearest nodes of `layer` that a walk from `entry_points` finds, nearest first."""
        links = self.graph[layer]
        visited = {e for _, e in entry_points}
        candidates = list(entry_points)  # a heap: the nearest on top
        results = [(-d, -e) for d, e in entry_points]  # a heap: the farthest on top
        heapq.heapify(candidates)
        heapq.heapify(results)
        while candidates:
            distance, c = heapq.heappop(candidates)
            if (-distance, -c) < results[0]:
                break  # c is farther than everything in results: they are all expanded
            unseen = [e for e in links[c] if e not in visited]
            visited.update(unseen)
            for d, e in zip(self._distances(q, unseen), unseen):
                if len(results) < ef:
                    heapq.heappush(candidates, (d, e))
                    heapq.heappush(results, (-d, -e))
                elif (-d, -e) > results[0]:
                    heapq.heappush(candidates, (d, e))
                    heapq.heapreplace(results, (-d, -e))
            if trace is not None:
                best = sorted((-d, -e) for d, e in results)
                trace.append(Step(layer, c, distance, unseen, sorted(candidates), best))
        return sorted((-d, -e) for d, e in results)

    # Algorithm 3: SELECT-NEIGHBORS-SIMPLE(q, C, M)
    @staticmethod
    def select_neighbors_simple(candidates: list[tuple[float, int]], m: int) -> list[int]:
        """The `m` nearest of `candidates`."""
        return [e for _, e in heapq.nsmallest(m, candidates)]

    # Algorithm 4: SELECT-NEIGHBORS-HEURISTIC(q, C, M, lc, extendCandidates, keepPrunedConnections)
    def select_neighbors_heuristic(self, candidates: list[tuple[float, int]], m: int, keep_pruned: bool) -> list[int]:
        """Up to `m` of `candidates`, each nearer to q than to any chosen before it, so that they point different ways.

        `candidates` hold their distances to q. With `keep_pruned`, the nearest of the discarded ones fill the list.
        extendCandidates (for extremely clustered data, says the paper) is left out, as everywhere in the field.
        """
        chosen: list[int] = []
        discarded: list[int] = []
        for distance, e in sorted(candidates):
            if len(chosen) == m:
                break
            if any(d < distance for d in self._distances(self._vectors[e], chosen)):
                discarded.append(e)
            else:
                chosen.append(e)
        if keep_pruned:
            chosen += discarded[: m - len(chosen)]
        return chosen

    # Algorithm 5: K-NN-SEARCH(hnsw, q, K, ef)
    def search(
        self, query: np.ndarray, k: int = 5, ef: int | None = None, trace: list[Step] | None = None
    ) -> list[tuple[int, float]]:
        """The `k` nearest nodes of one query (dim,), nearest first, as (id, distance); all of them if fewer exist.

        `ef` replaces `ef_search` for this call. `trace`, a list, receives a `Step` for every node that is expanded.
        """
        check_integer("k", k, 1)
        ef = self.ef_search if ef is None else check_integer("ef", ef, 1)
        query = self._prepare(query, "query")
        if len(query) != 1:
            raise ValueError(f"query must be one vector of length {self.dim}, not {len(query)}")
        if self.entry_point is None:
            return []
        nearest = self._descend(query[0], 0, trace)
        nearest = self.search_layer(query[0], nearest, max(ef, k), 0, trace)
        return [(e, d) for d, e in nearest[:k]]

    def insert_batch(self, first: int, levels: list[int]) -> None:
        """Insert nodes `first`, `first` + 1 ..., none above the top layer: all search the graph as it was, then all are linked.

        Not in the paper. The searches are independent, so `Index` spreads them over threads, and the graph does not
        depend on how many. Nodes of the batch see each other by comparing each with those before it.
        """
        found = [self._find_neighbours(first, i, levels) for i in range(len(levels))]
        for q, choices in enumerate(found, first):
            for layer, neighbours in enumerate(choices):
                self.graph[layer][q] = list(neighbours)
        for q, choices in enumerate(found, first):
            for layer, neighbours in enumerate(choices):
                for e in neighbours:
                    self._link_back(e, q, layer)

    def _find_neighbours(self, first: int, i: int, levels: list[int]) -> list[list[int]]:
        """What node `first` + i would link to, per layer from 0 up, had the batch before it no links yet."""
        vector = self._vectors[first + i]
        choices: list[list[int]] = [[] for _ in range(levels[i] + 1)]
        nearest = self._descend(vector, levels[i])
        for layer in range(levels[i], -1, -1):
            nearest = self.search_layer(vector, nearest, self.ef_construction, layer)
            batch = [first + j for j in range(i) if levels[j] >= layer]
            both = heapq.nsmallest(self.ef_construction, nearest + self._seen_from(vector, batch))
            choices[layer] = self._select(both, self.max_m, self.keep_pruned)
        return choices

    def _select(self, candidates: list[tuple[float, int]], m: int, keep_pruned: bool) -> list[int]:
        if self.heuristic:
            return self.select_neighbors_heuristic(candidates, m, keep_pruned)
        return self.select_neighbors_simple(candidates, m)

    def _prepare(self, vectors: np.ndarray, name: str) -> np.ndarray:
        vectors = check_vectors(vectors, self.dim, name)
        return unit_length(vectors, name)[0] if self.metric == "cosine" else vectors

    def _store(self, vectors: np.ndarray) -> int:
        """Append `vectors`, return the id of the first."""
        first, need = self._count, self._count + len(vectors)
        if need > len(self._vectors):
            grown = np.empty((max(need, 2 * len(self._vectors)), self.dim), dtype=np.float32)
            grown[:first] = self._vectors[:first]
            self._vectors = grown
        self._vectors[first:need] = vectors
        self._count = need
        return first

    def _seen_from(self, q: np.ndarray, nodes: list[int]) -> list[tuple[float, int]]:
        return list(zip(self._distances(q, nodes), nodes))

    def _distance(self, q: np.ndarray, node: int) -> float:
        return self._distances(q, [node])[0]

    def _distances(self, q: np.ndarray, nodes: Iterable[int]) -> list[float]:
        """Distances from the vector q to `nodes`, computed in float32."""
        if not nodes:
            return []
        rows = self._vectors.take(nodes, axis=0)
        if self.metric == "l2":
            rows -= q
            return np.einsum("ij,ij->i", rows, rows).tolist()
        return (np.float32(1.0) - rows @ q).tolist()
