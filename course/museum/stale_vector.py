"""A text that is edited while its vector stays in the index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from course.museum import Exhibit
from course.rag import HashedWords
from hnsw import Index

Edit = Callable[[dict[int, str], Index, HashedWords, int, str], None]


def buggy(texts: dict[int, str], index: Index, embed: HashedWords, number: int, text: str) -> None:
    """Replace text `number`."""
    texts[number] = text


def fixed(texts: dict[int, str], index: Index, embed: HashedWords, number: int, text: str) -> None:
    """Replace text `number` and its vector: `add` with an id in use replaces."""
    texts[number] = text
    index.add(embed([text]), ids=np.array([number]))


def detect(edit: Edit) -> None:
    """After the edit, each text's own words must find it, and the old words must not."""
    texts = {0: "blocks are shared by their hash", 1: "the newest sequence is preempted", 2: "rows are cut by heads"}
    embed = HashedWords(list(texts.values()), dim=256)
    index = Index(256, metric="cosine")
    index.add(embed(list(texts.values())), progress=False)
    edit(texts, index, embed, 1, "graphs replay launches")
    ids, distances = index.search(embed(list(texts.values())), k=1)
    assert ids[:, 0].tolist() == [0, 1, 2], f"searched by their own words, texts 0, 1, 2 find {ids[:, 0].tolist()}"
    _, old = index.search(embed(["the newest sequence is preempted"]), k=1)
    assert old[0, 0] > 0.5, f"a text that is gone is still found, at distance {old[0, 0]:.2f}"


EXHIBIT = Exhibit(
    name="stale_vector",
    chapter="12_rag_capstone",
    title="An edited text with its old vector",
    symptom="Questions about the new text do not find it. Questions about the old one find a passage that does not say it any "
    "more, with a similarity of nearly 1. It grows worse with every edit, and nothing is logged.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Two stores, one transaction: easy to make wherever texts live in a database and vectors in an index beside it.",
)
