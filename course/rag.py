"""What notebook 12 uses: the frozen corpus and its questions, vectors without a hub, figures, and the checkers of its exercises.

Retrieval-augmented generation needs the index and the engine, which know nothing of each other: this module and the notebook
bring them together.
"""

from __future__ import annotations

import ast
import json
import math
import random
import re
import textwrap
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from course import notebooks, plots
from course.exercises import Wrong, checker, expect_close, expect_equal

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "course" / "rag_corpus.json"


class Passage(NamedTuple):
    """A piece of text that can be retrieved.

    Attributes:
        kind: "course" (the course's own words) or "note" (who has what, for the embedded model).
        source: where it stands: notebook and cell, the name of the code that it documents, or the note's number.
        title: the heading that it stands under.
        text: at most about 120 words.
    """

    kind: str
    source: str
    title: str
    text: str


class Question(NamedTuple):
    """A hand-made question about the course.

    Attributes:
        text: as a student would ask.
        reworded: whether it avoids the words of its passage.
        fact: words of the right passages, and of no other; white space does not count.
        says: a regular expression that an answer must match to be called right.
    """

    text: str
    reworded: bool
    fact: str
    says: str


def _questions(reworded: bool, *rows: tuple[str, str, str]) -> tuple[Question, ...]:
    return tuple(Question(text, reworded, fact, says) for text, fact, says in rows)


COURSE_QUESTIONS = _questions(
    False,
    ("How many KiB does one token of Qwen3-0.6B take in the KV cache?", "112 KiB", r"\b112\b"),
    ("Which running sequence is preempted when no block is free?", "the newest running sequence goes", "newest"),
    ("What is hashed together with the tokens of a full block?", "hash of the block before it", "before|previous"),
    ("How many all-reduces does a layer need with tensor parallelism?", "so a layer needs two", r"\btwo\b|\b2\b"),
    (
        "What does empty_cache give back to the driver?",
        "gives the reserved bytes without a tensor in them back",
        "reserved",
    ),
    ("What are search results padded with where fewer than k exist?", "padded with -1 and inf", "-1"),
    ("Which finish reason means that the budget of tokens ran out?", "`length` means that the budget", "length"),
    ("How far apart are bfloat16 neighbours between 32 and 64?", "its neighbours are 0.25 apart", r"0\.25"),
    ("What are the 8 bytes at the start of a safetensors file?", "the length of the header", "length"),
    ("How does a level get drawn for a new node?", "floor(-ln(U) * ml)", r"floor|ln|U"),
    (
        "Which block sizes does the flash_attn backend serve?",
        "Serves block sizes that are multiples of 256",
        r"\b256\b",
    ),
    ("Where does the first token come from?", "**The first token comes out of the prefill.**", "prefill"),
    (
        "Which entries form a pair in RoPE for the published weights?",
        "entry $i$ and entry $i + D/2$ form pair $i$",
        "D/2",
    ),
    ("What does slot -1 mean in the slot mapping?", 'Slot -1 means "nowhere"', "nowhere|skip"),
    ("What must a loader fill everything with before loading?", "fill everything with NaN before loading", "NaN"),
) + _questions(
    True,
    (
        "My GPU sits idle most of the time with a tiny model. What slows it down?",
        "the time is all overhead",
        "overhead|launch",
    ),
    (
        "Two customers send messages that start alike. Is the work done twice?",
        "So two sequences that begin with the same tokens need one copy",
        "one copy|share",
    ),
    ("Who gets thrown out when memory is full?", "the newest running sequence goes", "newest"),
    (
        "Why is writing an answer slower than taking in the question?",
        "the next token is an input of the token after it",
        "one (token|pass)|each|next token",
    ),
    (
        "Does a wider net leave more behind for every word it has read?",
        "Qwen3-1.7B takes exactly as much",
        r"\b[Nn]ot?\b|same|as much",
    ),
    ("How can I open huge model files without loading all of their contents?", "It **maps** the file", "map"),
    (
        "Splitting the net over two cards made it slower. Why?",
        "Tensor parallel halves the 3 ms and leaves the",
        "fixed|launch|eager|wait",
    ),
    (
        "Someone left out a sum over the processes. What would notice it?",
        "Nothing but a comparison with **one process",
        "compar|another",
    ),
    (
        "The text goes on after words that nobody sent. What went wrong?",
        "after words that the second user never sent",
        "cache|position|keys",
    ),
    (
        "What keeps a huge document from delaying everyone's short questions?",
        "prompts longer than half the budget get half of it",
        "half",
    ),
    (
        "Must the program know beforehand how much a reply will say?",
        "Nobody knows how long an answer will be",
        "[Nn]o|block",
    ),
    (
        "All places are shifted by one and the story stays the same. How come?",
        "So nobody who reads the output finds this bug",
        "RoPE|distance",
    ),
    (
        "What harm is there in large dot products for learning?",
        "Once one key has all the weight, moving the logits a little changes nothing",
        "saturat|nothing|gradient",
    ),
    (
        "The power fails while the index goes to disk. Do I lose everything?",
        "even if the machine stops midway",
        "old|whole",
    ),
    (
        "What can the small network that comes with the lessons talk about?",
        "It knows toy stories and short chats, nothing else",
        "stor",
    ),
)
"""Thirty questions; the second half asks for its passage in other words."""


def right_passages(question: Question, passages: Sequence[Passage]) -> list[int]:
    """The places of the passages that hold the fact."""
    fact = " ".join(question.fact.split())
    return [i for i, passage in enumerate(passages) if fact in " ".join(passage.text.split())]


class Corpus(NamedTuple):
    """The frozen file. `note_questions`: dicts with "question", "answer" and "source"."""

    passages: list[Passage]
    note_questions: list[dict[str, str]]
    frozen: str


def load_corpus(path: Path = CORPUS) -> Corpus:
    """Read what ``scripts/freeze_rag_corpus.py`` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Corpus([Passage(**passage) for passage in raw["passages"]], raw["note_questions"], raw["frozen"])


def words(text: str) -> list[str]:
    """The words of a text in lower case; an underscore ends a word, other signs are dropped."""
    return re.findall(r"[a-z0-9]+", text.lower())


def embedded_text(passage: Passage) -> str:
    """What is embedded of a passage: its heading belongs to it."""
    return f"{passage.title}\n{passage.text}"


def windows(passages: Sequence[Passage], length: int = 32, stride: int = 4) -> list[str]:
    """Overlapping windows of `length` words, one every `stride` words: a larger set of vectors from the same texts."""
    cut = []
    for passage in passages:
        found = passage.text.split()
        cut += [" ".join(found[at : at + length]) for at in range(0, max(1, len(found) - length + stride), stride)]
    return list(dict.fromkeys(cut))


# --- the corpus, made anew -------------------------------------------------------------------------------------------

PACKAGES = ("nanovllm", "hnsw")
LEFT_OUT = ("needs", "chapters", "reading")  # cells that a program writes, and lists of links
MAX_WORDS, MIN_WORDS = 120, 12


def course_passages(guides: bool = False) -> list[Passage]:
    """The course's own passages as its files are now; with `guides` those of helper/ as well. No two have equal texts."""
    found = (*_from_notebooks(), *(_from_guides() if guides else ()), *_from_docstrings())
    return list({passage.text: passage for passage in found}.values())


def _paragraphs(markdown: str) -> list[str]:
    """The paragraphs of a page without fenced code, comments and HTML tags."""
    markdown = re.sub(r"```.*?```|~~~.*?~~~|<!--.*?-->", "\n\n", markdown, flags=re.DOTALL)
    markdown = re.sub(r"</?(?:details|summary|br|a|img)[^>]*>", " ", markdown)
    return [part.strip() for part in re.split(r"\n\s*\n", markdown) if part.strip()]


def _pieces(parts: list[str]) -> Iterator[str]:
    """Neighbouring paragraphs joined to at most MAX_WORDS words; a longer one is cut at the ends of its sentences."""
    held = ""
    for part in parts:
        joint = "\n\n"
        for sentence in [part] if len(part.split()) <= MAX_WORDS else re.split(r"(?<=[.!?])\s+|\n(?=[-|\d])", part):
            if held and len(f"{held} {sentence}".split()) > MAX_WORDS:
                yield held
                held = ""
            held += (joint if held else "") + sentence
            joint = " "
    if held:
        yield held


def _passages_of(source: str, title: str, markdown: str) -> Iterator[Passage]:
    """The passages of one text; short leftovers are left out."""
    for number, text in enumerate(_pieces(_paragraphs(markdown))):
        if len(text.split()) >= MIN_WORDS:
            yield Passage("course", source if number == 0 else f"{source}+{number}", title, text)


def _from_notebooks() -> Iterator[Passage]:
    for path in notebooks.paths():
        if path.stem.startswith("12_"):
            continue
        heading = path.stem
        for cell in notebooks.read(path)["cells"]:
            if cell["cell_type"] != "markdown" or cell["id"] in LEFT_OUT:
                continue
            text = notebooks.source(cell)
            found = re.search(r"^#+ (.+)$", text, flags=re.MULTILINE)
            heading = found.group(1) if found else heading
            yield from _passages_of(f"{path.stem}#{cell['id']}", heading, text)


def _from_guides() -> Iterator[Passage]:
    for path in sorted(ROOT.glob("helper/*.md")):
        sections = re.split(r"^(?=#+ )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for number, section in enumerate(sections):
            heading = section.partition("\n")[0].lstrip("# ") or path.stem
            yield from _passages_of(f"{path.stem}#{number}", heading, section)


def _from_docstrings() -> Iterator[Passage]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from _docstrings(ast.parse(path.read_text(encoding="utf-8")), module)


def _docstrings(node: ast.AST, name: str) -> Iterator[Passage]:
    text = ast.get_docstring(node) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) else None
    if text:
        yield from _passages_of(name, name, text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
            yield from _docstrings(child, f"{name}.{child.name}")


# --- vectors ---------------------------------------------------------------------------------------------------------


class HashedWords:
    """Turns texts into vectors of weighted words, each word at the place that its hash says. No model, no vocabulary.

    Args:
        texts: in which the documents with a word are counted.
        dim: length of the vectors. Words whose hashes fall on one place are no longer told apart.
        idf: multiply by ln((1 + N) / (1 + n)) + 1 for a word that n of the N texts have; else by 1.
        damped: a word that comes c times counts 1 + ln c; else c.
        piece: letters of the pieces of words that count beside the words, at half the weight, so that "preempted" meets
            "preemption"; 0 for whole words only.
    """

    def __init__(self, texts: Sequence[str], dim: int = 1024, idf: bool = True, damped: bool = True, piece: int = 4):
        self.dim, self.idf, self.damped, self.piece = dim, idf, damped, piece
        self.num_texts = len(texts)
        self.texts_with = Counter(term for text in texts for term in set(self.terms(text)))

    def terms(self, text: str) -> list[str]:
        """The words, and their pieces, which carry a mark that no word has."""
        found = words(text)
        if not self.piece:
            return found
        marked = (f"<{word}>" for word in found)
        return found + [
            "~" + word[at : at + self.piece] for word in marked for at in range(max(1, len(word) - self.piece + 1))
        ]

    def weights(self, text: str) -> dict[str, float]:
        """The weight of each term, before the vector gets length 1."""
        found = {}
        for term, count in Counter(self.terms(text)).items():
            weight = 1 + math.log(count) if self.damped else float(count)
            if self.idf:
                weight *= math.log((1 + self.num_texts) / (1 + self.texts_with[term])) + 1
            found[term] = weight / 2 if term[0] == "~" else weight
        return found

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), each row of length 1 (a text without words: of length 0)."""
        rows = np.zeros((len(texts), self.dim))
        for row, text in zip(rows, texts, strict=True):
            for term, weight in self.weights(text).items():
                place, sign = place_of(term, self.dim)
                row[place] += sign * weight
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows.astype(np.float32)


def place_of(term: str, dim: int) -> tuple[int, int]:
    """Where a term is counted, and with which sign: a hash that is the same on every machine (Python's own is not).

    With signs, two terms at one place disturb each other in either direction, so that errors cancel on average.
    """
    code = zlib.crc32(term.encode())
    return code % dim, 1 if code >> 31 else -1


def pooled_states(llm: Any, texts: Sequence[str], max_tokens: int = 128) -> np.ndarray:
    """The mean of the model's last hidden states over each text's first `max_tokens` tokens: float32 (n, hidden size).

    A hook reads what the model returns while the engine prefills the texts one by one. Raises ValueError where the engine has
    a prefix cache, which would leave tokens out.
    """
    import torch

    from nanovllm import SamplingParams

    if llm.config.enable_prefix_caching:
        raise ValueError("make the engine with enable_prefix_caching=False: every token of each text must be computed")
    parts: list[torch.Tensor] = []
    hook = llm.model_runner.model.register_forward_hook(
        lambda model, inputs, hidden: parts.append(hidden.float().cpu())
    )
    one = SamplingParams(temperature=0, max_tokens=1)
    means = []
    try:
        for text in texts:
            parts.clear()
            llm.generate([llm.tokenizer.encode(text)[:max_tokens]], one, use_tqdm=False)
            means.append(torch.cat(parts).mean(dim=0).numpy())
    finally:
        hook.remove()
    return np.stack(means)


# --- how good is it? -------------------------------------------------------------------------------------------------


def ranks(vectors: np.ndarray, queries: np.ndarray, right: Sequence[Sequence[int]]) -> list[int]:
    """The rank, from 1, of each query's first right vector by cosine (rows of length 1); compared with all."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return [1 + int((row > row[list(found)].max()).sum()) for row, found in zip(scores, right, strict=True)]


def within(found: Sequence[int], k: int) -> int:
    """How many of the ranks are k or better."""
    return sum(rank <= k for rank in found)


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    """Recall of an index: the share of the true neighbours (n, k) that it found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


def note_is_right(answer: str, expected: str) -> bool:
    """Whether an answer holds what the expected sentence says: the name, the colour, or the name and the place."""
    said = set(words(answer))
    keys = re.findall(r"\b(?!The\b)[A-Z][a-z]+", expected)
    if not keys or ", so it is" in expected:
        keys.append(expected.rstrip(".").split()[-1])
    return {key.lower() for key in keys} <= said


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row at length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def pool(corpus: Corpus, size: int) -> tuple[list[int], list[str], list[list[int]]]:
    """A smaller corpus for methods that are slow: places of `size` passages, all questions, and for each question the places
    *within the pool* of its right passages. All right passages are in it; the others are drawn with a fixed seed."""
    questions, right = all_questions(corpus)
    needed = sorted({place for each in right for place in each})
    others = [place for place in range(len(corpus.passages)) if place not in set(needed)]
    chosen = sorted(needed + random.Random(0).sample(others, max(0, size - len(needed))))
    where = {place: number for number, place in enumerate(chosen)}
    return chosen, questions, [[where[place] for place in each] for each in right]


def all_questions(corpus: Corpus) -> tuple[list[str], list[list[int]]]:
    """The questions about the course, then those about the notes, and the places of each one's right passages."""
    place = {passage.source: number for number, passage in enumerate(corpus.passages)}
    texts = [question.text for question in COURSE_QUESTIONS] + [each["question"] for each in corpus.note_questions]
    right = [right_passages(question, corpus.passages) for question in COURSE_QUESTIONS]
    return texts, right + [[place[each["source"]]] for each in corpus.note_questions]


# --- the prompt ------------------------------------------------------------------------------------------------------

INSTRUCTION = "Answer in one short sentence."
EXAMPLES = (
    (
        "Anna is at the market with a red boat. Otto has a blue doll and is in the garden. Anna gives the boat to Otto.",
        "Who has the boat?",
        "Otto has the boat.",
    ),
    (
        "Rosa has a green sled and is on the hill. Theo is at the bakery. Theo has a white bell. Rosa goes to the park.",
        "Where is the sled?",
        "Rosa has the sled, so it is in the park.",
    ),
)
"""Worked examples that stand in front of every question: passage, question, answer."""


COURSE_INSTRUCTION = "Answer the question in one short sentence, from the text above it."


def course_messages(texts: Sequence[str], question: str) -> list[dict[str, str]]:
    """The same for a model that can follow an instruction: without the worked examples, which are about who has what."""
    return [{"role": "system", "content": COURSE_INSTRUCTION}, {"role": "user", "content": _turn(texts, question)}]


def messages(texts: Sequence[str], question: str) -> list[dict[str, str]]:
    """The conversation that asks for an answer from `texts`: what is the same for every question comes first."""
    chat = [{"role": "system", "content": INSTRUCTION}]
    for passage, asked, answer in EXAMPLES:
        chat += [{"role": "user", "content": _turn([passage], asked)}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": _turn(texts, question)}]


def _turn(texts: Sequence[str], question: str) -> str:
    return "\n".join(texts) + f"\n\nQuestion: {question}" if texts else question


def ask_about_the_course(
    llm: Any, corpus: Corpus, found: Sequence[Sequence[int]], max_tokens: int = 48
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Ask the first ``len(found)`` questions about the course in three ways: without a passage ("closed"), with the passages
    `found`, and with a right one ("right").

    Returns how many answers of each way match the question's expression, and one dict a question with the three answers.
    """
    from nanovllm import SamplingParams

    questions = COURSE_QUESTIONS[: len(found)]
    ways = {
        "closed": [[] for _ in questions],
        "found": [list(places) for places in found],
        "right": [right_passages(question, corpus.passages)[:1] for question in questions],
    }
    greedy = SamplingParams(temperature=0, max_tokens=max_tokens)
    rows: list[dict[str, Any]] = [{"question": question.text} for question in questions]
    for way, chosen in ways.items():
        chats = []
        for question, places in zip(questions, chosen, strict=True):
            kept = fitting(llm, places, corpus.passages, question.text, max_tokens)
            chats.append(course_messages([corpus.passages[i].text for i in reversed(kept)], question.text))
        for row, output in zip(rows, llm.chat(chats, greedy, use_tqdm=False, enable_thinking=False), strict=True):
            row[way] = output["text"]
    counts = {
        way: sum(bool(re.search(q.says, row[way])) for q, row in zip(questions, rows, strict=True)) for way in ways
    }
    return counts, rows


def fitting(llm: Any, found: Sequence[int], passages: Sequence[Passage], question: str, max_tokens: int) -> list[int]:
    """As many of `found`, best first, as leave room for an answer of `max_tokens` in the longest sequence of `llm`."""
    kept = list(found)
    while kept:
        prompt = llm.apply_chat_template(messages([passages[i].text for i in kept], question))
        if len(prompt) + max_tokens <= llm.max_model_len:
            break
        kept.pop()
    return kept


# --- figures ---------------------------------------------------------------------------------------------------------


def draw_search(
    efs: Sequence[int],
    recalls: Mapping[str, Sequence[float]],
    sizes: Sequence[int],
    micros: Mapping[str, Sequence[float]],
) -> Any:
    """Left: recall@10 of the index for each ef. Right: microseconds a query, for each number of vectors."""
    fig, (left, right) = plots.figure(1, 2, figsize=(9.5, 3.6))
    for label, values in recalls.items():
        left.plot(efs, values, "o-", label=label)
    left.set_xscale("log", base=2)
    left.set_xticks(list(efs), [str(ef) for ef in efs])
    left.minorticks_off()
    left.set(xlabel="ef", ylabel="recall@10", ylim=(0.4, 1.02), title="What the index finds")
    left.legend(loc="lower right")
    for label, values in micros.items():
        right.plot(sizes, values, "o-", label=label)
    right.set(
        xlabel="vectors", ylabel="microseconds a query", title="What a query costs", ylim=(0, None), xlim=(0, None)
    )
    right.legend(loc="upper left")
    return fig


def draw_latency(stages: Mapping[str, Mapping[str, float]]) -> Any:
    """Rows of stacked bars: the milliseconds of each stage of an answer."""
    fig, axis = plots.figure(figsize=(8.5, 0.9 + 0.6 * len(stages)))
    names = list(next(iter(stages.values())))
    for number, name in enumerate(names):
        starts = [sum(list(row.values())[:number]) for row in stages.values()]
        axis.barh(list(stages), [row[name] for row in stages.values()], left=starts, label=name, height=0.55)
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds")
    axis.grid(axis="y", visible=False)
    fig.legend(ncols=len(names), loc="outside lower center")
    return fig


def draw_answer(question: str, rows: Sequence[tuple[Passage, float, bool]], answer: str, expected: str) -> Any:
    """One question: the passages found with their similarity (the right ones green), and what the model said."""
    fig, axis = plots.figure(figsize=(9.5, 1.7 + 0.62 * max(len(rows), 1)))
    places = range(len(rows))
    colours = [plots.COLOURS[2] if right else plots.COLOURS[6] for _, _, right in rows]
    axis.barh(places, [similarity for _, similarity, _ in rows], color=colours, height=0.75, alpha=0.35)
    for place, (passage, similarity, _) in zip(places, rows, strict=True):
        start = textwrap.shorten(" ".join(passage.text.split()).lstrip("# "), 125, placeholder=" ...")
        axis.text(
            0.005,
            place - 0.17,
            f"{similarity:.2f}  {passage.source}",
            va="center",
            fontsize=8.5,
            weight="bold",
            parse_math=False,
        )
        axis.text(0.005, place + 0.19, start, va="center", fontsize=8.5, parse_math=False)
    axis.set(xlim=(0, 1), ylim=(max(len(rows), 1) - 0.5, -0.5), yticks=[], xlabel="cosine similarity")
    axis.grid(axis="y", visible=False)
    axis.set_title("\n".join(textwrap.wrap(f"Question: {question}", 100)), parse_math=False)
    said = textwrap.shorten(" ".join(answer.split()), 220, placeholder=" ...") or "(nothing)"
    lines = textwrap.wrap(f"The model: {said}", 105) + textwrap.wrap(f"Right: {expected}", 105)
    fig.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize=9.5, parse_math=False)
    return fig


# --- exercises of notebook 12 ----------------------------------------------------------------------------------------


@checker("tf-idf-weights")
def _tf_idf(weights: Callable[[dict[str, int], dict[str, int], int], dict[str, float]]) -> str:
    counts, texts_with, total = {"the": 4, "block": 2, "hash": 1}, {"the": 99, "block": 19, "hash": 3}, 99

    def right(counts: dict[str, int], texts_with: dict[str, int], total: int) -> dict[str, float]:
        raw = {
            t: (1 + math.log(c)) * (math.log((1 + total) / (1 + texts_with.get(t, 0))) + 1) for t, c in counts.items()
        }
        length = math.sqrt(sum(w * w for w in raw.values()))
        return {term: weight / length for term, weight in raw.items()}

    got, want = weights(dict(counts), dict(texts_with), total), right(counts, texts_with, total)
    if not isinstance(got, dict) or set(got) != set(want):
        raise Wrong(f"The answer should be a dict with the terms {sorted(want)}, but is {got!r}.")
    length = math.sqrt(sum(float(weight) ** 2 for weight in got.values()))
    if abs(length - 1) > 1e-6:
        raise Wrong(f"The vector has length {length:.3f}, but should have 1: a long text must not win by being long.")
    if got["hash"] < got["the"]:
        raise Wrong(
            f'"the", which is in every text, weighs {got["the"]:.3f}, and "hash", which is in 3 of 99, {got["hash"]:.3f}. '
            "Rare words tell more than frequent ones."
        )
    for term in counts:
        expect_close(f"the weight of {term!r}", got[term], want[term], hint="(1 + ln c) * (ln((1 + N) / (1 + n)) + 1)")
    new = weights({"block": 1, "preempted": 1}, dict(texts_with), total)
    expect_close(
        "the weight of a word that no text has",
        new["preempted"],
        right({"block": 1, "preempted": 1}, texts_with, total)["preempted"],
    )
    return "These are the weights of HashedWords, before they are added up at their hashed places"


@checker("hit-rate")
def _hit_rate(rate: Callable[[list[list[int]], list[set[int]], int], float]) -> str:
    found, right = [[4, 7, 1], [2, 9, 5], [8, 3, 6], [0, 1, 2]], [{7}, {1}, {8, 3}, {2, 11}]
    for k in (1, 2, 3):
        first = [set(row[:k]) for row in found]
        want = sum(bool(a & b) for a, b in zip(first, right, strict=True)) / 4
        precisions = (want / k, sum(len(a & b) / k for a, b in zip(first, right, strict=True)) / 4)
        got = rate([list(row) for row in found], [set(each) for each in right], k)
        if got != want and got in precisions:
            raise Wrong(
                f"For k = {k}: {got:.3f}, but should be {want}. You divide by k: that is precision, not the hit rate."
            )
        if got != want and got == sum(b <= a for a, b in zip(first, right, strict=True)) / 4:
            raise Wrong(
                f"For k = {k}: {got}, but should be {want}. One right passage is enough, all need not be found."
            )
        expect_equal(f"for k = {k} the share", got, want, hint="look at the first k only, and count a question once")
    return "The hit rate can only grow with k; whether the answers do is another question"


@checker("passages-that-fit")
def _fit(fit: Callable[[list[int], int, int, int], int]) -> str:
    for lengths, fixed, max_tokens, longest, want, hint in (
        ([300, 300, 350], 150, 50, 1024, 2, "instruction, examples and question need room, too"),
        ([300, 300, 260], 150, 50, 1024, 2, "the answer needs room, too"),
        ([300, 300, 224], 150, 50, 1024, 3, "exactly full is allowed"),
        ([900, 100, 100], 150, 50, 1024, 0, "a gap in the ranking is not filled by what ranks lower"),
        ([], 150, 50, 1024, 0, ""),
    ):
        got = fit(list(lengths), fixed, max_tokens, longest)
        what = f"passages of {lengths} tokens, {fixed} fixed ones, {max_tokens} for the answer, {longest} at most: the number"
        expect_equal(what, got, want, hint)
    return "Drop whole passages from the end of the ranking, before the engine must refuse the prompt"
