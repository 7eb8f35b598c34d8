"""hnswlib's interface: what its own tests check, on both libraries at once; and its edges, which are errors here."""

import inspect
import pickle
import re
import threading

import hnswlib
import numpy as np
import pytest
from vector_sets import exact, recall

from hnsw import compat
from hnsw.simple import METRICS

LIBRARIES = pytest.mark.parametrize("library", [hnswlib, compat], ids=["hnswlib", "ours"])


def data(n, dim=16, seed=0):
    return np.random.default_rng(seed).random((n, dim), dtype=np.float32)


def made(library, X, space="l2", room=None, ef=100, **settings):
    index = library.Index(space=space, dim=X.shape[1])
    index.init_index(max_elements=len(X) if room is None else room, **{"ef_construction": 100, "M": 16, **settings})
    index.set_ef(ef)
    index.set_num_threads(2)
    index.add_items(X)
    return index


def names(c):
    return {n for n in dir(c) if not n.startswith("_")}


def test_nothing_of_hnswlib_is_missing():
    assert names(hnswlib.Index) <= names(compat.Index("l2", 4)) | {"M"}
    assert names(hnswlib.BFIndex) <= names(compat.BFIndex("l2", 4))


@pytest.mark.parametrize("kind", ["Index", "BFIndex"])
def test_arguments_have_hnswlibs_names_order_and_defaults(kind):
    theirs, ours = getattr(hnswlib, kind), getattr(compat, kind)
    for name in names(theirs):
        signature = getattr(getattr(theirs, name), "__doc__", "") or ""
        listed = re.findall(r"(\w+): [^,=]+?(?: = ([^,)]+))?(?=[,)])", signature.split("\n")[0].partition("(")[2])
        if not listed or not callable(getattr(ours, name, None)):
            continue
        parameters = list(inspect.signature(getattr(ours, name)).parameters.values())[1:]
        assert [p.name for p in parameters] == [n for n, _ in listed if n != "self"], name
        for parameter, (_, default) in zip(parameters, listed[1:]):
            if default:
                assert repr(parameter.default) == default, (name, parameter)


@LIBRARIES
def test_attributes(library):
    index = library.Index("l2", 16)
    assert (index.space, index.dim, index.ef, index.max_elements, index.element_count) == ("l2", 16, 10, 0, 0)
    index.init_index(500, ef_construction=90, M=12)
    index.add_items(data(300))
    assert (index.M, index.ef_construction, index.max_elements, index.element_count) == (12, 90, 500, 300)
    assert (index.get_max_elements(), index.get_current_count()) == (500, 300)
    index.ef = 33
    index.num_threads = 3
    assert index.ef == 33 and index.num_threads == 3
    assert index.index_file_size() > 300 * 16 * 4
    assert "l2" in repr(index) and "16" in repr(index)


@LIBRARIES
@pytest.mark.parametrize("space", METRICS)
def test_distances_of_a_small_known_set(library, space):
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]])
    expected = {"l2": [0, 1, 2, 2, 2], "ip": [-2, -1, 0, 0, 0], "cosine": [0, 1 - 2 / 6**0.5] + 3 * [1 - 1 / 3**0.5]}
    for before, after in ((0, 0), (1, 1), (5, 20), (16, 13), (31, 97)):
        X = np.pad(points, ((0, 0), (before, after)))
        labels, distances = made(library, X, space, ef=10).knn_query(X[-1:], k=5)
        np.testing.assert_allclose(distances, [expected[space]], atol=1e-6)
        assert labels.dtype == np.uint64 and distances.dtype == np.float32 and labels[0, 0] == 4


@LIBRARIES
def test_every_point_finds_itself_before_and_after_saving_and_growing(library, tmp_path):
    X, path = data(3000), str(tmp_path / "half.bin")
    index = made(library, X[:1500])
    labels, _ = index.knn_query(X[:1500], k=1)
    assert (labels[:, 0] == np.arange(1500)).mean() > 0.998
    np.testing.assert_allclose(index.get_items(labels[:, 0]), X[:1500], atol=1e-4)
    index.save_index(path)
    index = library.Index("l2", 16)
    index.load_index(path, max_elements=3000)
    index.set_ef(100)
    index.add_items(X[1500:])
    assert (index.knn_query(X, k=1)[0][:, 0] == np.arange(3000)).mean() > 0.998
    assert sorted(index.get_ids_list()) == list(range(3000))


@LIBRARIES
def test_deleted_labels_stay_away_until_unmarked(library, tmp_path):
    X, path = data(2000), str(tmp_path / "deleted.bin")
    index = made(library, X)
    for label in range(1000):
        index.mark_deleted(label)
    assert index.knn_query(X[:1000], k=1)[0].min() >= 1000
    assert (index.knn_query(X[1000:], k=1)[0][:, 0] == np.arange(1000, 2000)).mean() > 0.998
    assert index.get_current_count() == 2000
    index.save_index(path)
    index = library.Index("l2", 16)
    index.load_index(path)
    index.set_ef(100)
    assert index.knn_query(X[:1000], k=1)[0].min() >= 1000
    for label in range(1000):
        index.unmark_deleted(label)
    assert (index.knn_query(X[:1000], k=1)[0][:, 0] == np.arange(1000)).mean() > 0.998


@LIBRARIES
def test_marking_twice_or_unknown_labels_is_an_error(library):
    index = made(library, data(10))
    index.mark_deleted(3)
    for call in (
        lambda: index.mark_deleted(3),
        lambda: index.unmark_deleted(4),
        lambda: index.mark_deleted(77),
        lambda: index.get_items([77]),
        lambda: index.get_items([3]),
    ):
        with pytest.raises(RuntimeError):
            call()


@LIBRARIES
def test_replacing_deleted_elements(library, tmp_path):
    X, path = data(4000), str(tmp_path / "index.bin")
    index = made(library, X[:2000], allow_replace_deleted=True)
    for label in range(1000, 2000):
        index.mark_deleted(label)
    with pytest.raises(RuntimeError):
        index.add_items(X[2000:2001], [2000])  # full
    index.add_items(X[2000:3000], np.arange(2000, 3000), replace_deleted=True)
    assert index.get_current_count() == 2000
    assert np.array_equal(index.get_items(np.arange(1000)), X[:1000])
    assert np.array_equal(index.get_items(np.arange(2000, 3000)), X[2000:3000])
    for label in range(2000, 3000):
        index.mark_deleted(label)
    index.save_index(path)
    index = library.Index("l2", 16)
    index.load_index(path, max_elements=2000, allow_replace_deleted=True)
    index.set_ef(100)
    index = pickle.loads(pickle.dumps(index))
    index.add_items(X[3000:], np.arange(3000, 4000), replace_deleted=True)
    assert (index.knn_query(X[3000:], k=1)[0][:, 0] == np.arange(3000, 4000)).mean() > 0.98
    plain = made(library, X[:10])
    with pytest.raises(RuntimeError):
        plain.add_items(X[:1], replace_deleted=True)


@LIBRARIES
def test_recall_after_replacing_is_that_of_a_new_index(library):
    X, Q = data(4500), data(200, seed=9)
    index = made(library, X[:3000], allow_replace_deleted=True, M=8)
    for label in range(1500, 3000):
        index.mark_deleted(label)
    index.add_items(X[3000:], np.arange(3000, 4500), replace_deleted=True)
    kept = np.r_[0:1500, 3000:4500]
    truth = kept[exact(X[kept], Q, 10)]
    assert recall(index.knn_query(Q, 10)[0], truth) > 0.97


@LIBRARIES
def test_filters(library):
    X = data(3000)
    index, brute = made(library, X), library.BFIndex("l2", 16)
    brute.init_index(3000)
    brute.add_items(X)
    even = lambda label: label % 2 == 0  # noqa: E731
    for found in (index.knn_query(X, k=1, num_threads=1, filter=even)[0], brute.knn_query(X, k=1, filter=even)[0]):
        assert (found % 2 == 0).all()
        assert (found[:, 0] == np.arange(3000)).mean() == pytest.approx(0.5, abs=1e-3)


@LIBRARIES
@pytest.mark.parametrize("space", METRICS)
def test_brute_force(library, space, tmp_path):
    X, Q, path = data(500, 9) + 0.1, data(40, 9, 1) + 0.1, str(tmp_path / "bf.bin")
    index = library.BFIndex(space, 9)
    index.init_index(600)
    index.add_items(X)
    assert recall(index.knn_query(Q, k=10)[0], exact(X, Q, 10, space)) > 0.999
    index.delete_vector(7)
    assert index.get_current_count() == 499 and index.get_max_elements() == 600
    assert (index.knn_query(X[7], k=3)[0] != 7).all()
    index.add_items(X[:1], [900])
    index.save_index(path)
    again = library.BFIndex(space, 9)
    again.load_index(path, 700)
    for a, b in zip(index.knn_query(Q, k=5), again.knn_query(Q, k=5)):
        assert np.array_equal(a, b)


@LIBRARIES
@pytest.mark.parametrize("space", METRICS)
def test_pickles_before_and_after_initialising_and_filling(library, space):
    X, Q = data(600, 20), data(50, 20, 1)
    index = library.Index(space, 20)
    index.num_threads = 2
    bare = pickle.loads(pickle.dumps(index))
    for i in (index, bare):
        i.init_index(600, 16, 150)
        i.ef = 300
    empty = pickle.loads(pickle.dumps(index))
    for i in (index, bare, empty):
        i.add_items(X, num_threads=1)
    full = pickle.loads(pickle.dumps(index))
    truth = exact(X, Q, 10, space)
    for i in (index, bare, empty, full):
        assert (i.M, i.ef_construction, i.ef, i.num_threads, i.space) == (16, 150, 300, 2, space)
        assert recall(i.knn_query(Q, 10)[0], truth) > 0.95  # hnswlib itself: .962 under ip
        np.testing.assert_allclose(i.get_items(np.arange(600)), index.get_items(np.arange(600)))
        np.testing.assert_allclose(i.knn_query(Q, 10)[1], index.knn_query(Q, 10)[1], atol=1e-4)


@LIBRARIES
def test_getting_items(library):
    X = data(200)
    index = library.Index("l2", 16)
    index.init_index(200)
    with pytest.raises(RuntimeError):
        index.get_items([0])
    index.add_items(X, np.arange(200) + 5)
    with pytest.raises(ValueError):
        index.get_items(5)
    with pytest.raises(ValueError):
        index.get_items([5], return_type="dict")
    assert np.array_equal(index.get_items(np.arange(200) + 5), X)
    assert index.get_items([5, 6], return_type="list") == X[:2].tolist()


@LIBRARIES
def test_resizing(library):
    X = data(900)
    index = made(library, X[:300])
    with pytest.raises(RuntimeError):
        index.add_items(X[300:])
    with pytest.raises(RuntimeError):
        index.resize_index(200)
    index.resize_index(900)
    index.add_items(X[300:])
    assert index.get_max_elements() == 900
    assert (index.knn_query(X, k=1)[0][:, 0] == np.arange(900)).mean() > 0.998


@LIBRARIES
def test_adding_and_replacing_from_many_threads(library):
    X = data(1600)
    index = library.Index("l2", 16)
    index.init_index(800, allow_replace_deleted=True)
    index.set_ef(100)

    def each(work, items):
        threads = [
            threading.Thread(target=lambda part=part: [work(i) for i in part]) for part in np.array_split(items, 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    each(lambda i: index.add_items(X[i : i + 1], [i]), np.arange(800))
    each(lambda i: index.mark_deleted(i), np.arange(0, 800, 2))
    each(lambda i: index.add_items(X[i : i + 1], [i], replace_deleted=True), np.arange(800, 1200))
    assert index.get_current_count() == 800
    assert (index.knn_query(X[800:1200], k=1)[0][:, 0] == np.arange(800, 1200)).mean() > 0.98


@pytest.mark.parametrize("space", METRICS)
def test_recall_is_hnswlibs(space):
    X, Q = data(3000, 24), data(300, 24, 1)
    truth = exact(X, Q, 10, space)
    for ef in (10, 40, 120):
        theirs, ours = (
            recall(made(library, X, space, ef=ef).knn_query(Q, 10)[0], truth) for library in (hnswlib, compat)
        )
        assert ours > theirs - 0.01, ef


@LIBRARIES
@pytest.mark.parametrize("threads", [0, -3, 1, 50])
def test_any_number_of_threads(library, threads):
    X = data(600)
    index = library.Index("l2", 16)
    index.init_index(600)
    index.set_num_threads(threads)
    index.add_items(X)
    index.set_ef(100)
    for found in (index.knn_query(X, k=1), index.knn_query(X, k=1, num_threads=threads)):
        assert (found[0][:, 0] == np.arange(600)).mean() > 0.995


@LIBRARIES
def test_labels_and_items_may_be_what_a_query_returned(library):
    X = data(2000)
    index = made(library, X, ef=10)
    labels, _ = index.knn_query(X, k=1)
    assert (labels[:, 0] == np.arange(2000)).mean() > 0.99
    assert np.abs(index.get_items(labels) - X).mean() < 1e-3  # (n, 1)
    for label in set(labels[:5].flatten()):  # numpy's integers
        index.mark_deleted(label)
    assert not np.isin(index.knn_query(X[:5], k=1)[0], labels[:5]).any()
    again = pickle.loads(pickle.dumps(index))
    assert not np.isin(again.knn_query(X[:5], k=1)[0], labels[:5]).any()


@LIBRARIES
def test_saving_unfilled_room_keeps_it(library, tmp_path):
    X, path = data(400), str(tmp_path / "room.bin")
    index = made(library, X[:200], room=400)
    index.save_index(path)
    again = library.Index("l2", 16)
    again.load_index(path)
    again.add_items(X[200:])
    again.set_ef(100)
    for asked, room in ((0, 400), (100, 400), (300, 300), (900, 900)):  # too small is the file's own
        other = library.Index("l2", 16)
        other.load_index(path, max_elements=asked)
        assert other.max_elements == room
    assert (again.knn_query(X, k=1)[0][:, 0] == np.arange(400)).mean() > 0.995


@LIBRARIES
def test_a_subclass_may_override_what_it_likes(library):
    class Lazy(library.Index):
        """Initialises itself with the first items; its methods call each other's bases."""

        def add_items(self, data, ids=None, num_threads=-1):
            if self.max_elements == 0:
                super().init_index(100)
            return super().add_items(data, ids, num_threads)

        def get_current_count(self):
            return self.element_count

        def get_max_elements(self):
            return self.max_elements

        def set_ef(self, ef):
            super().set_ef(ef)

    index = Lazy("l2", 16)
    index.add_items(data(60))
    index.set_ef(70)
    assert index.get_current_count() == 60 and index.get_max_elements() == 100 and index.ef == 70
    assert (index.knn_query(data(60), k=1)[0][:, 0] == np.arange(60)).all()


@LIBRARIES
def test_a_copy_by_the_constructor(library):
    X = data(200)
    index = made(library, X, room=300, ef=44)
    again = library.Index(index)
    again.mark_deleted(0)
    assert (again.space, again.dim, again.max_elements, again.ef) == ("l2", 16, 300, 44)
    assert index.knn_query(X[:1], k=1)[0].tolist() == [[0]] and again.knn_query(X[:1], k=1)[0].tolist() != [[0]]


@LIBRARIES
def test_space_and_dimension_are_fixed(library):
    index = library.Index("l2", 16)
    for name, value in (("space", "ip"), ("dim", 3)):
        with pytest.raises(AttributeError):
            setattr(index, name, value)


@LIBRARIES
def test_labels_may_be_one_number_or_whole_floats(library):
    X = data(5)
    index = library.Index("l2", 16)
    index.init_index(9)
    index.add_items(X[0], 7)
    index.add_items(X[1:3], np.array([3.0, 4.0]))
    with pytest.raises(RuntimeError):
        index.add_items(X[:3], [1, 2])
    assert sorted(index.get_ids_list()) == [3, 4, 7]
    assert np.array_equal(index.get_items([7, 4]), X[[0, 2]])


# What crashes hnswlib, or passes in silence.


def test_edges_are_errors_with_reasons(tmp_path):
    X, path = data(20, 4), str(tmp_path / "a.bin")
    bare = compat.Index("l2", 4)
    for call in (
        lambda: bare.knn_query(X),
        lambda: bare.add_items(X),
        lambda: bare.save_index(path),
        lambda: bare.get_items(),
    ):
        with pytest.raises(RuntimeError, match="init_index"):
            call()
    for m in (0, 1):
        with pytest.raises(ValueError, match="M must be at least 2"):
            compat.Index("l2", 4).init_index(10, M=m)
    with pytest.raises(RuntimeError, match="space must be one of"):
        compat.Index("l1", 4)
    index = made(compat, X, "cosine", room=30, ef=17)
    index.save_index(path)
    for call, error, message in (
        (lambda: index.knn_query(X[:, :3]), RuntimeError, r"shape \(n, 4\)"),
        (lambda: index.add_items(X[:, :3]), RuntimeError, r"shape \(n, 4\)"),
        (lambda: index.add_items([[1, 2, 3, np.nan]]), ValueError, "row 0 has NaN"),
        (lambda: index.add_items(np.zeros((1, 4))), ValueError, "no direction"),
        (lambda: index.add_items(X[:2], [8, 8]), ValueError, "8 is there twice"),
        (lambda: index.add_items(X[:2], [-8, 8]), ValueError, "ids must be from 0"),
        (lambda: index.knn_query(X, k=21), RuntimeError, "query 0 has 20 results, not k=21"),
        (lambda: index.knn_query(X, k=3, filter=lambda label: label < 2), RuntimeError, "has 2 results, not k=3"),
        (lambda: compat.Index("cosine", 5).load_index(path), ValueError, "dim 4, not 5"),
        (lambda: compat.Index("l2", 4).load_index(path), ValueError, "metric 'cosine', not 'l2'"),
        (lambda: compat.Index("l2", 4).load_index(path + "x"), RuntimeError, "cannot open"),
        (lambda: index.set_ef(0), ValueError, "ef must"),
        (lambda: index.init_index(5), RuntimeError, "already"),
    ):
        with pytest.raises(error, match=message):
            call()
    np.testing.assert_allclose(index.get_items(), X, rtol=1e-6)
    again = compat.Index("cosine", 4)
    again.load_index(path)
    assert again.ef == 17 and again.max_elements == 30
    for label in range(20):
        index.mark_deleted(label)
    with pytest.raises(RuntimeError, match="query 0 has 0 results"):
        index.knn_query(X)


def test_a_filter_may_be_a_mask_or_labels():
    X = data(300)
    index = made(compat, X)
    mask = np.arange(300) % 3 == 0
    expected = index.knn_query(X, k=4, filter=lambda label: label % 3 == 0)
    for filter in (mask, np.flatnonzero(mask)):
        for a, b in zip(index.knn_query(X, k=4, filter=filter), expected):
            assert np.array_equal(a, b)


def test_a_file_of_the_other_class_is_refused(tmp_path):
    path = str(tmp_path / "bf.bin")
    brute = compat.BFIndex("l2", 16)
    brute.init_index(20)
    brute.add_items(data(20))
    brute.save_index(path)
    with pytest.raises(ValueError, match=r"bf\.bin: the file is of kind 'BFIndex', not 'Index'"):
        compat.Index("l2", 16).load_index(path)
    made(compat, data(20)).save_index(path)
    with pytest.raises(ValueError, match="kind 'Index', not 'BFIndex'"):
        compat.BFIndex("l2", 16).load_index(path)


def test_a_foreign_hnswlib_file_is_refused(tmp_path):
    path = str(tmp_path / "theirs.bin")
    made(hnswlib, data(20)).save_index(path)
    with pytest.raises(ValueError, match=r"theirs\.bin: not an hnsw index"):
        compat.Index("l2", 16).load_index(path)
