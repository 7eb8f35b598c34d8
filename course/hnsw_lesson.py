"""What notebook 08 uses: a map to walk on, graphs with and without layers, peers, and the checkers of its exercises.

All coordinates are whole numbers, small enough that float32 computes every squared distance exactly. So each machine
builds the same graphs and takes the same walks, and the notebook can compare the counts.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from course import recorded
from course.exercises import Wrong, checker, expect_equal
from hnsw import HNSWSimple

Links = Sequence[Sequence[int]]
"""For each node the nodes that it links to."""

MAP = 1000  # the map's side
SEEDS_ML = -1 / math.log(math.log(2))
"""The mL with which exp(-l / mL) is ln(2) ** l: the levels of "go up while random() < ln 2"."""


# --- points ----------------------------------------------------------------------------------------------------------


def houses(count: int, seed: int = 11) -> np.ndarray:
    """Distinct places on the map, float32 (count, 2): three of four in villages of about 30 houses, the others anywhere."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(80, MAP - 80, (max(count // 40, 4), 2))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        if rng.random() < 0.75:
            place = centres[rng.integers(len(centres))] + np.rint(18 * rng.standard_normal(2)).astype(int)
        else:
            place = rng.integers(0, MAP, 2)
        if place.min() >= 0 and place.max() < MAP:
            found[tuple(place.tolist())] = None
    return np.array(list(found), dtype=np.float32)


def places(count: int, seed: int = 12) -> np.ndarray:
    """Places anywhere on the map to search from, float32 (count, 2)."""
    return np.random.default_rng(seed).integers(0, MAP, (count, 2)).astype(np.float32)


def uniform(count: int, dim: int, queries: int, seed: int = 13) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and queries with whole numbers from 0 to 255, in no order at all."""
    data = np.random.default_rng(seed).integers(0, 256, (count + queries, dim)).astype(np.float32)
    return data[:count], data[count:]


def near_copies(count: int, dim: int, groups: int, queries: int, seed: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and queries that are nearly equal to one of `groups` originals: each number is off by 3 or so."""
    rng = np.random.default_rng(seed)
    originals = rng.integers(20, 236, (groups, dim))
    member = rng.integers(0, groups, count + queries)
    data = originals[member] + np.rint(3 * rng.standard_normal((count + queries, dim)))
    return data[:count].astype(np.float32), data[count:].astype(np.float32)


def brute_force(X: np.ndarray, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and squared distances, each (queries, k), of the nearest rows of X; equal distances by id."""
    squares = (X.astype(np.float64) ** 2).sum(axis=1)
    distances = (
        squares - 2 * Q.astype(np.float64) @ X.T.astype(np.float64) + (Q.astype(np.float64) ** 2).sum(1)[:, None]
    )
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


def recall(found: np.ndarray, true_distances: np.ndarray) -> float:
    """The share of the distances found, (queries, k), that belong among the k smallest: equally near counts as found."""
    return float((np.asarray(found) <= true_distances[:, -1:]).mean())


# --- graphs and walks -------------------------------------------------------------------------------------------------


class Walk(NamedTuple):
    """A greedy walk: the nodes that it went through, and how many distances it computed."""

    path: list[int]
    looked: int


def greedy_walk(links: Links, X: np.ndarray, query: np.ndarray, start: int) -> Walk:
    """From `start` to the nearest neighbour, again and again, until no neighbour is nearer to `query`."""

    def distance(node: int) -> float:
        return float(((X[node] - query) ** 2).sum())

    path, known = [start], {start: distance(start)}
    while True:
        known |= {node: distance(node) for node in links[path[-1]] if node not in known}
        best = min((known[node], node) for node in (path[-1], *links[path[-1]]))
        if best[0] >= known[path[-1]]:
            return Walk(path, len(known))
        path.append(best[1])


def nearest_links(X: np.ndarray, k: int) -> list[list[int]]:
    """Each node linked to its `k` nearest others."""
    ids, _ = brute_force(X, X, k + 1)
    return [[other for other in row if other != node][:k] for node, row in enumerate(ids.tolist())]


def both_ways(links: Links) -> list[list[int]]:
    """The same links, and each of them backwards."""
    made = [dict.fromkeys(row) for row in links]
    for node, row in enumerate(links):
        for other in row:
            made[other][node] = None
    return [list(row) for row in made]


def with_long_links(links: Links, each: int, seed: int = 0) -> list[list[int]]:
    """The same links, and for each node `each` more to nodes drawn at random."""
    drawn = np.random.default_rng(seed).integers(0, len(links), (len(links), each)).tolist()
    return [[*row, *extra] for row, extra in zip(links, drawn)]


def reachable(links: Any, start: int) -> int:
    """How many nodes links lead to from `start`, itself included."""
    seen, todo = {start}, [start]
    while todo:
        new = set(links[todo.pop()]) - seen
        seen |= new
        todo += new
    return len(seen)


class Counting(HNSWSimple):
    """`HNSWSimple` that counts the distances that it computes, in `counted`."""

    counted = 0

    def _distances(self, q: np.ndarray, nodes: Iterable[int]) -> list[float]:
        found = super()._distances(q, nodes)
        self.counted += len(found)
        return found


class Effort(NamedTuple):
    """What the searches for some queries found and cost: recall, and distances computed for a query on average."""

    recall: float
    distances: float


def effort(index: HNSWSimple, Q: np.ndarray, true_distances: np.ndarray, ef: int) -> Effort:
    """Search for the k of `true_distances` (queries, k) with `ef` candidates and count."""
    counting = counted(index)
    k = true_distances.shape[1]
    found = [[distance for _, distance in counting.search(query, k, ef)] for query in Q]
    full = [row + [math.inf] * (k - len(row)) for row in found]
    return Effort(recall(np.array(full), true_distances), counting.counted / len(Q))


def counted(index: HNSWSimple) -> Counting:
    """The same index, sharing its graph, with a counter at 0."""
    counting = Counting.__new__(Counting)
    counting.__dict__ |= index.__dict__ | {"counted": 0}
    return counting


def without_layers(index: HNSWSimple) -> HNSWSimple:
    """The same index with layer 0 alone, sharing its links and its entry point."""
    made = copy.copy(index)
    made.graph = index.graph[:1]
    return made


def build(X: np.ndarray, **settings: Any) -> HNSWSimple:
    """An `HNSWSimple` with the rows of X."""
    index = HNSWSimple(X.shape[1], **settings)
    index.add(X)
    return index


def broken_links(graph: list[dict[int, list[int]]]) -> int:
    """Links on any layer to nodes that this layer does not have: 0 in a sound graph."""
    return sum(other not in layer for layer in graph for row in layer.values() for other in row)


class GuardedLayer(dict):
    """A layer with the seed's guard: a node that is missing has no links, and nobody hears of it."""

    def __missing__(self, node: int) -> list[int]:
        return []


# --- peers -----------------------------------------------------------------------------------------------------------

LIBRARIES = ("ours", "hnswlib", "faiss", "usearch")


class Curve(NamedTuple):
    """One index at several ef: recall@10 and queries a second of one thread."""

    ef: list[int]
    recall: list[float]
    speed: list[float]


def recorded_curves(name: str) -> tuple[dict[str, Curve], str]:
    """The recorded curves of every library on one set ("uniform", "clusters", "digits", ...), and their badge."""
    curves, badge = {}, ""
    for library in LIBRARIES:
        run = recorded.load(f"hnsw_{name}-{library}")
        points = run["curve"]
        curves[library] = Curve(
            [point["ef"] for point in points],
            [point["recall"] for point in points],
            [float(np.median(point["queries_per_second"])) for point in points],
        )
        badge = badge or run.badge
    return curves, badge


def has_hnswlib() -> bool:
    """Tell whether the package is installed; it is an extra ("peers")."""
    try:
        import hnswlib  # noqa: F401
    except ImportError:
        return False
    return True


def measure_curve(
    search: Callable[[int], np.ndarray], Q: np.ndarray, true_distances: np.ndarray, efs: list[int]
) -> Curve:
    """Time `search(ef)`, which answers all queries and returns the distances; the best of three in CPU time."""
    found, speeds = [], []
    for ef in efs:
        seconds = []
        for _ in range(3):
            start = time.process_time()
            distances = search(ef)
            seconds.append(time.process_time() - start)
        found.append(recall(distances, true_distances))
        speeds.append(len(Q) / max(min(seconds), 1e-9))
    return Curve(list(efs), found, speeds)


def hnswlib_curve(
    X: np.ndarray, Q: np.ndarray, true_distances: np.ndarray, efs: list[int], M: int, ef_construction: int
) -> Curve:
    """hnswlib's curve, measured here, on one thread; ImportError without the package."""
    import hnswlib

    theirs = hnswlib.Index("l2", X.shape[1])
    theirs.init_index(len(X), ef_construction=ef_construction, M=M, random_seed=0)
    theirs.add_items(X, num_threads=1)
    k = true_distances.shape[1]

    def search(ef: int) -> np.ndarray:
        theirs.set_ef(ef)
        return theirs.knn_query(Q, k, num_threads=1)[1]

    return measure_curve(search, Q, true_distances, efs)


# --- exercises of notebook 08 ----------------------------------------------------------------------------------------

_MOST_CALLS = 5000


@checker("greedy-walk")
def _greedy_walk(walk: Callable[[dict[int, list[int]], Callable[[int], float], int], int]) -> str:
    def ends(links: dict[int, list[int]], distances: dict[int, float], start: int) -> tuple[Any, set[int]]:
        asked: list[int] = []

        def distance(node: int) -> float:
            asked.append(node)
            if len(asked) > _MOST_CALLS:
                raise Wrong(
                    "The walk does not end: go on only while a neighbour is nearer than the node where you are."
                )
            return distances[node]

        return walk({node: list(row) for node, row in links.items()}, distance, start), set(asked)

    line = {i: [j for j in (i - 1, i + 1) if 0 <= j < 12] for i in range(12)}
    far = {i: float(abs(i - 9)) for i in range(12)}
    end, asked = ends(line, far, 2)
    if end == 3:
        raise Wrong("On a line from node 2 to node 9 you stop at node 3: one step is not a walk. Go on from there.")
    expect_equal("On a line from node 2 towards node 9 the end", end, 9)
    if 0 in asked:
        raise Wrong(
            "You asked for the distance of node 0, which is nobody's neighbour on the way: that is brute force."
        )
    fork = {0: [1, 2], 1: [0, 3], 2: [0, 4], 3: [1], 4: [2]}
    end, _ = ends(fork, {0: 10.0, 1: 8.0, 2: 5.0, 3: 7.0, 4: 1.0}, 0)
    if end == 3:
        raise Wrong("At a fork both neighbours are nearer, at 8 and at 5, and you took the one at 8. Take the nearest.")
    expect_equal("At a fork with neighbours at 8 and 5 the end", end, 4)
    trap = {0: [1], 1: [0, 2], 2: [1, 3], 3: [2]}
    end, _ = ends(trap, {0: 9.0, 1: 4.0, 2: 6.0, 3: 0.0}, 0)
    expect_equal("Where all neighbours are farther the end", end, 1, hint="a greedy walk cannot know what lies behind")
    end, _ = ends({0: []}, {0: 3.0}, 0)
    expect_equal("From a node without links the end", end, 0)
    X, Q = houses(300), places(40)
    links = both_ways(nearest_links(X, 6))
    for number, query in enumerate(Q):
        distances = dict(enumerate(((X - query) ** 2).sum(axis=1).tolist()))
        end, _ = ends(dict(enumerate(links)), distances, number)
        expect_equal(
            f"On a map of 300 houses, from house {number}, the end", end, greedy_walk(links, X, query, number).path[-1]
        )
    return "This is the search on the upper layers of HNSW; layer 0 keeps more than one candidate"


@checker("level-of-node")
def _level_of_node(level: Callable[[float, int], int]) -> str:
    cases = ((1.0, 16), (0.5, 16), (0.1, 16), (0.07, 16), (0.06, 16), (0.003, 16), (0.3, 5), (0.19, 5), (0.03, 5))
    got = [level(u, m) for u, m in cases]
    want = [math.floor(-math.log(u) / math.log(m)) for u, m in cases]
    mistakes = (
        (
            [math.floor(-math.log(u) / math.log(2)) for u, _ in cases],
            "You divide by ln 2: then M does not matter at all.",
        ),
        ([round(-math.log(u) / math.log(m)) for u, m in cases], "You round: too many nodes go up. Round down."),
        (
            [math.floor(-math.log(u) * math.log(m)) for u, m in cases],
            "mL is 1 / ln(M), not ln(M): a larger M means fewer nodes above.",
        ),
    )
    for (u, m), mine, due in zip(cases, got, want):
        what = f"For U = {u} and M = {m} the level"
        for wrong, why in mistakes:
            if mine != due and got == wrong:
                raise Wrong(f"{what} is {mine}, but should be {due}. {why}")
        if isinstance(mine, float) and mine == due:
            raise Wrong(f"{what} is {mine!r}, a float, but should be the whole number {due}: it counts layers.")
        expect_equal(what, mine, due, hint="floor(-ln(U) / ln(M))")
    uniform = 1 - np.random.default_rng(0).random(20_000)
    for m in (5, 16):
        share = sum(level(float(u), m) >= 1 for u in uniform) / len(uniform)
        if abs(share - 1 / m) > 0.01:
            raise Wrong(f"For M = {m} a share of {share:.3f} is above layer 0, but it should be 1 / M = {1 / m:.3f}.")
    return "One node in M goes up, and one in M of those goes up again"


@checker("choose-neighbours")
def _choose(choose: Callable[[list[tuple[float, int]], int, Callable[[int, int], float]], list[int]]) -> str:
    # The new node stands at 0 of a line; the others at these places.
    place = {0: 2.0, 1: 3.0, 2: 3.5, 3: -4.0, 4: -9.0, 5: 10.0}
    line = sorted((abs(where), node) for node, where in place.items())

    def between(a: int, b: int) -> float:
        return abs(place[a] - place[b])

    got = list(choose(list(line), 3, between))
    more = list(choose(list(line), 6, between))
    if got == [0, 1, 2] and len(more) < 6:
        raise Wrong(
            f"On a line you link to {[place[node] for node in more]}: to 2, and to those that stand behind it. It is the other way "
            "round: leave out what is nearer to a chosen node than to q."
        )
    if got == [0, 1, 2]:
        raise Wrong(
            "On a line with q at 0 and candidates at 2, 3, 3.5, -4, -9, 10 you link to 2, 3 and 3.5: the three nearest, all "
            "on one side. From the other side nobody finds q. Leave 3 out: it is nearer to 2 than to q."
        )
    if got == [0]:
        raise Wrong(
            "On a line you link to 2 and give up at 3. A candidate that is left out does not end the search: look on."
        )
    if got[:2] == [0, 1] or (len(got) > 2 and 5 in got):
        raise Wrong(
            f"On a line you link to {[place[node] for node in got]}. Compare a candidate with every node chosen so far, not only with "
            "the last one, and leave it out if it is nearer to any of them than to q."
        )
    expect_equal("On a line with candidates at 2, 3, 3.5, -4, -9, 10 the choice", [place[n] for n in got], [2.0, -4.0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.standard_normal((40, 3)).astype(np.float32)
        index = HNSWSimple(3)
        index._store(points)
        m = int(rng.integers(1, 8))
        candidates = sorted((index._distance(np.zeros(3, np.float32), node), node) for node in range(40))
        want = index.select_neighbors_heuristic(candidates, m, keep_pruned=False)
        got = list(choose(list(candidates), m, lambda a, b, index=index, points=points: index._distance(points[a], b)))
        if len(got) > m:
            raise Wrong(f"You choose {len(got)} neighbours, but at most {m} are allowed.")
        expect_equal(f"Among 40 random points, at most {m}, the choice", got, want)
    return "This is algorithm 4, which the index runs for every link that it makes"
