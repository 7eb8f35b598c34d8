"""Files: a round trip loses nothing; whatever is wrong with a file, the error says what and names the file."""

import json
import math
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from vector_sets import grid

from hnsw import FileError, Index
from hnsw.simple import METRICS, draw_levels
from hnsw.storage import PREFIX


def busy(metric="l2", n=300):
    """An index that has seen adding, replacing, deleting and compacting."""
    X = grid(n, 7, metric)
    index = Index(X.shape[1], metric, 5, 30, seed=4)
    index.add(X)
    index.add(X[:90] + 1, ids=np.arange(90))
    index.delete(np.arange(100, 140))
    index.compact()
    index.delete([200, 201])
    index.add(X[:10] + 2)
    index.ef = 77
    return index, X


def same(a, b, X):
    assert b.ef == a.ef and len(a) == len(b) and np.array_equal(a.ids, b.ids)
    for x, y in zip(a.search(X, 7), b.search(X, 7)):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("way", ["load", "mmap", "pickle"])
def test_round_trip(tmp_path, metric, way):
    index, X = busy(metric)
    path = tmp_path / "a.hnsw"
    index.save(path)
    again = pickle.loads(pickle.dumps(index)) if way == "pickle" else Index.load(path, mmap=way == "mmap")
    same(index, again, X)
    # and both go on alike: the sampler's state, the free places and the next id are kept
    for i in (index, again):
        i.undelete([200])
        i.add(X[:50] + 3)
        i.delete([50])
        i.check()
    same(index, again, X)
    same(Index.load(path), Index.load(path), X)  # what mmap changed is not in the file


def test_empty_index_round_trip(tmp_path):
    index = Index(3, "cosine")
    index.save(tmp_path / "empty")
    again = Index.load(tmp_path / "empty", mmap=True)
    again.add([1, 2, 3])
    assert again.search([1, 2, 3], 1)[0].tolist() == [[0]]


def test_a_file_of_another_kind_is_refused(tmp_path):
    index, _ = busy()
    path = tmp_path / "a.hnsw"
    index.save(path)
    with pytest.raises(FileError, match=r"a\.hnsw: the file has dim 7, not 8"):
        Index.load(path, dim=8)
    with pytest.raises(FileError, match="metric 'l2', not 'ip'"):
        Index.load(path, metric="ip")
    for content, message in (
        (b"", "empty|cut short"),
        (b"\x80\x04K\x01.", "not an hnsw index"),
        (b"x" * 500, "not an hnsw index"),
        (b"HNSWIDX\n" + b"\0" * 3, "cut short"),
    ):
        path.write_bytes(content)
        for mmap in (False, True):
            with pytest.raises(FileError, match=message):
                Index.load(path, mmap=mmap)
    with pytest.raises(FileNotFoundError):
        Index.load(tmp_path / "absent")


@pytest.mark.parametrize("mmap", [False, True])
def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path, mmap):
    index, X = busy(n=210)
    path = tmp_path / "a.hnsw"
    index.save(path)
    whole = path.read_bytes()
    header = json.loads(whole[PREFIX.size :][: PREFIX.unpack(whole[: PREFIX.size])[2]])
    inside = np.zeros(len(whole), dtype=bool)  # what is neither padding nor, with mmap, vectors
    inside[: PREFIX.size + PREFIX.unpack(whole[: PREFIX.size])[2]] = True
    for array in header["arrays"]:
        size = int(np.prod(array["shape"])) * np.dtype(array["dtype"]).itemsize
        inside[array["offset"] : array["offset"] + size] = not (mmap and array["name"] == "vectors")
    rng = np.random.default_rng(0)
    for length in [*range(0, 100, 9), *rng.integers(0, len(whole), 40)]:
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            Index.load(path, mmap=mmap)
    for place in [*range(PREFIX.size), *rng.choice(np.flatnonzero(inside), 150)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(FileError):
            Index.load(path, mmap=mmap)
    path.write_bytes(whole + b"more")
    with pytest.raises(FileError, match="4 bytes follow"):
        Index.load(path, mmap=mmap)


def rewritten(whole, change):
    """The file with a changed header and right checksums, as somebody hostile would write it."""
    length = PREFIX.unpack(whole[: PREFIX.size])[2]
    header = json.loads(whole[PREFIX.size : PREFIX.size + length])
    body = bytearray(whole)
    change(header, body)
    for array in header["arrays"]:
        size = int(np.prod(array["shape"])) * int(array["dtype"][2:])
        array["crc32"] = zlib.crc32(bytes(body[array["offset"] : array["offset"] + size]))
    text = json.dumps(header).encode()
    first = min((array["offset"] for array in header["arrays"]), default=len(whole))
    assert PREFIX.size + len(text) <= first
    body[: PREFIX.size + len(text)] = PREFIX.pack(b"HNSWIDX\n", 1, len(text), zlib.crc32(text)) + text
    return bytes(body)


def put(**values):
    return lambda header, body: header.update(values)


def poke(name, row, value, code, width=1):
    """Overwrite the first value of `row` of the array `name`, whose rows have `width` values."""

    def change(header, body):
        offset = next(array["offset"] for array in header["arrays"] if array["name"] == name)
        struct.pack_into("<" + code, body, offset + row * width * struct.calcsize(code), value)

    return change


LIES = {
    "link beyond the end": lambda tall, flat: poke("links0", 3, 10**6, "i", 10),
    "link far beyond the end": lambda tall, flat: poke("links0", 3, 2**31 - 1, "i", 10),
    "link to itself": lambda tall, flat: poke("links0", 3, 3, "i", 10),
    "gap in the links": lambda tall, flat: poke("links0", 3, -1, "i", 10),
    "upper link to a node that is not there": lambda tall, flat: poke("upper", 0, flat, "i", 5),
    "level above the top": lambda tall, flat: poke("levels", 3, 100, "b"),
    "negative level": lambda tall, flat: poke("levels", 3, -3, "b"),
    "offset beyond the end": lambda tall, flat: poke("offsets", tall, 10**6, "i"),
    "negative offset": lambda tall, flat: poke("offsets", tall, -7, "i"),
    "unknown state": lambda tall, flat: poke("state", 5, 9, "B"),
    "entry beyond the end": lambda tall, flat: put(entry=10**9),
    "no entry": lambda tall, flat: put(entry=-1),
    "top too low": lambda tall, flat: put(top=0),
    "top too high": lambda tall, flat: put(top=60),
    "an id twice": lambda tall, flat: poke("labels", 3, 4, "q"),
    "a negative id": lambda tall, flat: poke("labels", 3, -4, "q"),
    "another kind": lambda tall, flat: put(kind="BFIndex"),
    "other dim": lambda tall, flat: put(dim=100),
    "dim is text": lambda tall, flat: put(dim="7"),
    "other M": lambda tall, flat: put(M=6),
    "other metric": lambda tall, flat: put(metric="cosine"),
    "no ef": lambda tall, flat: put(ef=None),
    "another generator": lambda tall, flat: put(rng={"bit_generator": "os.system"}),
    "no generator": lambda tall, flat: put(rng=None),
    "no arrays": lambda tall, flat: put(arrays=[]),
    "no seed": lambda tall, flat: lambda header, body: header.pop("seed"),
    "an array less": lambda tall, flat: lambda header, body: header["arrays"].pop(0),
    "an array cut": lambda tall, flat: lambda header, body: header["arrays"][0].update(shape=[299, 16]),
    "an array of objects": lambda tall, flat: lambda header, body: header["arrays"][0].update(dtype="|O8"),
    "an array elsewhere": lambda tall, flat: lambda header, body: header["arrays"][0].update(offset=64 * 10**6),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of an index of 300 nodes, a node above layer 0 and one that is not."""
    index = Index(7, "l2", 5, 30)
    index.add(grid(300, 7, "l2"))
    path = tmp_path_factory.mktemp("plain") / "a.hnsw"
    index.save(path)
    levels = index._graph.levels[:300]
    return path.read_bytes(), int(np.flatnonzero(levels)[0]), int(np.flatnonzero(levels == 0)[0])


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_well_formed_lie_is_refused(tmp_path, plain, lie, mmap):
    whole, *nodes = plain
    path = tmp_path / "a.hnsw"
    path.write_bytes(rewritten(whole, LIES[lie](*nodes)))
    with pytest.raises(FileError, match="a.hnsw"):
        Index.load(path, mmap=mmap)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    index, X = busy()
    path = tmp_path / "a.hnsw"
    index.save(path)
    before = path.read_bytes()
    index.add(X)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        index.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.hnsw"]


def test_the_same_index_writes_the_same_bytes(tmp_path):
    for name in "ab":
        busy()[0].save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_written_before_the_levels_had_their_own_stream_loads_and_goes_on():
    # 20 vectors, M 2, seed 4, id 3 deleted; its levels came from default_rng(4), whose state the file holds
    X = (np.arange(40).reshape(20, 2) * 7 % 50).astype(np.float32)
    index = Index.load(Path(__file__).parent / "data" / "version_1.hnsw", dim=2, metric="l2")
    live = [id for id in range(20) if id != 3]
    assert (index.M, index.ef_construction, index.seed, index.ids.tolist()) == (2, 20, 4, live)
    assert np.array_equal(index.get(live), X[live])
    _, distances = index.search(X, 5, ef=20)
    assert np.array_equal(distances, np.sort(((X[:, None] - X[live]) ** 2).sum(-1))[:, :5])
    index.add(X[:10] + 1)
    index.check()
    drawn = draw_levels(np.random.default_rng(4), 30, 1 / math.log(2))
    assert [len(index.links(id)) - 1 for id in index.ids] == np.delete(drawn, 3).tolist()
