"""A demo of the compiled index: recall, speed, deleting, masks, files.

python test-case/hnsw_demo.py
python test-case/hnsw_demo.py --n 50000 --dim 64
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hnsw import Index


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(t)) for f, t in zip(found.tolist(), truth.tolist())])) / truth.shape[1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="vectors (default: 10,000)")
    parser.add_argument("--dim", type=int, default=32, help="their dimension (default: 32)")
    parser.add_argument("--max-m", type=int, default=16, help="M (default: 16)")
    parser.add_argument("--queries", type=int, default=1000, help="queries (default: 1,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(options.seed)
    vectors = rng.random((options.n, options.dim), dtype=np.float32)
    queries = rng.random((options.queries, options.dim), dtype=np.float32)

    warm = Index(options.dim)  # the first use compiles
    warm.add(vectors[:50], progress=False)
    warm.search(queries[:2], 1)

    index = Index(options.dim, M=options.max_m, seed=options.seed)
    start = time.perf_counter()
    index.add(vectors, progress=True)
    print(f"{index}\nbuilt in {time.perf_counter() - start:.2f} s, {index.nbytes / len(index):.0f} bytes a vector")

    start = time.perf_counter()
    truth, _ = index.search(queries, 10, exact=True)
    brute = time.perf_counter() - start
    print(f"\n{'ef':>5} {'recall@10':>10} {'queries/s':>10}   (brute force: {len(queries) / brute:.0f} queries/s)")
    for ef in (10, 20, 50, 100, 200):
        start = time.perf_counter()
        ids, _ = index.search(queries, 10, ef)
        print(f"{ef:>5} {recall(ids, truth):>10.4f} {len(queries) / (time.perf_counter() - start):>10.0f}")

    index.delete(np.arange(0, options.n, 2))
    ids, _ = index.search(queries, 10, 100)
    truth, _ = index.search(queries, 10, exact=True)
    print(
        f"\nevery second id deleted: recall {recall(ids, truth):.4f}, an even id among the answers: {(ids % 2 == 0).any()}"
    )
    index.undelete(np.arange(0, options.n, 2))

    mask = np.zeros(options.n, dtype=bool)
    mask[:7] = True
    ids, distances = index.search(queries[:1], 10, mask=mask)
    print(f"only ids 0 to 6 allowed, ten asked: {ids[0].tolist()}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.hnsw"
        index.save(path)
        again = Index.load(path, mmap=True)
        same = np.array_equal(again.search(queries, 10, 50)[0], index.search(queries, 10, 50)[0])
        print(f"saved ({path.stat().st_size / 1e6:.1f} MB) and loaded with mmap: same answers: {same}")


if __name__ == "__main__":
    main()
