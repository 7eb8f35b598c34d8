"""hnswlib 0.8's interface over `hnsw.Index`: change `import hnswlib` to `from hnsw import compat as hnswlib`.

What hnswlib answers with a crash or not at all is a clear error here: RuntimeError where hnswlib raises one, ValueError
or TypeError for arguments. Files have this package's format, not hnswlib's. `get_items` returns vectors as they were
given, also under cosine. `filter` may be a function of the label, as in hnswlib, and is called once a label instead of
thousands of times a query; a boolean array indexed by label or an array of labels is faster.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import core, storage
from .index import Index as _Index
from .index import _cpus, check_ids
from .simple import METRICS, check_integer, check_vectors, unit_length

Filter = Callable[[int], bool] | np.ndarray


class _Base:
    """What `Index` and `BFIndex` share: the vectors live in an `hnsw.Index`, made by `init_index` or `load_index`."""

    def __init__(self, space: str, dim: int):
        if space not in METRICS:
            raise RuntimeError(f"space must be one of {', '.join(METRICS)}, not {space!r}")
        self._space = space
        self._dim = check_integer("dim", dim, 1)
        self.num_threads = _cpus()
        self._index: _Index | None = None
        self._max_elements = 0

    def __repr__(self) -> str:
        return f"<hnsw.compat.{type(self).__name__}(space={self.space!r}, dim={self.dim})>"

    @property
    def space(self) -> str:
        return self._space

    @property
    def dim(self) -> int:
        return self._dim

    def _ready(self) -> _Index:
        if self._index is None:
            raise RuntimeError("the index is not initialised: call init_index or load_index first")
        return self._index

    def set_num_threads(self, num_threads: int) -> None:
        """0 and less: all that the process may run on."""
        self.num_threads = check_integer("num_threads", num_threads, -(2**31))

    def get_max_elements(self) -> int:
        return self._max_elements

    def get_current_count(self) -> int:
        """How many elements there are, those marked as deleted included."""
        return self._count()

    # What follows calls nothing that a subclass may have overridden: hnswlib's own methods never do.

    def _count(self) -> int:
        return 0 if self._index is None else len(self._index) + self._index.deleted_count

    def _threads(self, num_threads: int) -> int:
        for threads in (num_threads, self.num_threads):
            if check_integer("num_threads", threads, -(2**31)) > 0:
                return threads
        return _cpus()

    def _check_room(self, new: int) -> None:
        if self._count() + new > self._max_elements:
            raise RuntimeError(
                f"{self._count()} elements and {new} new ones exceed max_elements={self._max_elements}: "
                "call resize_index"
            )

    def _labels(self, ids, count: int) -> np.ndarray | None:
        if ids is None:
            return None
        ids = np.atleast_1d(ids)
        if ids.dtype.kind == "f" and (ids == np.floor(ids)).all():  # hnswlib converts any number
            ids = ids.astype(np.int64)
        if ids.shape != (count,):
            raise RuntimeError(f"ids must have shape ({count},), not {ids.shape}")
        return check_ids(ids)

    def _rows(self, data) -> np.ndarray:
        rows = np.asarray(data)
        if rows.ndim == 1:
            rows = rows[None, :]
        if rows.ndim != 2 or rows.shape[1] != self._dim:
            raise RuntimeError(f"data must have shape (n, {self._dim}) or ({self._dim},), not {np.shape(data)}")
        return rows

    def _mask(self, filter: Filter | None) -> np.ndarray | None:
        if callable(filter):
            ids = self._ready().ids
            return ids[[bool(filter(int(id))) for id in ids]] if len(ids) else ids
        return None if filter is None else np.asarray(filter)

    def _save(self, path: str | os.PathLike, extra: dict) -> None:
        index = self._ready()
        with index._lock:
            header, arrays = index._parts()
            storage.write(Path(path), {**header, **extra, "max_elements": self._max_elements}, arrays)

    def _load(self, path: str | os.PathLike, max_elements: int, kind: str) -> dict:
        max_elements = check_integer("max_elements", max_elements, 0)
        try:
            header, arrays = storage.read(Path(path))
        except FileNotFoundError:
            raise RuntimeError(f"cannot open file {path}") from None
        index = _Index._from_parts(header, arrays, str(path), self._dim, self._space, kind)
        count = len(index) + index.deleted_count
        self._index = index
        # As in hnswlib, the file's own value where the given one is too small.
        self._max_elements = max(max_elements if max_elements >= count else header.get("max_elements", count), count)
        return header


def _padded_out(ids: np.ndarray, k: int) -> None:
    """hnswlib's answer where fewer than k exist is an error; ours says how many."""
    if ids.size and (ids[:, -1] < 0).any():
        row = int(np.flatnonzero(ids[:, -1] < 0)[0])
        raise RuntimeError(
            f"query {row} has {int((ids[row] >= 0).sum())} results, not k={k}: no more elements exist that are not "
            "deleted and pass the filter (hnsw.Index.search pads such rows instead)"
        )


class Index(_Base):
    """hnswlib.Index. `space`: "l2", "ip" or "cosine"."""

    def __init__(self, space: str | Index, dim: int | None = None):
        if isinstance(space, Index):  # a copy, as hnswlib's constructor makes it
            self.__dict__.update(copy.deepcopy(space.__dict__))
            return
        super().__init__(space, dim)
        self._ef = 10
        self._allow_replace_deleted = False

    def init_index(
        self,
        max_elements: int,
        M: int = 16,
        ef_construction: int = 200,
        random_seed: int = 100,
        allow_replace_deleted: bool = False,
    ) -> None:
        if self._index is not None:
            raise RuntimeError("the index is initialised already")
        max_elements = check_integer("max_elements", max_elements, 0)
        # As in hnswlib, an insertion never looks at fewer candidates than it makes links.
        ef_construction = max(check_integer("ef_construction", ef_construction, 1), M)
        seed = check_integer("random_seed", random_seed, 0)
        self._index = _Index(self._dim, self._space, M, ef_construction, seed)
        self._max_elements = max_elements
        self._allow_replace_deleted = bool(allow_replace_deleted)

    @property
    def ef(self) -> int:
        return self._ef

    @ef.setter
    def ef(self, ef: int) -> None:
        self._ef = check_integer("ef", ef, 1)

    def set_ef(self, ef: int) -> None:
        self._ef = check_integer("ef", ef, 1)

    @property
    def max_elements(self) -> int:
        return self._max_elements

    @property
    def element_count(self) -> int:
        return self._count()

    @property
    def M(self) -> int:
        return 0 if self._index is None else self._index.M

    @property
    def ef_construction(self) -> int:
        return 0 if self._index is None else self._index.ef_construction

    def add_items(self, data, ids=None, num_threads: int = -1, replace_deleted: bool = False) -> None:
        """Add vectors (n, dim) or (dim,); labels that exist get the new vector.

        With `replace_deleted`, elements marked as deleted give up their places, and are forgotten.
        """
        index, rows, threads = self._ready(), self._rows(data), self._threads(num_threads)
        if replace_deleted and not self._allow_replace_deleted:
            raise RuntimeError("replace_deleted needs init_index or load_index with allow_replace_deleted=True")
        with index._lock:
            labels = self._labels(ids, len(rows))
            new = len(rows) if labels is None else int((index._find(labels) < 0).sum())
            if replace_deleted:
                given = np.array([], dtype=np.int64) if labels is None else labels
                state, all_labels = index._graph.state[: index._used], index._graph.labels[: index._used]
                deleted = np.flatnonzero((state == core.DELETED) & ~np.isin(all_labels, given))
                free = self._max_elements - self._count()
                if new > free + len(deleted):
                    self._check_room(new - len(deleted))
                checked = check_vectors(rows, self._dim, "data")  # refuse them before an element is forgotten
                if self._space == "cosine":
                    unit_length(checked, "data")
                index._set_state(deleted[:new], core.RETIRED)
            else:
                self._check_room(new)
            index.add(rows, labels, num_threads=threads)

    def knn_query(
        self, data, k: int = 1, num_threads: int = -1, filter: Filter | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels, uint64 (n, k), and distances, float32 (n, k), nearest first. RuntimeError where fewer exist."""
        index, rows = self._ready(), self._rows(data)
        ids, distances = index.search(rows, k, self._ef, self._mask(filter), num_threads=self._threads(num_threads))
        _padded_out(ids, k)
        return ids.view(np.uint64), distances

    def mark_deleted(self, label: int) -> None:
        self._mark(label, "delete")

    def unmark_deleted(self, label: int) -> None:
        self._mark(label, "undelete")

    def _mark(self, label: int, verb: str) -> None:
        try:
            getattr(self._ready(), verb)([label])
        except KeyError as error:
            raise RuntimeError(error.args[0]) from None

    def get_items(self, ids=None, return_type: str = "numpy"):
        """The vectors of the labels `ids` (n,) or (n, 1); of all elements for None. "numpy" or "list"."""
        if return_type not in ("numpy", "list"):
            raise ValueError(f'return_type must be "numpy" or "list", not {return_type!r}')
        index = self._ready()
        if ids is None:
            labels = index.ids
        else:
            if np.ndim(ids) == 0:
                raise ValueError("ids must be a list or an array of labels, not a scalar")
            labels = np.asarray(ids)
            labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        try:
            items = index.get(labels)
        except KeyError as error:
            raise RuntimeError(error.args[0]) from None
        return items if return_type == "numpy" else items.tolist()

    def get_ids_list(self) -> list[int]:
        """All labels, those marked as deleted included."""
        if self._index is None:
            return []
        g, used = self._index._graph, self._index._used
        return g.labels[:used][g.state[:used] <= core.DELETED].tolist()

    def resize_index(self, new_size: int) -> None:
        self._ready()
        new_size = check_integer("new_size", new_size, 0)
        if new_size < self._count():
            raise RuntimeError(f"cannot resize to {new_size}: there are {self._count()} elements")
        self._max_elements = new_size

    def save_index(self, path_to_index: str) -> None:
        self._save(path_to_index, {"ef": self._ef})

    def load_index(self, path_to_index: str, max_elements: int = 0, allow_replace_deleted: bool = False) -> None:
        """Replace the contents by a file of `save_index`, `ef` included. Another space or dim is refused."""
        header = self._load(path_to_index, max_elements, "Index")
        self._ef = header["ef"]
        self._allow_replace_deleted = bool(allow_replace_deleted)

    def index_file_size(self) -> int:
        """Bytes that `save_index` would write."""
        return len(storage.dump(*self._ready()._parts()))


class BFIndex(_Base):
    """hnswlib.BFIndex: exact search, by comparing each query with every element."""

    def init_index(self, max_elements: int) -> None:
        if self._index is not None:
            raise RuntimeError("the index is initialised already")
        self._max_elements = check_integer("max_elements", max_elements, 0)
        self._index = _Index(self._dim, self._space, M=2, ef_construction=1)

    def add_items(self, data, ids=None) -> None:
        index, rows = self._ready(), self._rows(data)
        labels = self._labels(ids, len(rows))
        with index._lock:
            self._check_room(len(rows) if labels is None else int((index._find(labels) < 0).sum()))
            index.add(rows, labels)

    def delete_vector(self, label: int) -> None:
        index = self._ready()
        with index._lock:
            if label in index:
                index.delete([label])
                index.compact()

    def knn_query(
        self, data, k: int = 1, num_threads: int = -1, filter: Filter | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Index.knn_query`, exact."""
        index, rows = self._ready(), self._rows(data)
        mask = self._mask(filter)
        ids, distances = index.search(rows, k, mask=mask, exact=True, num_threads=self._threads(num_threads))
        _padded_out(ids, k)
        return ids.view(np.uint64), distances

    def save_index(self, path_to_index: str) -> None:
        self._save(path_to_index, {"kind": "BFIndex"})

    def load_index(self, path_to_index: str, max_elements: int = 0) -> None:
        self._load(path_to_index, max_elements, "BFIndex")
