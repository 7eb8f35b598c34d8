"""`Index`: the public, compiled index. `core.py` does the work, this file checks, allocates and spreads it."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from tqdm import tqdm

from . import core, storage
from .simple import (
    METRICS,
    HNSWSimple,
    as_float32,
    check_integer,
    check_metric,
    check_vectors,
    default_batch,
    draw_levels,
    level_generator,
    unit_length,
)

INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)  # np.empty converts a class to its dtype in each call
MAX_SLOTS = 2**31 - 1
MOST_THREADS = 256  # that a call is spread over: more would only cost memory
MAX_ID = 2**63 - 1


class Index:
    """Approximate nearest neighbours of float32 vectors, by HNSW.

    Args:
        dim: length of the vectors.
        metric: "l2" (squared distance), "ip" (1 - dot product) or "cosine" (1 - cosine).
        M: links that a new node makes on each layer; it keeps at most M on the upper layers and 2 M on layer 0.
        ef_construction: candidates that an insertion looks at.
        seed: seed of the level sampler. The same calls with the same seed give the same graph, for any number of
            threads, and the graph that `HNSWSimple` builds.
        keep_pruned: fill a new node's M links with the nearest candidates that algorithm 4 discarded.
        ef_upper: candidates on layers 2 and up, on the way down. The paper has 1, which loses its way among many tight
            clusters; a few cost little, as these layers have few nodes.
        num_threads: threads for `add` and `search`; None is all that the process may run on.

    `ef`, an attribute (50), is how many candidates a search keeps where the call does not say.

    Searches may run in several threads at once, and beside one `add`, whose nodes they may or may not see.
    """

    def __init__(
        self,
        dim: int,
        metric: str = "l2",
        M: int = 16,
        ef_construction: int = 200,
        seed: int = 0,
        *,
        keep_pruned: bool = True,
        ef_upper: int = 4,
        num_threads: int | None = None,
    ):
        self.dim = check_integer("dim", dim, 1)
        self.metric = check_metric(metric)
        self.M = check_integer("M", M, 2)
        self.ef_construction = check_integer("ef_construction", ef_construction, 1)
        self.seed = check_integer("seed", seed, 0)
        self.keep_pruned = bool(keep_pruned)
        self.ef_upper = check_integer("ef_upper", ef_upper, 1)
        self.num_threads = num_threads
        self.ef = 50
        self._rng = level_generator(self.seed)
        self._metric = METRICS.index(metric)
        self._columns = -(-dim // core.LINE) * core.LINE
        self._entry, self._top = -1, -1
        self._used = 0  # slots [:_used] are or were nodes
        self._rows = 0  # rows of `upper` in use
        self._next_id = 0
        self._free: list[int] = []  # FREE slots, largest first
        self._counts = [0, 0, 0, 0]  # slots by state; Python's integers, for the sake of single queries
        self._graph = self._allocate(0, 0)
        self._norms = np.empty(0, dtype=np.float32)  # lengths of the vectors as given, cosine only
        self._table: np.ndarray | None = None  # slots by id, where ids are not simply the slots
        self._table_taken = 0
        self._start_runtime()

    def _start_runtime(self) -> None:
        """What a pickle or a file does not carry."""
        self._lock = threading.RLock()
        self._scratches: list[core.Scratch] = []
        self._allowed: np.ndarray | None = None

    @property
    def ef(self) -> int:
        """Candidates of a search whose call does not say."""
        return self._ef

    @ef.setter
    def ef(self, ef: int) -> None:
        self._ef = check_integer("ef", ef, 1)

    @property
    def num_threads(self) -> int | None:
        """Threads for `add` and `search`; None is all that the process may run on."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, num_threads: int | None) -> None:
        self._num_threads = num_threads if num_threads is None else check_integer("num_threads", num_threads, 1)

    # Contents

    def __len__(self) -> int:
        """How many vectors a search can return."""
        return self._counts[core.LIVE]

    def __contains__(self, id: int) -> bool:
        if isinstance(id, bool) or not isinstance(id, (int, np.integer)) or not 0 <= id <= MAX_ID:
            return False
        slot = self._find(np.array([id], dtype=np.int64))[0]
        return slot >= 0 and self._graph.state[slot] == core.LIVE

    def __repr__(self) -> str:
        return (
            f"Index(dim={self.dim}, metric={self.metric!r}, M={self.M}, ef_construction={self.ef_construction}, "
            f"seed={self.seed}): {len(self)} vectors, {self.deleted_count} deleted"
        )

    @property
    def deleted_count(self) -> int:
        """How many vectors are deleted and could be undeleted."""
        return self._counts[core.DELETED]

    @property
    def ids(self) -> np.ndarray:
        """The ids that a search can return, int64, in the order of their slots."""
        used, g = self._used, self._graph  # in this order: beside an `add`, the graph has room for all that is used
        return g.labels[:used][g.state[:used] == core.LIVE]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in use (spare room that was reserved but never touched is not resident)."""
        n, g = self._used, self._graph
        rows = [g.vectors[:n], g.links0[:n], g.upper[: self._rows], g.offsets[:n], g.levels[:n], g.state[:n]]
        rows += [g.labels[:n], self._norms[: n if self.metric == "cosine" else 0]]
        return sum(a.nbytes for a in rows) + (0 if self._table is None else self._table.nbytes)

    # Adding

    def add(
        self,
        X: np.ndarray,
        ids: np.ndarray | None = None,
        *,
        batch_size: int | None = None,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Insert vectors `X` (n, dim) or (dim,); return their ids, int64 (n,).

        `ids` are distinct integers, 0 or more; those in use get the new vector. None takes the next free numbers.
        `batch_size=1` inserts one by one, as the paper does; None takes batches of 1/64 of the graph, at most 256,
        whose searches run side by side (`simple.default_batch`). `progress`: None shows a bar after two seconds, True
        at once, False never.

        Raises ValueError (shape, values, ids) or TypeError before anything has changed. A call that is interrupted
        keeps the vectors that it has inserted; ids that it would have replaced later are gone.
        """
        X = check_vectors(X, self.dim, "X")
        norms = None
        if self.metric == "cosine":
            X, norms = unit_length(X, "X")
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        threads = self._threads(num_threads)
        with self._lock:
            if ids is None and self._next_id + len(X) > MAX_ID + 1:
                raise ValueError(f"no numbers are free after id {self._next_id - 1}: give ids")
            if ids is None:
                new_ids = self._next_id + np.arange(len(X))
            else:
                new_ids = check_ids(ids, len(X))
            old = self._find(new_ids)
            replaced = int((old >= 0).sum())
            if self._used - len(self._free) + len(X) > MAX_SLOTS:
                raise ValueError(f"an index holds at most {MAX_SLOTS} vectors")
            if not len(X):
                return new_ids
            levels = draw_levels(self._rng, len(X), 1 / math.log(self.M))
            bar = tqdm(
                total=len(X),
                desc="hnsw",
                unit="vector",
                disable=progress is False,
                delay=2 if progress is None else 0,
                leave=bool(progress),
            )
            try:
                self._set_state(old[old >= 0], core.RETIRED)
                if self._counts[core.RETIRED] * 5 > self._used - len(self._free):
                    self._repair(threads)
                self._reserve(len(X), int(levels.sum()))
                with bar:
                    self._insert_all(X, new_ids, levels, norms, batch_size, threads, bar)
            except BaseException:  # Ctrl-C, or no memory
                self._recount()
                self._repair(1)
                raise
            self._next_id = max(self._next_id, int(new_ids.max()) + 1)
            if replaced:
                self._allowed = None
        return new_ids

    def _insert_all(
        self,
        X: np.ndarray,
        new_ids: np.ndarray,
        levels: np.ndarray,
        norms: np.ndarray | None,
        batch_size: int | None,
        threads: int,
        bar: tqdm,
    ) -> None:
        """Insert `X` batch by batch."""
        start = 0
        while start < len(X):
            size = batch_size or default_batch(self._used - len(self._free))
            batch = levels[start : start + size]
            opens = np.flatnonzero(batch > self._top)
            # A node that opens a new top layer goes alone: those after it must find it.
            stop = start + (max(int(opens[0]), 1) if len(opens) else len(batch))
            part = slice(start, stop)
            self._insert(X[part], new_ids[part], levels[part], norms if norms is None else norms[part], threads)
            bar.update(stop - start)
            start = stop

    def _insert(
        self, X: np.ndarray, ids: np.ndarray, levels: np.ndarray, norms: np.ndarray | None, threads: int
    ) -> None:
        """Insert one batch. `_reserve` made room."""
        g, count = self._graph, len(X)
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = np.arange(self._used, self._used + count - len(reused), dtype=np.int32)
        slots = np.concatenate([np.array(reused, dtype=np.int32), fresh]) if reused else fresh
        self._used += len(fresh)
        where = slots if reused else slice(int(slots[0]), self._used)  # numpy is faster with the latter
        g.vectors[where, : self.dim] = X
        g.vectors[where, self.dim :] = 0
        if norms is not None:
            self._norms[where] = norms
        g.labels[where] = ids
        g.levels[where] = levels
        ends = np.cumsum(levels, dtype=np.int64)
        rows = int(ends[-1])
        g.offsets[where] = self._rows + ends - levels
        starts = ends - levels + np.arange(count)
        picks = np.full((rows + count, self.M), -1, dtype=np.int32)
        new_rows = slice(self._rows, self._rows + rows)
        self._rows += rows
        g.links0[where] = -1  # none yet
        g.upper[new_rows] = -1
        self._counts[core.FREE] -= len(reused)
        self._counts[core.RETIRED] += count
        g.state[where] = core.RETIRED  # until they are linked: an interrupted call is mended away
        top = self._top
        if top >= 0:
            # A node above the top layer has no neighbours there: search for it as if it ended at the top.
            g.levels[where] = np.minimum(levels, top)
            place = (g, self._metric, self._entry, top, slots, np.zeros(1, dtype=np.int64))
            # More candidates than nodes change nothing and would take room.
            ef_upper, ef = min(self.ef_upper, self._used), min(self.ef_construction, self._used)
            settings = (ef_upper, ef, self.keep_pruned, starts, picks)

            def find(part: int) -> None:
                with self._scratch() as scratch:
                    core.find_neighbours(*place, *settings, scratch)

            several = threads if count >= 16 else 1
            _run(find, several, several)
            g.levels[where] = levels
        g.links0[where, : self.M] = picks[starts]
        if rows:
            g.upper[new_rows] = np.delete(picks, starts, axis=0)
        if threads > 1 and count >= 32:
            _run(lambda part: core.link_back(g, self._metric, slots, starts, picks, part, threads), threads, threads)
        else:
            core.link_back(g, self._metric, slots, starts, picks, 0, 1)
        if levels[0] > top:
            self._entry, self._top = int(slots[0]), int(levels[0])
        g.state[where] = core.LIVE
        self._counts[core.RETIRED] -= count
        self._counts[core.LIVE] += count
        self._allowed = None
        if self._table is not None:
            self._table_taken += core.enter_slots(self._table, g.labels, g.state, slots)
        elif (slots != ids).any():
            self._build_table(len(g.labels))  # with room for all that `_reserve` expects

    # Searching

    def search(
        self,
        Q: np.ndarray,
        k: int = 10,
        ef: int | None = None,
        mask: np.ndarray | None = None,
        *,
        exact: bool = False,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest of each query: ids, int64 (n, k), and distances, float32 (n, k), nearest first.

        Rows are padded with -1 and inf where fewer than k exist. Q is (n, dim), or (dim,) for n = 1. A larger `ef`
        finds more of the true neighbours and takes longer; it is raised to k.

        `mask` says which ids may be returned: a boolean array indexed by id (longer than the largest id), the same
        (n, ids) for one mask a query, or an array of ids. A mask that allows few is searched exactly, and a query that
        finds fewer than it should is searched again exactly: k results come where k exist.

        `exact` compares each query with every vector that is allowed.
        """
        queries = self._queries(Q)
        k = check_integer("k", k, 1)
        ef = self._ef if ef is None else check_integer("ef", ef, 1)
        if len(queries) == 1 and mask is None and not exact and self._counts[core.LIVE] == self._used >= k:
            return self._search_one(queries, k, min(max(ef, k), self._used))
        threads = self._threads(num_threads)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        if mask is None:
            allowed = self._live() if exact or self._counts[core.LIVE] != self._used else None
            self._search(queries, k, ef, allowed, ids, distances, threads, exact)
        else:
            allowed = self._masked(mask, len(queries))
            if allowed.ndim == 1:
                self._search(queries, k, ef, allowed, ids, distances, threads, exact)
            else:
                for i in range(len(queries)):
                    one = slice(i, i + 1)
                    self._search(queries[one], k, ef, allowed[i], ids[one], distances[one], 1, exact, i)
        return ids, distances

    def _search_one(self, query: np.ndarray, k: int, ef: int) -> tuple[np.ndarray, np.ndarray]:
        """`_search` for one query of many vectors that are all live, where every microsecond counts."""
        ids, distances = np.empty((1, k), dtype=INT64), np.empty((1, k), dtype=FLOAT32)
        # In this order: beside an `add`, the graph may be newer than the entry point and the scratch newer than the
        # graph, and never the other way round.
        entry, top = self._entry, self._top
        graph = self._graph
        scratch = self._take_scratch()
        ef_upper = min(self.ef_upper, self._used)
        bad = core.search_one(*graph, *scratch, self._metric, entry, top, query, k, ef_upper, ef, ids, distances)
        self._scratches.append(scratch)
        if bad >= 0:
            self._complain(bad)
        if ids[0, k - 1] < 0:
            every = np.arange(self._used, dtype=np.int32)
            core.search_exact(self._graph, self._metric, query, 0, 1, k, every, ids, distances)
        return ids, distances

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        ef: int,
        allowed: np.ndarray | None,
        ids: np.ndarray,
        distances: np.ndarray,
        threads: int,
        exact: bool,
        row: int = 0,
    ) -> None:
        """Fill `ids` and `distances`. `row` is the number of queries[0], for messages."""
        count, used = len(queries), self._used
        exist = used if allowed is None else int(np.count_nonzero(allowed[:used]))
        k = min(k, exist)
        ef = min(max(ef, k), used)
        ef_upper = min(self.ef_upper, used)
        entry, top = self._entry, self._top  # before the graph, as in `_search_one`
        shared = (self._graph, self._metric)
        if k == 0:
            check = np.empty(self._columns, dtype=np.float32)
            for i in range(count):
                self._complain(-1 if core.load_query(self._metric, queries[i], check) else i, row)
            return
        slots = None
        if exact or allowed is not None and few(exist, ef, used):
            slots = np.flatnonzero(allowed[:used]).astype(np.int32)

            def work(first, last, scratch):
                return core.search_exact(*shared, queries, first, last, k, slots, ids, distances)

        else:
            shared += (entry, top, queries)
            if allowed is not None:
                allowed = _padded(allowed, len(self._graph.labels))

            def work(first, last, scratch):
                if allowed is None:
                    return core.search(*shared, first, last, k, ef_upper, ef, ids, distances, scratch)
                place = (first, last, k, ef_upper, ef, allowed, exist // 4)
                return core.search_allowed(*shared, *place, ids, distances, scratch)

        self._complain(self._spread(work, count, threads), row)
        if slots is None and (ids[:, k - 1] < 0).any():  # nodes that no walk reaches
            slots = (
                np.arange(used, dtype=np.int32) if allowed is None else np.flatnonzero(allowed[:used]).astype(np.int32)
            )
            for i in np.flatnonzero(ids[:, k - 1] < 0):
                core.search_exact(self._graph, self._metric, queries, i, i + 1, k, slots, ids, distances)

    def range_search(
        self, Q: np.ndarray, radius: float, ef: int | None = None, mask: np.ndarray | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each query, ids (int64) and distances (float32) of what lies within `radius`, nearest first.

        `radius` is in the units of the distances (squared, for l2) and included. The search starts with `ef`
        candidates and doubles them until they reach beyond the radius.
        """
        queries = self._queries(Q)
        radius = float(radius)
        if math.isnan(radius):
            raise ValueError("radius must be a number, not NaN")
        ef = self._ef if ef is None else check_integer("ef", ef, 1)
        allowed = self._live() if mask is None else self._masked(mask, len(queries))
        check = np.empty(self._columns, dtype=np.float32)
        found = []
        entry, top = self._entry, self._top  # before the graph, as in `_search_one`
        graph, used = self._graph, self._used
        ef, ef_upper = min(ef, max(used, 1)), min(self.ef_upper, max(used, 1))
        with self._scratch() as scratch:
            for i, query in enumerate(queries):
                self._complain(-1 if core.load_query(self._metric, query, check) else i)
                if entry < 0:
                    found.append((np.empty(0, np.int64), np.empty(0, np.float32)))
                    continue
                one = _padded(allowed if allowed.ndim == 1 else allowed[i], len(graph.labels))
                exist = int(np.count_nonzero(one))
                most = 0 if few(exist, ef, used) else exist // 4
                place = (graph, self._metric, entry, top, query, np.float32(radius))
                found.append(core.search_radius(*place, ef_upper, ef, one, most, scratch))
        return [ids for ids, _ in found], [distances for _, distances in found]

    # Changing

    def delete(self, ids: np.ndarray) -> None:
        """Take `ids` out of all results. They still route searches and can come back, until `compact`."""
        with self._lock:
            self._set_state(self._slots_of(ids, core.LIVE, "delete"), core.DELETED)

    def undelete(self, ids: np.ndarray) -> None:
        """Bring deleted `ids` back."""
        with self._lock:
            self._set_state(self._slots_of(ids, core.DELETED, "undelete"), core.LIVE)

    def compact(self, num_threads: int | None = None) -> None:
        """Forget deleted vectors for good, mend the links around them and free their places for new ones."""
        with self._lock:
            self._set_state(np.flatnonzero(self._graph.state[: self._used] == core.DELETED), core.RETIRED)
            self._repair(self._threads(num_threads))

    def get(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of `ids`, float32 (n, dim), as they were given (under cosine up to rounding).

        Raises KeyError for an id that is unknown or deleted.
        """
        slots = self._slots_of(ids, core.LIVE, "get")
        vectors = self._graph.vectors[slots, : self.dim]
        return vectors * self._norms[slots, None] if self.metric == "cosine" else vectors

    # Files

    def save(self, path: str | os.PathLike) -> None:
        """Write the index to `path`: to a new file beside it first, which then takes its place at once."""
        with self._lock:
            storage.write(Path(path), *self._parts())

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, dim: int | None = None, metric: str | None = None, mmap: bool = False
    ) -> Index:
        """Read an index that `save` wrote; a file of another `dim` or `metric` than asked for is refused.

        With `mmap` the vectors and links stay on disk until they are used, and are copied when they change. Raises
        `storage.FileError`, a ValueError, that names the file and what is wrong with it.
        """
        return cls._from_parts(*storage.read(Path(path), mmap=mmap), str(path), dim, metric)

    def __getstate__(self) -> dict:
        with self._lock:
            return {"file": storage.dump(*self._parts())}

    def __setstate__(self, state: dict) -> None:
        other = Index._from_parts(*storage.parse(state["file"], "pickle"), "pickle")
        self.__dict__.update(other.__dict__)

    def _parts(self) -> tuple[dict, dict[str, np.ndarray]]:
        n, g = self._used, self._graph
        header = {
            "dim": self.dim,
            "metric": self.metric,
            "M": self.M,
            "ef_construction": self.ef_construction,
            "seed": self.seed,
            "keep_pruned": self.keep_pruned,
            "ef_upper": self.ef_upper,
            "num_threads": self.num_threads,
            "ef": self.ef,
            "entry": self._entry,
            "top": self._top,
            "next_id": self._next_id,
            "rng": self._rng.bit_generator.state,
        }
        arrays = {name: getattr(g, name)[:n] for name in g._fields if name != "upper"}
        arrays["upper"] = g.upper[: self._rows]
        arrays["norms"] = self._norms[: n if self.metric == "cosine" else 0]
        return header, arrays

    @classmethod
    def _from_parts(
        cls,
        header: dict,
        arrays: dict[str, np.ndarray],
        source: str,
        dim: int | None = None,
        metric: str | None = None,
        kind: str = "Index",
    ) -> Index:
        def refuse(why: str):
            raise storage.FileError(f"{source}: {why}")

        try:
            if header.get("kind", "Index") != kind:
                refuse(f"the file is of kind {header.get('kind', 'Index')!r}, not {kind!r}")
            for name, wanted in (("dim", dim), ("metric", metric)):
                if wanted is not None and header[name] != wanted:
                    refuse(f"the file has {name} {header[name]!r}, not {wanted!r}")
            settings = ("dim", "metric", "M", "ef_construction", "seed", "keep_pruned", "ef_upper", "num_threads")
            index = Index.__new__(cls)
            Index.__init__(index, **{name: header[name] for name in settings})
            index.ef = header["ef"]
            index._next_id = check_integer("next_id", header["next_id"], 0)
            index._entry = check_integer("entry", header["entry"], -1)
            index._top = check_integer("top", header["top"], -1)
            index._rng.bit_generator.state = header["rng"]
            used, rows = len(arrays["labels"]), len(arrays["upper"])
            index._used, index._rows = used, rows
            model = index._allocate(0, 0)
            for name in core.Graph._fields:
                like = getattr(model, name)
                shape = (rows if name == "upper" else used, *like.shape[1:])
                if arrays[name].shape != shape or arrays[name].dtype != like.dtype:
                    refuse(f"{name} is {arrays[name].dtype} {arrays[name].shape}, not {like.dtype} {shape}")
            norms = arrays["norms"]
            if norms.dtype != np.float32 or norms.shape != (used if index.metric == "cosine" else 0,):
                refuse(f"norms is {norms.dtype} {norms.shape}")
            index._graph = core.Graph(*(arrays[name] for name in core.Graph._fields))
            index._norms = norms
            index.check()
            ids = arrays["labels"][arrays["state"] <= core.DELETED]
            if ids.min(initial=0) < 0 or len(np.unique(ids)) < len(ids):
                refuse("negative or repeated ids")
        except storage.FileError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            refuse(f"damaged ({error!r})")
        index._recount()
        return index

    # Checking

    def check(self) -> None:
        """Verify every invariant of the graph's arrays; ValueError names the first node at fault."""
        slot, layer = core.first_fault(self._graph, self._used, self._rows, self._entry, self._top)
        if slot >= 0 or layer >= 0:
            raise ValueError(f"the links of node {slot} on layer {layer} are damaged")

    def unreachable(self) -> np.ndarray:
        """Ids (int64) of vectors that no walk on layer 0 from the entry point reaches: a search finds them only when
        it compares exactly."""
        state = self._graph.state[: self._used]
        reached = np.zeros(self._used, dtype=np.uint8)
        if self._entry >= 0:
            core.mark_reachable(self._graph, self._entry, reached)
        return self._graph.labels[: self._used][(state == core.LIVE) & (reached == 0)]

    def links(self, id: int) -> list[list[int]]:
        """The ids that `id` links to, per layer from 0 up."""
        slot, g = int(self._slots_of([id], core.LIVE, "links")[0]), self._graph
        rows = [g.links0[slot]] + [g.upper[g.offsets[slot] + layer] for layer in range(g.levels[slot])]
        return [g.labels[row[row >= 0]].tolist() for row in rows]

    def readable(self) -> HNSWSimple:
        """The same graph as an `HNSWSimple`, to trace searches and to read. ValueError unless the ids are 0 to n - 1 in
        the order of insertion and none is deleted."""
        if not np.array_equal(self._graph.labels[: self._used], np.arange(len(self))):
            raise ValueError("readable() needs ids 0 to n - 1 in the order of insertion, none deleted or replaced")
        settings = {"metric": self.metric, "keep_pruned": self.keep_pruned, "ef_upper": self.ef_upper}
        simple = HNSWSimple(self.dim, self.M, self.ef_construction, self.ef, **settings)
        simple._store(self._graph.vectors[: self._used, : self.dim])
        simple.graph = [{} for _ in range(self._top + 1)]
        for node in range(self._used):
            for layer, links in enumerate(self.links(node)):
                simple.graph[layer][node] = links
        simple.entry_point = self._entry if self._used else None
        simple._rng.bit_generator.state = self._rng.bit_generator.state
        return simple

    # Inside

    def _allocate(self, slots: int, rows: int) -> core.Graph:
        return core.Graph(
            vectors=_aligned((slots, self._columns), np.float32),
            links0=_aligned((slots, 2 * self.M), np.int32),
            upper=_aligned((rows, self.M), np.int32),
            offsets=np.empty(slots, dtype=np.int32),
            levels=np.empty(slots, dtype=np.int8),
            state=np.full(slots, core.FREE, dtype=np.uint8),
            labels=np.empty(slots, dtype=np.int64),
        )

    def _reserve(self, count: int, rows: int) -> None:
        """Make room for `count` more nodes with `rows` more rows on the upper layers."""
        g = self._graph
        need_slots = self._used + max(count - len(self._free), 0)
        need_rows = self._rows + rows
        if need_slots > len(g.labels) or need_rows > len(g.upper):
            slots = max(need_slots, len(g.labels) if need_slots <= len(g.labels) else len(g.labels) * 3 // 2)
            rows = max(need_rows, len(g.upper) if need_rows <= len(g.upper) else len(g.upper) * 3 // 2)
            # The row count may be one more than is used, so that a slot without upper layers has a valid offset.
            new = self._allocate(slots, rows + 1)
            for name, old, fresh in zip(g._fields, g, new):
                used = self._rows if name == "upper" else self._used
                fresh[:used] = old[:used]
            if self.metric == "cosine":
                self._norms = np.concatenate(
                    [self._norms[: self._used], np.empty(slots - self._used, dtype=np.float32)]
                )
            self._graph = new
            self._allowed = None
            self._scratches.clear()
        if self._table is not None and 2 * (self._table_taken + count) > len(self._table):
            self._build_table(need_slots)

    def _build_table(self, slots: int) -> None:
        """Make the table of ids anew, for `slots` entries; none where every id is its slot."""
        g = self._graph
        known = np.flatnonzero(g.state[: self._used] <= core.DELETED).astype(np.int32)
        self._table = None
        if not np.array_equal(g.labels[known], known):
            size = 16
            while size < 2 * slots:
                size *= 2
            self._table = np.full(size, -1, dtype=np.int32)
            self._table_taken = core.enter_slots(self._table, g.labels, g.state, known)

    def _find(self, ids: np.ndarray) -> np.ndarray:
        """Slots (int32) of `ids`, live or deleted; -1 for others."""
        if self._table is None:
            slots = np.where(ids < self._used, ids, -1).astype(np.int32)
            inside = slots >= 0
            slots[inside] = np.where(self._graph.state[slots[inside]] <= core.DELETED, slots[inside], -1)
            return slots
        slots = np.empty(len(ids), dtype=np.int32)
        core.find_slots(self._table, self._graph.labels, self._graph.state, ids, slots)
        return slots

    def _slots_of(self, ids: np.ndarray, state: int, verb: str) -> np.ndarray:
        ids = check_ids(ids, distinct=verb != "get")
        slots = self._find(ids)
        for id, slot in zip(ids, slots):
            if slot < 0:
                raise KeyError(f"cannot {verb} id {id}: no such id")
            if self._graph.state[slot] != state:
                is_deleted = self._graph.state[slot] == core.DELETED
                raise KeyError(f"cannot {verb} id {id}: it is {'deleted' if is_deleted else 'not deleted'}")
        return slots

    def _set_state(self, slots: np.ndarray, state: int) -> None:
        for old, count in enumerate(np.bincount(self._graph.state[slots], minlength=4).tolist()):
            self._counts[old] -= count
        self._graph.state[slots] = state
        self._counts[state] += len(slots)
        self._allowed = None

    def _recount(self) -> None:
        """Derive what is counted and listed from the states and ids of the slots."""
        state, labels = self._graph.state[: self._used], self._graph.labels[: self._used]
        self._counts = np.bincount(state, minlength=4).tolist()
        self._free = np.flatnonzero(state == core.FREE)[::-1].tolist()
        self._next_id = max(self._next_id, int(labels[state <= core.DELETED].max(initial=-1)) + 1)
        self._allowed = None
        self._build_table(len(self._graph.labels))

    def _repair(self, threads: int) -> None:
        """Unlink RETIRED nodes and make their slots FREE."""
        g, used = self._graph, self._used
        if not self._counts[core.RETIRED]:
            return
        if threads > 1:
            with contextlib.ExitStack() as stack:
                scratches = [stack.enter_context(self._scratch()) for _ in range(threads)]

                def repair(part):
                    core.repair(g, self._metric, used, part, threads, scratches[part])

                _run(repair, threads, threads)
        else:
            with self._scratch() as scratch:
                core.repair(g, self._metric, used, 0, 1, scratch)
        self._set_state(np.flatnonzero(g.state[:used] == core.RETIRED), core.FREE)
        self._free = np.flatnonzero(g.state[:used] == core.FREE)[::-1].tolist()
        stay = np.flatnonzero(g.state[:used] != core.FREE)
        if self._entry >= 0 and g.state[self._entry] == core.FREE:
            self._entry = int(stay[np.argmax(g.levels[stay])]) if len(stay) else -1
            self._top = int(g.levels[self._entry]) if len(stay) else -1
        levels = g.levels[stay].astype(np.int64)
        ends = np.cumsum(levels)
        starts = (ends - levels).astype(np.int32)
        upper = _aligned((len(g.upper), self.M), np.int32)
        for slot, level, start in zip(stay[levels > 0], levels[levels > 0], starts[levels > 0]):
            upper[start : start + level] = g.upper[g.offsets[slot] : g.offsets[slot] + level]
        offsets = g.offsets.copy()  # a search beside this one reads the old pair
        offsets[stay] = starts
        self._rows = int(ends[-1]) if len(stay) else 0
        self._graph = g._replace(upper=upper, offsets=offsets)
        self._build_table(len(g.labels))

    def _live(self) -> np.ndarray:
        """uint8 (slots and spare ones,): 1 where a node is live."""
        used, g, allowed = self._used, self._graph, self._allowed
        if allowed is None or len(allowed) < len(g.labels):
            allowed = np.zeros(len(g.labels), dtype=np.uint8)
            allowed[:used] = g.state[:used] == core.LIVE
            self._allowed = allowed
        return allowed

    def _masked(self, mask: np.ndarray, queries: int) -> np.ndarray:
        """uint8 (slots,) or (queries, slots): 1 where a live node is allowed by `mask`."""
        mask = np.asarray(mask)
        used = self._used
        labels, live = self._graph.labels[:used], self._live()[:used]
        if mask.dtype == bool:
            if mask.ndim not in (1, 2) or (mask.ndim == 2 and len(mask) != queries):
                raise ValueError(f"a boolean mask must be (ids,) or ({queries}, ids), not {mask.shape}")
            needed = int(labels[live == 1].max()) + 1 if live.any() else 0
            if mask.shape[-1] < needed:
                raise ValueError(f"a boolean mask is indexed by id: it needs {needed} entries, not {mask.shape[-1]}")
            if mask.shape[-1] == 0:
                return np.zeros(mask.shape[:-1] + (len(labels),), dtype=np.uint8)
            return np.take(mask, np.clip(labels, 0, mask.shape[-1] - 1), axis=-1) & live
        if mask.ndim != 1:
            raise ValueError(f"a mask of ids must be (n,), not {mask.shape}")
        ids = check_ids(mask, distinct=False)
        if len(ids) > 2 and ids.max() <= 1:
            raise ValueError("a mask of 0 and 1 would mean ids 0 and 1: give booleans, mask.astype(bool)")
        slots = self._find(ids)
        allowed = np.zeros(len(labels), dtype=np.uint8)
        allowed[slots[slots >= 0]] = 1
        return allowed & live

    def _queries(self, Q: np.ndarray) -> np.ndarray:
        """float32 (n, dim), C order; values are checked by the compiled search."""
        if type(Q) is np.ndarray and Q.dtype == np.float32 and Q.ndim == 2 and Q.shape[1] == self.dim:
            return Q if Q.flags.c_contiguous else np.ascontiguousarray(Q)
        queries = as_float32(Q, "Q")
        if queries.ndim == 1:
            queries = queries[None, :] if queries.size else queries.reshape(0, self.dim)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"Q must have shape (n, {self.dim}) or ({self.dim},), not {np.shape(Q)}")
        return np.ascontiguousarray(queries)

    def _complain(self, bad: int, row: int = 0) -> None:
        if bad >= 0:
            zero = ", or is zero and has no direction" if self.metric == "cosine" else ""
            raise ValueError(f"Q: row {bad + row} has NaN, infinite or too large values (float32){zero}")

    def _threads(self, num_threads: int | None) -> int:
        if num_threads is not None:
            check_integer("num_threads", num_threads, 1)
        return min(num_threads or self._num_threads or _cpus(), MOST_THREADS)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[core.Scratch]:
        """Borrow a Scratch; two searches never share one."""
        scratch = self._take_scratch()
        yield scratch
        self._scratches.append(scratch)

    def _take_scratch(self) -> core.Scratch:
        slots = len(self._graph.labels)
        try:
            scratch = self._scratches.pop()
            if len(scratch.tags) >= slots:
                return scratch
        except IndexError:
            pass
        return core.Scratch(np.zeros(slots, dtype=np.uint8), np.zeros(1, dtype=np.int64))

    def _spread(self, work: Callable[[int, int, core.Scratch], int | None], count: int, threads: int) -> int:
        """Call work(first, last, scratch) over range(count) in `threads` threads; the smallest answer >= 0, or -1."""
        if threads == 1 or count < 2:
            with self._scratch() as scratch:
                answer = work(0, count, scratch)
            return -1 if answer is None else answer

        def piece(i: int) -> int:
            with self._scratch() as scratch:
                answer = work(bounds[i], bounds[i + 1], scratch)
            return -1 if answer is None else answer

        # Large pieces first and small ones last, so that all threads end together.
        bounds = [0]
        while bounds[-1] < count:
            left = count - bounds[-1]
            bounds.append(bounds[-1] + min(left, max(left // (2 * threads), count // 256, 1)))
        return min((answer for answer in _run(piece, len(bounds) - 1, threads) if answer >= 0), default=-1)


def few(exist: int, ef: int, used: int) -> bool:
    """Whether comparing with the `exist` nodes that are allowed, of `used`, is faster than a walk for `ef` of them: that
    meets about ef * used / exist nodes with ten new neighbours each, and reads them in no order."""
    return exist <= ef or exist * exist <= 40 * ef * used


def _run(work: Callable[[int], int | None], pieces: int, threads: int) -> list:
    """[work(0), ..., work(pieces - 1)], computed by `threads` threads, of which the caller's is one.

    Also where it is interrupted, all have ended when it returns. A build calls this twice a batch: executors and their
    futures would take a tenth of its time.
    """
    results: list = [None] * pieces
    todo = iter(range(pieces))  # one for all: under the GIL, each number goes to one of them
    begun: list[None] = []
    ended: list[BaseException | None] = []
    bell: SimpleQueue = SimpleQueue()
    own = None

    def take() -> None:
        for i in todo:
            results[i] = work(i)

    def assist() -> None:
        begun.append(None)
        error = None
        try:
            take()
        except BaseException as caught:
            error = caught
            for _ in todo:  # leave the others nothing
                pass
        ended.append(error)
        bell.put(None)

    try:
        for _ in range(min(threads, pieces) - 1):
            _jobs().put(assist)
        take()
    except BaseException as caught:
        own = caught
    while True:
        try:
            for _ in todo:  # nothing, unless this thread was interrupted
                pass
            while len(ended) < len(begun):  # who begins from here on finds nothing to do
                with contextlib.suppress(Empty):
                    bell.get(timeout=1)
            break
        except KeyboardInterrupt as caught:
            own = caught
    for error in (own, *ended):
        if error is not None:
            raise error
    return results


def check_ids(ids: np.ndarray, count: int | None = None, distinct: bool = True) -> np.ndarray:
    """`ids` as int64 (n,); TypeError if they are not integers, ValueError if negative, repeated or not `count`."""
    array = np.atleast_1d(np.asarray(ids))
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {array.dtype}")
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise ValueError(f"ids must have shape ({'n' if count is None else count},), not {array.shape}")
    if array.size and (int(array.min()) < 0 or int(array.max()) > MAX_ID):
        raise ValueError(f"ids must be from 0 to 2**63 - 1, not {int(array.min())} to {int(array.max())}")
    array = array.astype(np.int64)
    if distinct and array.size:
        ordered = np.sort(array)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if repeated.size:
            raise ValueError(f"ids must be distinct in one call: {repeated[0]} is there twice")
    return array


def _aligned(shape: tuple[int, int], dtype: type) -> np.ndarray:
    """An uninitialised array that begins at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _padded(allowed: np.ndarray, slots: int) -> np.ndarray:
    """`allowed` with zeros up to `slots`: a walk beside an `add` may meet nodes that are newer than the mask."""
    return allowed if len(allowed) >= slots else np.pad(allowed, (0, slots - len(allowed)))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_servers: tuple[int, SimpleQueue] | None = None


def _jobs() -> SimpleQueue:
    """Where the threads that all indexes of this process share find work; a forked child starts its own."""
    global _servers
    if _servers is None or _servers[0] != os.getpid():
        jobs: SimpleQueue = SimpleQueue()

        def serve() -> None:
            while True:
                jobs.get()()

        for i in range(max(_cpus(), 8)):
            threading.Thread(target=serve, name=f"hnsw_{i}", daemon=True).start()
        _servers = (os.getpid(), jobs)
    return _servers[1]
