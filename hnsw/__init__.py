"""Approximate nearest neighbour search by HNSW (arXiv 1603.09320).

`HNSWSimple` is the paper in readable Python, `Index` the same algorithm compiled, `compat` hnswlib's interface over it.
"""

from .simple import HNSWSimple, Step

__all__ = ["FileError", "HNSWSimple", "Index", "NearestNeighbors", "Step", "compat"]


def __getattr__(name: str):
    """Import what needs numba only when it is asked for."""
    if name == "Index":
        from .index import Index

        return Index
    if name == "FileError":
        from .storage import FileError

        return FileError
    if name == "NearestNeighbors":
        from .neighbors import NearestNeighbors

        return NearestNeighbors
    if name == "compat":
        import importlib

        return importlib.import_module(".compat", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
