"""A level sampler that does not know M."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from course.museum import Exhibit


def buggy(rng: random.Random, m: int) -> int:
    """The level of a new node in an index with at most `m` new links a layer."""
    ml = 1 / math.log(2)
    level = 0
    while rng.random() < 1 / ml:
        level += 1
    return level


def fixed(rng: random.Random, m: int) -> int:
    """The same, as the paper draws it: floor(-ln(U) * mL) with U in (0, 1]."""
    ml = 1 / math.log(m)
    return math.floor(-math.log(1 - rng.random()) * ml)


def detect(draw: Callable[[random.Random, int], int]) -> None:
    """One node in M must be above layer 0, and one in M * M above layer 1, whatever M is."""
    rng = random.Random(0)
    for m in (16, 5):
        levels = [draw(rng, m) for _ in range(20_000)]
        for layer in (1, 2):
            share, due = sum(level >= layer for level in levels) / len(levels), m**-layer
            assert abs(share - due) < 0.01, (
                f"M = {m}: {share:.3f} of the nodes reach layer {layer}, but {due:.3f} should"
            )


EXHIBIT = Exhibit(
    name="level_sampler",
    chapter="08_hnsw",
    title="Levels that do not depend on M",
    symptom="Recall is fine. The index has twenty layers and more in place of three to six, takes several times as long to build, "
    "keeps about twice the links, and each search walks down through layers that hold nearly the same nodes.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="The notes that this course grew from: while random.random() < 1/ml with ml = 1/ln 2. The paper (arXiv 1603.09320, "
    "section 4): floor(-ln(U) * mL) with mL = 1/ln(M).",
)
