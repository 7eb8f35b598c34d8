"""The compiled index: the same graph as the readable one, for any number of threads; changes, masks, edges."""

import os
import signal
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest
from vector_sets import clusters, exact, grid, recall

from hnsw import HNSWSimple, Index, core
from hnsw import index as index_module
from hnsw.simple import METRICS

compiled = numba.njit(fastmath=core.FAST, error_model="numpy")  # Python cannot call what `core` keeps to itself
pool_insert, to_keys, collect = (compiled(f.py_func) for f in (core._pool_insert, core._to_keys, core._collect))


@compiled
def distance_and_key(metric, q, vectors, slot):
    """The distance from q to one slot, its key, and the distance that the key holds."""
    distance = core._distance(metric, q, vectors, slot)
    key = core._key(distance, slot)
    return distance, key, core._key_distance(key)


def graph_of(index):
    """{id: links per layer}"""
    return {int(id): index.links(int(id)) for id in index.ids}


def built(X, metric="l2", M=8, ef_construction=60, **settings):
    index = Index(X.shape[1], metric, M, ef_construction, **settings)
    index.add(X)
    return index


@pytest.mark.parametrize("keep_pruned", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, None])
@pytest.mark.parametrize("ef_upper", [1, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_same_graph_and_answers_as_the_readable_index(metric, batch_size, keep_pruned, ef_upper):
    X = grid(400, 20, metric)
    settings = {"metric": metric, "seed": 3, "keep_pruned": keep_pruned, "ef_upper": ef_upper}
    simple = HNSWSimple(X.shape[1], 5, 40, **settings)
    simple.add(X, batch_size=batch_size)
    index = Index(X.shape[1], M=5, ef_construction=40, **settings)
    index.add(X, batch_size=batch_size)
    index.check()
    layers = [
        {node: links[layer] for node, links in graph_of(index).items() if len(links) > layer} for layer in range(9)
    ]
    assert [layer for layer in layers if layer] == simple.graph
    ids, distances = index.search(X[:40], 6, ef=25)
    for i, q in enumerate(X[:40]):
        found = simple.search(q, 6, ef=25)
        assert ids[i].tolist() == [node for node, _ in found]
        assert distances[i].tolist() == pytest.approx([d for _, d in found], abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_readable_copy(metric):
    X = grid(300, 6, metric)
    index = Index(X.shape[1], metric, 5, 40)
    index.add(X[:250])
    simple = index.readable()
    assert simple.graph == simple_of(X[:250], metric).graph
    assert [e for e, _ in simple.search(X[3], 5, ef=30)] == index.search(X[3], 5, ef=30)[0][0].tolist()
    simple.add(X[250:], batch_size=None)  # it goes on as the index does
    index.add(X[250:])
    assert simple.graph == index.readable().graph
    index.delete([1])
    with pytest.raises(ValueError, match="none deleted"):
        index.readable()
    assert Index(3).readable().search([0, 0, 0], 1) == []


def simple_of(X, metric):
    simple = HNSWSimple(X.shape[1], 5, 40, metric=metric, ef_upper=4)
    simple.add(X, batch_size=None)
    return simple


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_neither_graph_nor_answers(threads):
    X = clusters(4000, 12, 50, 0.2)
    one, several = Index(12, M=6, ef_construction=30), Index(12, M=6, ef_construction=30)
    one.add(X, num_threads=1)
    several.add(X, num_threads=threads)
    for a, b in zip(one._parts()[1].values(), several._parts()[1].values()):
        assert np.array_equal(a, b)
    for a, b in zip(one.search(X[:300], num_threads=1), several.search(X[:300], num_threads=threads)):
        assert np.array_equal(a, b)


def test_threads_change_nothing_after_replacing_and_compacting():
    def lived(threads):
        rng = np.random.default_rng(1)
        index = Index(8, M=6, ef_construction=30, num_threads=threads)
        index.add(rng.random((2000, 8)))
        for _ in range(2):
            index.add(rng.random((700, 8)), ids=rng.permutation(2000)[:700])
        index.delete(index.ids[::3])
        index.compact()
        index.add(rng.random((300, 8)))
        return index._parts()

    header, arrays = lived(1)
    for threads in (2, 5):
        other, others = lived(threads)
        assert all(np.array_equal(a, b) for a, b in zip(arrays.values(), others.values()))
        assert other["entry"] == header["entry"]


def test_pieces_of_work_are_all_done_and_none_waits_for_a_busy_pool():
    done = []

    def fail(i):
        time.sleep(0.001)
        done.append(i)
        if i % 1000 == 2:
            raise KeyboardInterrupt

    for threads in (1, 2, 5):
        assert index_module._run(lambda i: i * i, 9, threads) == [i * i for i in range(9)]
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            index_module._run(fail, 3000, threads)
        ended = len(done)
        time.sleep(0.01)
        assert len(done) == ended < 3000
    free = threading.Event()
    for _ in range(max(index_module._cpus(), 8)):
        index_module._jobs().put(free.wait)  # all the shared threads are busy now
    try:
        result = []
        waiting = threading.Thread(target=lambda: result.append(index_module._run(lambda i: i, 4, 3)), daemon=True)
        waiting.start()
        waiting.join(20)
        assert result == [[0, 1, 2, 3]]
    finally:
        free.set()


def test_an_interrupt_waits_for_the_other_threads():
    ended, begun = [], threading.Event()

    def work(i):
        if threading.current_thread() is threading.main_thread():
            begun.wait(60)
            return
        begun.set()
        time.sleep(0.2)  # the main thread has nothing left to do but wait
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.3)
        ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        index_module._run(work, 2, 2)
    assert len(ended) == 1


def test_long_builds_show_a_bar_and_short_ones_none(monkeypatch, capsys):
    X = grid(300, 6, "l2")
    original = core.find_neighbours

    def add(pause, progress):
        monkeypatch.setattr(core, "find_neighbours", lambda *a: (time.sleep(pause), original(*a)))
        Index(6, M=4, ef_construction=20, num_threads=1).add(X, batch_size=60, progress=progress)
        return capsys.readouterr().err

    assert add(0, False) == ""  # compiles, which may take two seconds
    assert add(0, None) == add(0.7, False) == ""
    assert "/300" in add(0.7, None)  # more than two seconds
    assert "300/300" in add(0, True)


FIRST_USE = """
from collections import Counter
import numpy as np
from numba.core import event
from hnsw import Index

class Compiled(event.Listener):
    names = Counter()

    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        if function.__module__ == "hnsw.core":
            self.names[function.__name__] += 1

    def on_end(self, event):
        pass

event.register("numba:compile", Compiled())
index = Index(4)
index.add(np.eye(4))
index.search(np.eye(4), 2)
print(*Compiled.names.elements())
"""


def test_the_first_use_compiles_only_what_it_needs_and_nothing_twice(tmp_path):
    """Whoever uses an index for the first time waits for this."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FIRST_USE]
    names = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    entries = ["find_neighbours", "link_back", "load_query", "search"]
    inside = ["_insort", "_key", "_key_distance", "_new_epoch", "_pool_insert", "_search_layer", "_select", "_slot"]
    assert sorted(names) == sorted([*entries, *inside, "_to_keys"])


@pytest.mark.parametrize("size", [1, 2, 10, 17, 127, 128, 129, 130, 145, 200, 400])
def test_the_pool_keeps_the_nearest(size):
    rng = np.random.default_rng(size)
    pool = np.full(size, core.EMPTY)
    kept = np.array([], dtype=np.int64)
    for key in rng.permutation(3 * size + 5).astype(np.int64) * 2:
        if key < pool[0]:
            place = pool_insert(pool, key)
            assert pool[place] == key
        kept = np.sort(np.append(kept, key))[:size]
        assert np.array_equal(pool[::-1][: len(kept)], kept) and (pool[::-1][len(kept) :] == core.EMPTY).all()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 31])
@pytest.mark.parametrize("dim", [3, 16, 100])
@pytest.mark.parametrize("metric", METRICS)
def test_four_distances_at_a_time_are_those_of_one_to_the_last_bit(metric, dim, count):
    rng = np.random.default_rng(dim)
    index = built(rng.standard_normal((40, dim)).astype(np.float32), metric)
    vectors, slots = index._graph.vectors, rng.permutation(40)
    keys = slots[: count + 3].copy()
    to_keys(index._metric, vectors[7], vectors, keys, count)
    for key, slot in zip(keys[:count], slots):
        distance, key_of_one, same_distance = distance_and_key(index._metric, vectors[7], vectors, slot)
        assert key == key_of_one
        assert distance == same_distance


@pytest.mark.parametrize("dim", [1, 3, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_right_at_any_dimension(dim, metric):
    rng = np.random.default_rng(dim)
    X = rng.standard_normal((60, dim)).astype(np.float32)
    Q = rng.standard_normal((9, dim)).astype(np.float32)
    ids, distances = built(X, metric).search(Q, 5, ef=60)
    a, b = X.astype(np.float64)[ids], Q.astype(np.float64)[:, None]
    if metric == "l2":
        truth = ((a - b) ** 2).sum(-1)
    else:
        truth = (a * b).sum(-1)
        if metric == "cosine":
            truth /= np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        truth = 1 - truth
    np.testing.assert_allclose(distances, truth, rtol=1e-4, atol=1e-4)
    if dim > 1 or metric != "cosine":
        kth = np.sort(truth, axis=1)
        np.testing.assert_allclose(distances, kth, rtol=1e-4, atol=1e-4)


def test_recall(uniform):
    X, Q, truth = uniform
    index = built(X, M=16, ef_construction=100)
    assert recall(index.search(Q, 10, ef=40)[0], truth) > 0.985
    assert recall(index.search(Q, 10, ef=200)[0], truth) > 0.999


def test_add_grows_by_itself_and_numbers_what_has_no_id():
    X = grid(900, 6, "l2")
    index = Index(6, M=4, ef_construction=20)
    assert index.add(X[:1]).tolist() == [0]
    assert index.add(X[1:500]).tolist() == list(range(1, 500))
    assert index.add(X[500:502], ids=[7000, 600]).tolist() == [7000, 600]
    assert index.add(X[502:504]).tolist() == [7001, 7002]
    assert index.add(np.empty((0, 6))).tolist() == []
    assert len(index) == 504 and 7001 in index and 7003 not in index
    assert np.array_equal(index.get([600, 0]), X[[501, 0]])


def test_one_by_one_is_the_same_as_together():
    X = grid(300, 6, "l2")
    together, apart = Index(6, M=4, ef_construction=20), Index(6, M=4, ef_construction=20)
    together.add(X, batch_size=1)
    for x in X:
        apart.add(x)
    assert graph_of(together) == graph_of(apart)


def test_an_id_in_use_gets_the_new_vector():
    X = grid(500, 8, "l2")
    index = built(X)
    index.add(X[::-1][:200], ids=np.arange(200))
    index.check()
    assert len(index) == 500
    assert np.array_equal(index.get(np.arange(200)), X[::-1][:200])
    now = np.concatenate([X[::-1][:200], X[200:]])
    ids, _ = index.search(now[:200] + 0.1, 1, ef=100)
    assert recall(ids, exact(now, now[:200] + 0.1, 1)) > 0.97  # row 400 and id 99 are the same vector


def test_deleted_ids_never_come_back_until_undeleted(uniform):
    X, Q, _ = uniform
    index = built(X)
    gone = np.arange(0, 2000, 2)
    index.delete(gone)
    assert len(index) == 1000 and index.deleted_count == 1000 and 0 not in index
    ids, _ = index.search(Q, 10, ef=60)
    assert (ids % 2 == 1).all()
    truth = 2 * exact(X[1::2], Q, 10) + 1
    assert recall(ids, truth) > 0.97
    with pytest.raises(KeyError, match="cannot get id 0: it is deleted"):
        index.get([0])
    index.undelete(gone)
    assert recall(index.search(Q, 10, ef=60)[0], exact(X, Q, 10)) > 0.97
    index.delete(gone)
    index.compact()
    index.check()
    assert index.deleted_count == 0
    assert recall(index.search(Q, 10, ef=60)[0], truth) > 0.97
    with pytest.raises(KeyError, match="cannot undelete id 0: no such id"):
        index.undelete([0])


@pytest.mark.parametrize("way", ["replace", "delete and compact"])
def test_churning_half_of_it_twice_keeps_recall(way):
    rng = np.random.default_rng(0)
    data = rng.random((8300, 16), dtype=np.float32)
    Q, data = data[:300], data[300:]
    X = data[:4000].copy()
    index = built(X, M=8, ef_construction=80)
    fresh = recall(index.search(Q, 10, ef=40)[0], exact(X, Q, 10))
    for turn in range(2):
        ids = rng.permutation(4000)[:2000]
        X[ids] = data[4000 + 2000 * turn :][:2000]
        if way != "replace":
            index.delete(ids)
            index.compact()
        index.add(X[ids], ids=ids)
        index.check()
    assert len(index) == 4000
    churned = recall(index.search(Q, 10, ef=40)[0], exact(X, Q, 10))
    anew = recall(built(X, M=8, ef_construction=80).search(Q, 10, ef=40)[0], exact(X, Q, 10))
    assert fresh > 0.9 and churned > anew - 0.01
    assert index._used <= 4900  # places are used again
    assert len(index.unreachable()) <= 4


def test_many_small_replacements_keep_recall_and_memory(uniform):
    X, Q, _ = uniform
    X = X.copy()
    index = built(X)
    rng = np.random.default_rng(0)
    for _ in range(40):
        ids = rng.permutation(2000)[:50]
        X[ids] = rng.random((50, 16), dtype=np.float32)
        index.add(X[ids], ids=ids)
    index.check()
    assert index._used < 2600
    assert recall(index.search(Q, 10, ef=60)[0], exact(X, Q, 10)) > 0.96


@pytest.mark.parametrize("allowed", [0, 1, 5, 12, 60, 400, 1500, 2000])
@pytest.mark.parametrize("form", ["boolean", "ids", "one a query"])
def test_a_mask_gives_k_results_where_k_exist(uniform, allowed, form):
    X, Q, _ = uniform
    index = uniform_index(X)
    chosen = np.sort(np.random.default_rng(allowed).permutation(2000)[:allowed])
    mask = np.zeros(2000, dtype=bool)
    mask[chosen] = True
    mask = {"boolean": mask, "ids": chosen, "one a query": np.tile(mask, (len(Q), 1))}[form]
    ids, distances = index.search(Q, 10, ef=40, mask=mask)
    exist = min(10, allowed)
    assert (ids[:, :exist] >= 0).all() and (ids[:, exist:] == -1).all() and np.isinf(distances[:, exist:]).all()
    assert np.isin(ids[:, :exist], chosen).all()
    if allowed:
        truth = chosen[exact(X[chosen], Q, exist)]
        assert recall(ids, truth) > 0.97


_indexes = {}


def uniform_index(X):
    """Built once: no test that takes it changes it."""
    if "uniform" not in _indexes:
        _indexes["uniform"] = built(X)
    return _indexes["uniform"]


def test_a_mask_of_what_is_far_away_is_compared_with_all_of_it():
    """A walk would go through everything that is nearer first, and takes a hundred times as long."""
    X = clusters(6000, 8, 60, 0.2)
    index = built(X)
    for q in X[:10]:
        far = np.argsort(((X - q) ** 2).sum(1))[-4000:]
        for a, b in zip(index.search(q, 10, ef=10, mask=far), index.search(q, 10, mask=far, exact=True)):
            assert np.array_equal(a, b)
        allowed = np.zeros(6000, dtype=np.uint8)
        allowed[far] = 1
        fresh = np.empty(16, dtype=np.int64)
        with index._scratch() as scratch:
            place = (index._graph, index._metric, q_padded(index, q), index._entry, 10, allowed)
            keys, done = collect(*place, 1000, scratch, fresh)
            assert not done and not len(keys)
            keys, done = collect(*place, 10**9, scratch, fresh)
            assert done and len(keys) == 10
    assert len(index.range_search(X[0], 1e9, mask=far)[0][0]) == 4000


def q_padded(index, q):
    padded = np.zeros(index._columns, dtype=np.float32)
    padded[: len(q)] = q
    return padded


def test_a_mask_and_deleted_nodes_together(uniform):
    X, Q, _ = uniform
    index = built(X[:600])
    index.delete(np.arange(300))
    ids, _ = index.search(Q, 10, ef=50, mask=np.arange(600) % 3 == 0)
    assert ((ids >= 300) & (ids % 3 == 0)).all()
    assert (index.search(Q, 3, mask=[1, 2, 299])[0] == -1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_range_search_finds_what_lies_within(metric):
    X = grid(500, 6, metric)
    index = built(X, metric)
    index.delete([3])
    everything, distances = index.search(X[:20], 499, ef=500)
    for i in range(20):
        for radius in (-1e9, float(distances[i, 0]), float(distances[i, 30]), np.inf):
            found, far = index.range_search(X[i], radius, ef=8)
            inside = everything[i][distances[i] <= radius].tolist()
            assert set(found[0]) <= set(inside) and (np.diff(far[0]) >= 0).all()
            assert len(found[0]) >= len(inside) * (0.9 if radius < np.inf else 1)


def test_identical_vectors():
    X = np.ones((700, 4), dtype=np.float32)
    index = built(X, M=4)
    ids, distances = index.search(X[:3], 700)
    assert (np.sort(ids, axis=1) == np.arange(700)).all() and (distances == 0).all()


def test_what_no_walk_reaches_is_reported_and_still_found():
    X = grid(60, 4, "l2")
    index = built(X, M=4)
    row = index._graph.links0
    row[row == 7] = -1  # nobody links to 7 any more
    for links in row[:60]:
        links[:] = np.concatenate([links[links >= 0], links[links < 0]])
    index.check()
    if index._entry != 7:
        assert 7 in index.unreachable()
        assert 7 in index.search(X[7], 60)[0]


def test_searches_in_many_threads_beside_an_add():
    X = clusters(3000, 8, 20, 0.3)
    index = Index(8, M=6, ef_construction=30)
    index.add(X[:500])
    wrong, stop = [], threading.Event()

    def look():
        try:
            while not stop.is_set():
                for how in ({}, {"mask": np.arange(200)}, {"mask": np.arange(3000) % 3 > 0}):
                    ids, distances = index.search(X[:50], 3, num_threads=1, **how)
                    assert (ids >= 0).all() and np.isfinite(distances).all()
                assert len(index.range_search(X[0], 0.0)[0][0]) == 1
                assert index.search(X[0], 1)[1].tolist() == [[0]]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(500, 3000, 250):
        index.add(X[start : start + 250])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(index) == 3000
    assert np.array_equal(index.search(X[:20], 1, ef=60)[1], np.zeros((20, 1)))


@pytest.mark.parametrize("function", ["find_neighbours", "link_back", "enter_slots"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_add_leaves_a_whole_index(monkeypatch, function, threads):
    X = grid(1500, 6, "l2")
    index = Index(6, M=4, ef_construction=20, num_threads=threads)
    index.add(X[:700], ids=np.arange(700)[::-1])
    original, calls = getattr(core, function), []

    def interrupted(*arguments):
        calls.append(1)
        result = original(*arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(core, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.add(X[:1300], ids=np.arange(200, 1500))
    monkeypatch.undo()
    index.check()
    ids = index.ids
    assert len(index) == len(ids) == len(set(ids.tolist())) and 200 <= len(ids) < 1500
    assert np.isin(index.search(X[:50], 3)[0], ids).all()
    assert index.add(X[:3])[0] > ids.max()  # a number that nobody has
    index.add(X, ids=np.arange(1500))
    index.check()
    assert np.array_equal(index.get(np.arange(1500)), X)
    assert recall(index.search(X[:200], 1, ef=100)[0], exact(X, X[:200], 1)) > 0.97


def test_an_add_without_memory_leaves_a_whole_index(monkeypatch):
    X = grid(300, 6, "l2")
    index = built(X[:200])
    original = Index._allocate

    def allocate(self, slots, rows):
        raise MemoryError("no room")

    monkeypatch.setattr(Index, "_allocate", allocate)
    with pytest.raises(MemoryError):
        index.add(X, ids=np.arange(150, 450))
    monkeypatch.setattr(Index, "_allocate", original)
    index.check()
    assert sorted(index.ids) == list(range(150))
    index.add(X, ids=np.arange(150, 450))
    index.check()
    assert np.array_equal(index.get(np.arange(450)), np.concatenate([X[:150], X]))


def test_many_epochs_of_visited_marks():
    index = built(grid(50, 4, "l2"), M=4)
    Q = grid(70_000, 4, "l2", seed=5)
    ids, _ = index.search(Q, 1, ef=5, num_threads=1)
    again, _ = index.search(Q[-100:], 1, ef=5)
    assert np.array_equal(ids[-100:], again)


# Edges: hnswlib crashes, stays silent or answers without help at each of these.


def test_searching_an_empty_index():
    index = Index(3)
    ids, distances = index.search([[1, 2, 3], [0, 0, 0]], 4)
    assert ids.shape == (2, 4) and (ids == -1).all() and np.isinf(distances).all()
    assert index.search(np.empty((0, 3)), 4)[0].shape == (0, 4)
    assert index.range_search([1, 2, 3], 5.0)[0][0].size == 0
    assert len(index.unreachable()) == 0
    with pytest.raises(ValueError, match="row 0 has NaN"):
        index.search([np.nan, 0, 0])


def test_settings_far_beyond_the_index_cost_nothing():
    X = grid(200, 4, "l2")
    index = Index(4, M=6, ef_construction=10**15, ef_upper=10**15, num_threads=10**9)
    index.add(X)
    plain = Index(4, M=6, ef_construction=400, ef_upper=400)
    plain.add(X)
    assert graph_of(index) == graph_of(plain)
    for a, b in zip(index.search(X, 3, ef=10**18), plain.search(X, 3, exact=True)):
        assert np.array_equal(a, b)
    assert len(index.range_search(X[0], 1e9, ef=2**62)[0][0]) == 200
    index.delete(np.arange(50))
    index.compact(num_threads=10**9)
    index.check()


def test_attributes_refuse_what_the_constructor_would():
    index = built(grid(20, 4, "l2"))
    for name, value, error in (
        ("ef", 0, ValueError),
        ("ef", 2.5, TypeError),
        ("ef", "50", TypeError),
        ("num_threads", 0, ValueError),
        ("num_threads", -1, ValueError),
    ):
        with pytest.raises(error, match=name):
            setattr(index, name, value)
    index.num_threads, index.ef = None, 3
    assert index.search(np.zeros(4), 2)[0].shape == (1, 2)


def test_only_integers_are_ids():
    index = built(grid(20, 4, "l2"))
    assert 2 in index and np.uint64(2) in index
    assert all(id not in index for id in (2.5, 2.0, "2", None, True, -1, 20))


def test_more_neighbours_asked_than_exist():
    index = built(grid(5, 3, "l2"))
    ids, distances = index.search([0, 0, 0], 9)
    assert sorted(ids[0, :5].tolist()) == [0, 1, 2, 3, 4]
    assert (ids[0, 5:] == -1).all() and np.isinf(distances[0, 5:]).all()
    index.delete(np.arange(5))
    assert (index.search([0, 0, 0], 2)[0] == -1).all()
    assert index.get([]).shape == (0, 3)
    index.compact()
    assert (index.search([0, 0, 0], 2)[0] == -1).all()
    index.add([1, 1, 1])
    assert index.search([0, 0, 0], 1)[0].tolist() == [[5]]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 2.5}, TypeError, "dim must be an integer"),
        ({"M": 0}, ValueError, "M must be at least 2"),
        ({"M": 1}, ValueError, "M must be at least 2"),
        ({"ef_construction": 0}, ValueError, "ef_construction"),
        ({"metric": "euclidean"}, ValueError, "metric must be one of l2, ip, cosine"),
        ({"seed": -1}, ValueError, "seed"),
        ({"num_threads": 0}, ValueError, "num_threads"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        Index(**{"dim": 4, **settings})


@pytest.mark.parametrize(
    ("vectors", "ids", "error", "message"),
    [
        ([[1, 2, 3]], None, ValueError, r"X must have shape \(n, 2\)"),
        ([[1, 2], [3, np.nan]], None, ValueError, "X: row 1 has NaN"),
        ([[1, np.inf]], None, ValueError, "X: row 0 has NaN, infinite"),
        ([[1, 1e300]], None, ValueError, "X: row 0 has NaN, infinite or too large"),
        ([[0, 0]], None, ValueError, "X: row 0 is zero"),
        ([["a", "b"]], None, TypeError, "X must be numbers"),
        ([["1", "2"]], None, TypeError, "X must be numbers"),
        ([[1j, 2]], None, TypeError, "X must be numbers .* not complex128"),
        (np.array([[1, 2]], dtype="datetime64[s]"), None, TypeError, "X must be numbers"),
        ([[None, 2]], None, TypeError, "X must be numbers"),
        (iter([[1, 2]]), None, TypeError, "X must be numbers"),
        ([[1, 2], [3]], None, TypeError, "X must be numbers"),
        ([[1, 2], [3, 4]], [5, 5], ValueError, "5 is there twice"),
        ([[1, 2]], [-1], ValueError, "ids must be from 0"),
        ([[1, 2]], [0.5], TypeError, "ids must be integers"),
        ([[1, 2]], [1, 2], ValueError, r"ids must have shape \(1,\)"),
        ([[1, 2]], np.array([2**63], dtype=np.uint64), ValueError, "ids must be from 0"),
    ],
)
def test_bad_vectors_and_ids_change_nothing(vectors, ids, error, message):
    index = Index(2, "cosine")
    index.add([[1, 0]], ids=[5])
    with pytest.raises(error, match=message):
        index.add(vectors, ids)
    assert index.ids.tolist() == [5] and index.get([5]).tolist() == [[1, 0]]


def test_the_largest_id():
    index = built(grid(5, 3, "l2"))
    index.add([1, 2, 3], ids=[2**63 - 1])
    assert 2**63 - 1 in index and 2**63 not in index and -1 not in index
    assert index.search([1, 2, 3], 1, mask=[2**63 - 1])[0].tolist() == [[2**63 - 1]]
    with pytest.raises(ValueError, match="no numbers are free after id 9223372036854775807"):
        index.add([1, 2, 3])
    index.add([3, 2, 1], ids=[9])
    assert len(index) == 7


def test_bad_searches():
    index = built(grid(20, 4, "l2"))
    good = np.zeros((3, 4))
    for call, error, message in (
        (lambda: index.search(np.zeros((3, 5))), ValueError, r"Q must have shape \(n, 4\)"),
        (lambda: index.search(np.zeros(3)), ValueError, "Q must have shape"),
        (lambda: index.search([[0, 0, 0, 0], [0, 0, np.nan, 0]]), ValueError, "Q: row 1 has NaN"),
        (
            lambda: index.search(good, mask=np.ones((3, 20), bool)) and index.search([[0, 0, np.inf, 0]], mask=[1]),
            ValueError,
            "row 0",
        ),
        (lambda: index.search(good, 0), ValueError, "k must be at least 1"),
        (lambda: index.search(good, 1, ef=0), ValueError, "ef must be at least 1"),
        (lambda: index.search(good, 1.5), TypeError, "k must be an integer"),
        (lambda: index.search("abc"), TypeError, "Q must be numbers"),
        (lambda: index.search(good * 1j), TypeError, "Q must be numbers .* not complex128"),
        (lambda: index.search(good, mask=np.arange(20) % 2), ValueError, r"give booleans, mask.astype\(bool\)"),
        (lambda: index.search(good, mask=np.ones(19, bool)), ValueError, "needs 20 entries, not 19"),
        (lambda: index.search(good, mask=np.ones((2, 20), bool)), ValueError, "boolean mask must be"),
        (lambda: index.search(good, mask=np.zeros((3, 2), int)), ValueError, "mask of ids"),
        (lambda: index.search(good, mask=[0.5]), TypeError, "ids must be integers"),
        (lambda: index.range_search(good, np.nan), ValueError, "radius"),
        (lambda: index.get([20]), KeyError, "no such id"),
        (lambda: index.delete([3, 3]), ValueError, "3 is there twice"),
        (lambda: index.delete([3, 99]), KeyError, "cannot delete id 99"),
        (lambda: index.undelete([3]), KeyError, "cannot undelete id 3: it is not deleted"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert len(index) == 20
    zero = built(grid(20, 4, "cosine"), "cosine")
    with pytest.raises(ValueError, match="row 0 .*no direction"):
        zero.search(np.zeros(16))


@pytest.mark.parametrize("scale", [1e17, 1e-30, 1e-38, 3e-39, 1e-43])
def test_cosine_does_not_see_the_length(scale):
    X = np.random.default_rng(0).choice([-1.0, 1.0, 2.0], (60, 8)).astype(np.float32)
    index = built(X, "cosine")
    tiny = X[:9] * np.float32(scale)
    small = built(tiny, "cosine")
    for a, b in zip(index.search(tiny, 5), index.search(tiny / np.float32(scale), 5)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert (small.search(X[:9], 1)[1] < 1e-6).all()
    np.testing.assert_allclose(small.get(np.arange(9)), tiny, rtol=1e-6, atol=3e-45)


def test_cosine_gives_vectors_back_as_they_came():
    X = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32) * 30
    np.testing.assert_allclose(built(X, "cosine").get(np.arange(50)), X, rtol=1e-6)
