"""HNSW in one minute: build a small index with the readable class, look at its layers, watch one search walk.

    python test-case/hnsw_simple.py
    python test-case/hnsw_simple.py --n 2000 --max-m 8 --seed 3

The algorithm itself is in hnsw/simple.py, to be read beside the paper (arXiv 1603.09320).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from hnsw import HNSWSimple, Step


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="points (default: 500)")
    parser.add_argument("--dim", type=int, default=2, help="their dimension (default: 2)")
    parser.add_argument("--max-m", type=int, default=5, help="links that a new node makes (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of points and levels (default: 0)")
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(options.seed)
    points = rng.random((options.n, options.dim), dtype=np.float32)
    query = rng.random(options.dim, dtype=np.float32)

    index = HNSWSimple(options.dim, max_m=options.max_m, seed=options.seed)
    for point in tqdm(points, desc="insert", unit="point"):
        index.add(point)

    print(f"\n{len(index)} points, max_m {index.max_m}, mL = 1/ln({index.max_m}) = {index.ml:.3f}")
    print(f"{'layer':>5} {'nodes':>6} {'expected':>9} {'links a node':>13}")
    for layer, nodes in reversed(list(enumerate(index.graph))):
        links = sum(map(len, nodes.values())) / len(nodes)
        print(f"{layer:>5} {len(nodes):>6} {len(index) * index.max_m**-layer:>9.1f} {links:>13.2f}")

    steps: list[Step] = []
    found = index.search(query, k=5, trace=steps)
    print(f"\nthe walk to {np.round(query, 3).tolist()}: layer, node, squared distance, new neighbours seen")
    nearest = None
    for step in steps:
        if nearest is None or step.distance < nearest or step.layer > 0:
            nearest = step.distance
            print(f"{step.layer:>5} {step.node:>6} {step.distance:>10.5f} {len(step.seen):>4}")
    print(f"  then {sum(s.layer == 0 for s in steps)} nodes expanded on layer 0 in all, to be sure")

    distances = ((points - query) ** 2).sum(axis=1)
    truth = np.argsort(distances, kind="stable")[:5].tolist()
    looked_at = 1 + sum(len(step.seen) for step in steps)
    print(f"\nfound {[node for node, _ in found]}, brute force {truth}")
    print(f"{looked_at} distances computed instead of {len(index)}")


if __name__ == "__main__":
    main()
