"""A guard against a KeyError that hides a broken graph."""

from __future__ import annotations

from collections.abc import Callable

from course.museum import Exhibit

Graph = list[dict[int, list[int]]]


def buggy(graph: Graph, layer: int, start: int, distance: Callable[[int], float]) -> int:
    """Walk greedily over graph[layer][node], the links of each node there, and return the node where the walk ends."""
    candidate, best = start, distance(start)
    while True:
        if candidate not in graph[layer]:
            return candidate
        nearest = min(graph[layer][candidate], key=distance)
        if distance(nearest) >= best:
            return candidate
        candidate, best = nearest, distance(nearest)


def fixed(graph: Graph, layer: int, start: int, distance: Callable[[int], float]) -> int:
    """The same without the guard: a link to a node that the layer does not have is an error, and is heard of."""
    candidate, best = start, distance(start)
    while True:
        nearest = min(graph[layer][candidate], key=distance)
        if distance(nearest) >= best:
            return candidate
        candidate, best = nearest, distance(nearest)


def detect(walk: Callable[[Graph, int, int, Callable[[int], float]], int]) -> None:
    """On a line of eight nodes the walk arrives. When node 4 is lost and the links to it are not, it must say so."""
    line = [{node: [other for other in (node - 1, node + 1) if 0 <= other < 8] for node in range(8)}]

    def distance(node: int) -> float:
        return abs(7 - node)

    found = walk(line, 0, 0, distance)
    assert found == 7, f"on a whole line of nodes 0 to 7 the walk to 7 ends at {found}"
    del line[0][4]
    try:
        found = walk(line, 0, 0, distance)
    except KeyError:
        return
    raise AssertionError(
        f"node 4 is missing, nodes 3 and 5 still link to it, and the walk to 7 answers {found} as if all were well"
    )


EXHIBIT = Exhibit(
    name="quiet_guard",
    chapter="08_hnsw",
    title="A guard that keeps a broken graph quiet",
    symptom="No error, ever. Some searches end early and return something near the place where they stopped. Recall sinks with each "
    "update, and nobody can say since when.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="The notes that this course grew from: if candidate not in self.graph[layer], put in after a KeyError. A neighbour on "
    "layer l is a node of layer l; where that does not hold, the insertion or the deletion is wrong.",
)
