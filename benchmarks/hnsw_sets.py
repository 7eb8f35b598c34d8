"""The vectors that the index is measured on. All are seeded, float32 and split into base and queries."""

from __future__ import annotations

import ast
import io
import json
import os
import site
import sysconfig
import zipfile
from pathlib import Path

import numpy as np

from hnsw.simple import unit_length


class Unavailable(RuntimeError):
    """A set that cannot be made here; the message says why and what to do."""


def uniform(queries: int = 1000) -> np.ndarray:
    """10,000 points of the unit cube in 32 dimensions, which have no structure to exploit."""
    return np.random.default_rng(1).random((10_000 + queries, 32), dtype=np.float32)


def clusters(queries: int = 1000) -> np.ndarray:
    """100,000 points around 500 Gaussian centres in 64 dimensions."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((500, 64))
    member = rng.integers(0, 500, 100_000 + queries)
    return (centres[member] + 0.5 * rng.standard_normal((len(member), 64))).astype(np.float32)


def near_duplicates(queries: int = 1000) -> np.ndarray:
    """100,000 points in 64 dimensions, 100 almost equal ones at each of 1,000 places."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((1000, 64))
    member = rng.integers(0, 1000, 100_000 + queries)
    return (centres[member] + 0.01 * rng.standard_normal((len(member), 64))).astype(np.float32)


def digits(queries: int = 300) -> np.ndarray:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, shuffled: 1,497 and 300 queries."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Unavailable("digits: needs scikit-learn") from None
    return np.random.default_rng(1).permutation(load_digits().data.astype(np.float32))


def text(queries: int = 1000) -> np.ndarray:
    """50,000 of the docstrings installed here as the mean vectors (256) of their tokens, at length 1.

    The table of token vectors and its tokenizer are in the wheel of wordllama: `pip download --no-deps wordllama`, then
    WORDLLAMA=<the wheel>. Other Python environments have other docstrings, and figures that differ a little.
    """
    wheel = os.environ.get("WORDLLAMA")
    if not wheel or not Path(wheel).exists():
        raise Unavailable("text: set WORDLLAMA to the wordllama wheel (pip download --no-deps wordllama)")
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    with zipfile.ZipFile(wheel) as archive:
        table = next(iter(load(archive.read("wordllama/weights/l2_supercat_256.safetensors")).values()))
        config = json.load(io.BytesIO(archive.read("wordllama/tokenizers/l2_supercat_tokenizer_config.json")))
    tokenizer = Tokenizer.from_str(json.dumps(config))
    docstrings = _docstrings(50_000 + queries)
    table = table.astype(np.float32)
    encoded = tokenizer.encode_batch(docstrings, add_special_tokens=False)
    return unit_length(np.stack([table[e.ids].mean(axis=0) for e in encoded]))[0]


def _docstrings(count: int) -> list[str]:
    """The first `count` distinct docstrings of 40 characters and more in the order of the paths, shuffled."""
    found: dict[str, None] = {}
    folders = (sysconfig.get_paths()["stdlib"], *site.getsitepackages())
    for path in (path for folder in folders for path in sorted(Path(folder).rglob("*.py"))):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node) or ""
                if len(docstring) >= 40:
                    found[docstring] = None
        if len(found) >= count:
            break
    if len(found) < count:
        raise Unavailable(f"text: only {len(found)} docstrings are installed here, not {count}")
    docstrings = list(found)[:count]
    return [docstrings[i] for i in np.random.default_rng(1).permutation(count)]


SETS = {"uniform": uniform, "clusters": clusters, "text": text, "digits": digits, "near-duplicates": near_duplicates}


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Base and queries of a set."""
    data = np.ascontiguousarray(SETS[name]())
    queries = 300 if name == "digits" else 1000
    return data[:-queries].copy(), data[-queries:].copy()


def true_neighbours(X: np.ndarray, Q: np.ndarray, k: int) -> np.ndarray:
    """Rows of X nearest to each query by squared distance: candidates in float32, then sorted in float64."""
    squares = (X * X).sum(axis=1)
    rows = []
    for q in np.array_split(Q, max(len(Q) // 100, 1)):
        near = np.argpartition(squares - 2 * q @ X.T, 4 * k, axis=1)[:, : 4 * k]
        distances = ((X[near].astype(np.float64) - q[:, None]) ** 2).sum(-1)
        rows.append(np.take_along_axis(near, np.argsort(distances, axis=1, kind="stable")[:, :k], axis=1))
    return np.concatenate(rows)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean share of the true neighbours that were found."""
    return float(np.mean([len(set(f) & set(t)) for f, t in zip(found.tolist(), truth.tolist())])) / truth.shape[1]
