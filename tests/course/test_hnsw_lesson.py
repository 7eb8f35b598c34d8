"""What notebook 08 counts with, against SciPy, plain loops and hnswlib; its checkers know right from wrong."""

from __future__ import annotations

import math
import random
import sys

import numpy as np
import pytest

from course import hnsw_figures as figures
from course import hnsw_lesson as lesson
from course import museum, plots
from course.exercises import CORRECT, WRONG, grade
from hnsw import HNSWSimple


@pytest.fixture(scope="module")
def town():
    X, Q = lesson.houses(300), lesson.places(30)
    return X, Q, lesson.build(X, max_m=4, ef_construction=20)


def test_the_points_are_distinct_whole_numbers_that_float32_adds_exactly():
    X = lesson.houses(500)
    assert len(np.unique(X, axis=0)) == 500 and X.dtype == np.float32
    for base, asked in ((X, lesson.places(50)), lesson.uniform(200, 32, 20), lesson.near_copies(200, 16, 5, 20)):
        assert (base % 1 == 0).all() and (asked % 1 == 0).all()
        exact = ((base[None].astype(np.int64) - asked[:, None].astype(np.int64)) ** 2).sum(-1)
        assert exact.max() < 2**24
        assert np.array_equal(((base[None] - asked[:, None]) ** 2).sum(-1), exact)


def test_brute_force_finds_what_a_tree_finds():
    from scipy.spatial import KDTree

    X, Q = lesson.uniform(400, 5, 40)
    ids, distances = lesson.brute_force(X, Q, 7)
    theirs, _ = KDTree(X).query(Q, 7)
    assert np.allclose(np.sqrt(distances), theirs)
    assert np.array_equal(((X[ids] - Q[:, None]) ** 2).sum(-1), distances)


def test_recall_counts_the_equally_near_and_no_others():
    true = np.array([[1.0, 2.0, 2.0], [0.0, 5.0, 9.0]])
    assert lesson.recall(true, true) == 1
    assert lesson.recall(np.array([[2.0, 2.0, 3.0], [0.0, 9.5, math.inf]]), true) == 3 / 6


def test_the_walk_goes_downhill_and_ends_where_no_neighbour_is_nearer(town):
    X, Q, _ = town
    links = lesson.both_ways(lesson.nearest_links(X, 5))
    for number, query in enumerate(Q):
        far = ((X - query) ** 2).sum(axis=1)
        path, looked = lesson.greedy_walk(links, X, query, number)
        assert path[0] == number and all(b in links[a] for a, b in zip(path, path[1:]))
        assert all(far[b] == min(far[links[a]]) < far[a] for a, b in zip(path, path[1:]))
        assert far[path[-1]] <= min(far[links[path[-1]]])
        assert looked == len({number}.union(*(links[node] for node in path)))


def test_links_are_the_nearest_mutual_and_long_ones():
    X = lesson.houses(60)
    near = lesson.nearest_links(X, 4)
    for node, row in enumerate(near):
        far = ((X - X[node]) ** 2).sum(axis=1)
        assert node not in row and sorted(far[row]) == sorted(far)[1:5]
    mutual = lesson.both_ways(near)
    assert all(node in mutual[other] for node, row in enumerate(mutual) for other in row)
    assert {(min(a, b), max(a, b)) for a, row in enumerate(mutual) for b in row} == {
        (min(a, b), max(a, b)) for a, row in enumerate(near) for b in row
    }
    assert all(len(long) == len(row) + 2 for long, row in zip(lesson.with_long_links(near, 2), near))


def test_reachable_nodes_are_those_that_scipy_reaches():
    from scipy.sparse import lil_array
    from scipy.sparse.csgraph import breadth_first_order

    links = lesson.nearest_links(lesson.houses(200), 3)
    matrix = lil_array((200, 200))
    for node, row in enumerate(links):
        matrix[node, row] = 1
    for start in (0, 50, 199):
        assert lesson.reachable(links, start) == len(breadth_first_order(matrix.tocsr(), start)[0])


def test_effort_counts_each_distance_and_leaves_the_index_alone(town):
    X, Q, index = town
    _, true = lesson.brute_force(X, Q, 3)
    cost = lesson.effort(index, Q, true, ef=12)
    met, right = 0, 0
    for query, row in zip(Q, true):
        trace = []
        found = index.search(query, 3, 12, trace)
        met += 1 + sum(len(step.seen) for step in trace)  # the entry point, and all that were met
        right += sum(distance <= row[-1] for _, distance in found)
    assert cost == (right / true.size, met / len(Q))
    assert type(index) is HNSWSimple and not hasattr(index, "counted")


def test_layer_0_alone_shares_the_links(town):
    _, _, index = town
    alone = lesson.without_layers(index)
    assert len(alone.graph) == 1 < len(index.graph) and alone.graph[0] is index.graph[0]


def test_the_seeds_ml_gives_the_levels_of_its_loop():
    loop = museum.load("level_sampler").buggy
    rng = random.Random(1)
    drawn = [loop(rng, 16) for _ in range(20_000)]
    index = HNSWSimple(1, ml=lesson.SEEDS_ML)
    for level in range(1, 6):
        share = sum(each >= level for each in drawn) / len(drawn)
        assert share == pytest.approx(math.exp(-level / index.ml), abs=0.015)


def test_broken_links_are_those_to_nodes_that_a_layer_lacks(town):
    _, _, index = town
    assert lesson.broken_links(index.graph) == 0
    graph = [dict(layer) for layer in index.graph]
    lost = sum(7 in row for row in graph[0].values())
    del graph[0][7]
    assert lost > 0 and lesson.broken_links(graph[:1]) == lost
    assert lesson.GuardedLayer(graph[0])[7] == []


def test_recorded_curves_are_those_of_the_files():
    for name in ("uniform", "clusters", "near_duplicates"):
        curves, badge = lesson.recorded_curves(name)
        assert list(curves) == list(lesson.LIBRARIES) and badge.startswith("recorded on ")
        for curve in curves.values():
            assert curve.ef == sorted(curve.ef) and len(curve.recall) == len(curve.speed) == len(curve.ef)
            assert all(0 < found <= 1 for found in curve.recall) and min(curve.speed) > 0


def test_without_hnswlib_the_lesson_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    assert not lesson.has_hnswlib()


def test_hnswlibs_curve_rises_and_finds_what_brute_force_finds():
    pytest.importorskip("hnswlib")
    assert lesson.has_hnswlib()
    X, Q = lesson.uniform(500, 8, 50)
    _, true = lesson.brute_force(X, Q, 10)
    curve = lesson.hnswlib_curve(X, Q, true, [10, 200], M=8, ef_construction=60)
    assert curve.recall[0] < curve.recall[1] and curve.recall[1] > 0.99


def test_the_pictures_draw_and_the_widget_moves(town):
    X, Q, index = town
    links = lesson.nearest_links(X, 4)
    trace = []
    index.search(Q[0], 1, 4, trace)
    curve = lesson.Curve([10, 20], [0.5, 0.9], [2000.0, 1000.0])
    for figure in (
        figures.draw_walks(X, Q[0], {"walk": (links, lesson.greedy_walk(links, X, Q[0], 3))}),
        figures.draw_growth([10, 40], {"brute force": [10, 40], "layer 0 alone": [8, 12], "all layers": [7, 9]}),
        figures.draw_layers(index),
        figures.draw_levels({"paper": [1.0, 0.2], "seed": [1.0, 0.7, 0.5, 0.0]}),
        figures.draw_choice(X, {"3": [0, 1], "4": [2]}),
        figures.draw_tradeoff({"M = 8": curve}, {"M = 8": [100.0, 200.0]}),
        figures.draw_peers({"uniform": {"ours": curve, "hnswlib": curve}}, {"ours": curve}),
    ):
        assert plots.png(figure)
    pictures = [plots.png(figures.draw_step(index, Q[0], trace, step)) for step in (0, len(trace) - 1, 10**6)]
    assert pictures[0] != pictures[1] == pictures[2], "a step beyond the last shows the last"
    widget = figures.watch(index, Q[0], efs=(1, 4), static={"step": 0, "ef": 4}, alt="")
    step, ef = widget.children[:2]
    step.value, ef.value = 2, 1
    assert step.max + 1 == len(trace)


def test_a_right_answer_that_is_written_another_way_is_accepted():
    def walk(links, distance, start):
        for other in sorted(links[start], key=distance)[:1]:
            if distance(other) < distance(start):
                return walk(links, distance, other)
        return start

    assert grade("greedy-walk", walk).verdict == CORRECT
    assert grade("level-of-node", lambda u, m: int(math.log(u, 1 / m))).verdict == CORRECT
    assert grade("level-of-node", lambda u, m: int(-np.log(u) / np.log(m))).verdict == CORRECT


def test_answers_that_no_file_foresees_are_wrong_with_a_reason():
    for answer, reason in (
        (lambda links, distance, start: start, "should be 9"),
        (lambda links, distance, start: links[start], "should be 9"),
    ):
        found = grade("greedy-walk", answer)
        assert found.verdict == WRONG and reason in found.message
    assert grade("level-of-node", lambda u, m: 0).verdict == WRONG
    assert "at most" in grade("choose-neighbours", _never_full).message
    assert grade("choose-neighbours", lambda candidates, m, between: []).verdict == WRONG


def _never_full(candidates, m, between):
    chosen = []
    for distance, node in candidates:
        if all(between(node, other) >= distance for other in chosen):
            chosen.append(node)
    return chosen
