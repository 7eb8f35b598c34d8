"""What notebook 12 retrieves from and counts, against scikit-learn, plain loops, the files themselves and the recorded run."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from course import notebooks, plots, rag, recorded
from hnsw import Index
from nanovllm import LLM, SamplingParams


@pytest.fixture(scope="module")
def corpus():
    return rag.load_corpus()


@pytest.fixture(scope="module")
def texts(corpus):
    return [rag.embedded_text(passage) for passage in corpus.passages]


@pytest.fixture(scope="module")
def embed(texts):
    return rag.HashedWords(texts)


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", dtype="float32", kvcache_block_size=16, num_kvcache_blocks=512) as llm:
        yield llm


def test_every_question_has_a_right_passage_and_few_of_them(corpus):
    questions, right = rag.all_questions(corpus)
    assert len(questions) == len(right) == 70
    assert [sum(q.reworded for q in rag.COURSE_QUESTIONS[part]) for part in (slice(15), slice(15, 30))] == [0, 15]
    assert all(1 <= len(places) <= 4 for places in right)
    assert all(corpus.passages[places[0]].kind == ("course" if i < 30 else "note") for i, places in enumerate(right))
    for question in rag.COURSE_QUESTIONS:
        re.compile(question.says)
        assert question.fact not in question.text


def test_reworded_questions_share_fewer_words_with_their_passages(corpus):
    """The split is what it says: the share of a question's rarer words that its passage has."""
    every = [set(rag.words(passage.text)) for passage in corpus.passages]

    def shared(question):
        rare = [w for w in rag.words(question.text) if sum(w in words for words in every) < len(every) / 10]
        best = max(len(set(rare) & every[place]) for place in rag.right_passages(question, corpus.passages))
        return best / max(len(set(rare)), 1)

    as_written, reworded = ([shared(q) for q in rag.COURSE_QUESTIONS if q.reworded is way] for way in (False, True))
    assert np.mean(as_written) > 0.5 > 0.35 > np.mean(reworded)


def test_a_note_says_what_its_question_asks_and_no_other_does(corpus):
    place = {passage.source: passage for passage in corpus.passages}
    for each in corpus.note_questions:
        thing = re.search(r"the (\w+)( now)?\?$", each["question"]).group(1)
        having = [p.source for p in corpus.passages if p.kind == "note" and re.search(rf"\b{thing}\b", p.text)]
        assert having == [each["source"]]
        assert rag.note_is_right(each["answer"], each["answer"])
        assert set(re.findall(r"\b(?!The\b)[A-Z][a-z]+", each["answer"])) <= set(names_in(place[each["source"]].text))


def names_in(text):
    return re.findall(r"[A-Z][a-z]+", text)


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Lily has the whistle.", "Lily has the whistle.", True),
        ("It is Lily.", "Lily has the whistle.", True),
        ("Theo has the whistle.", "Lily has the whistle.", False),
        ("Lily has it, so it is at the bakery.", "Lily has the top, so it is in the park.", False),
        ("Theo has it, so it is in the park.", "Lily has the top, so it is in the park.", False),
        ("Lily, in the park.", "Lily has the top, so it is in the park.", True),
        ("The book is red.", "The book is black.", False),
        ("Black.", "The book is black.", True),
        ("", "The book is black.", False),
    ],
)
def test_note_is_right(answer, expected, right):
    assert rag.note_is_right(answer, expected) is right


def test_weights_against_the_formula_on_a_matrix_of_counts(texts):
    """The same by another way: one matrix of counts, as scikit-learn's TfidfVectorizer(sublinear_tf=True) defines it."""
    chosen = texts[:50]
    cut = [re.sub("[^a-z0-9]", " ", text.lower()).split() for text in chosen]
    vocabulary = sorted(set().union(*cut))
    counts = np.array([[words.count(word) for word in vocabulary] for words in cut], dtype=float)
    idf = np.log(51 / (1 + (counts > 0).sum(axis=0))) + 1
    matrix = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    ours = rag.HashedWords(chosen, piece=0)
    for row, text in zip(matrix, chosen, strict=True):
        assert ours.weights(text) == pytest.approx({vocabulary[i]: row[i] for i in np.flatnonzero(row)}, rel=1e-12)


def test_vectors_are_sums_of_signed_weights_at_hashed_places():
    embed = rag.HashedWords(["red boat", "blue boat"], dim=8, piece=0)
    want = np.zeros(8)
    for term, weight in embed.weights("red red boat unknown").items():
        place, sign = rag.place_of(term, 8)
        want[place] += sign * weight
    np.testing.assert_allclose(embed(["red red boat unknown"])[0], want / np.linalg.norm(want), rtol=1e-6)
    assert not embed([""]).any()
    assert rag.place_of("block", 1024) == (rag.zlib.crc32(b"block") % 1024, 1 if rag.zlib.crc32(b"block") >> 31 else -1)


def test_pieces_of_words():
    terms = rag.HashedWords([], piece=4).terms("Is preempted")
    assert terms == ["is", "preempted", "~<is>", "~<pre", "~pree", "~reem", "~eemp", "~empt", "~mpte", "~pted", "~ted>"]
    assert rag.HashedWords([], piece=4).terms("a") == ["a", "~<a>"]


def test_ranks_against_a_plain_loop(texts, embed, corpus):
    questions, right = rag.all_questions(corpus)
    vectors, queries = embed(texts[:200]), embed(questions[:20])
    wanted = [[i, 199 - i] for i in range(20)]
    for query, each, rank in zip(queries, wanted, rag.ranks(vectors, queries, wanted), strict=True):
        order = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable").tolist()
        assert rank == 1 + min(order.index(place) for place in each)


def test_no_compared_count_hangs_on_a_near_tie(texts, corpus):
    """Counts of hits hold on every machine: no right passage is so near to the border that rounding could move it."""
    questions, right = rag.all_questions(corpus)
    for options in ({"idf": False, "damped": False, "piece": 0}, {"idf": False, "piece": 0}, {"piece": 0}, {}):
        embed = rag.HashedWords(texts, **options)
        scores = embed(questions).astype(np.float64) @ embed(texts).astype(np.float64).T
        for row, places in zip(scores, right, strict=True):
            best = row[places].max()
            others = np.delete(row, places)
            for k in (1, 5):
                assert abs(np.sort(others)[-k] - best) > 1e-6


def test_overlap_and_within():
    assert rag.overlap(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 9]])) == 0.75
    assert rag.within([1, 5, 6], 5) == 2


def test_windows_cover_every_word_and_overlap():
    passage = rag.Passage("course", "s", "t", " ".join(map(str, range(100))))
    cut = [[int(word) for word in window.split()] for window in rag.windows([passage], length=32, stride=4)]
    assert set().union(*cut) == set(range(100)) and cut[1][0] == 4 and all(len(window) <= 32 for window in cut)
    assert rag.windows([passage._replace(text="one two")]) == ["one two"]


def test_pooled_states_are_the_means_of_transformers_states(texts):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from nanovllm.config import EMBEDDED_MODEL

    with LLM(device="cpu", dtype="float32", enable_prefix_caching=False, num_kvcache_blocks=32) as llm:
        ours = rag.pooled_states(llm, texts[:3], max_tokens=40)
        ids = [llm.tokenizer.encode(text)[:40] for text in texts[:3]]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    with torch.no_grad():
        for row, tokens in zip(ours, ids, strict=True):
            hidden = theirs.model(torch.tensor([tokens])).last_hidden_state[0]
            np.testing.assert_allclose(row, hidden.mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_pooled_states_refuse_a_prefix_cache(llm):
    with pytest.raises(ValueError, match="enable_prefix_caching=False"):
        rag.pooled_states(llm, ["text"])


def test_the_pool_holds_all_right_passages(corpus):
    chosen, questions, right = rag.pool(corpus, 120)
    assert len(set(chosen)) == 120 and chosen == sorted(chosen)
    for each, places in zip(rag.all_questions(corpus)[1], right, strict=True):
        assert [chosen[place] for place in places] == each


def test_fitting_fills_the_prompt_and_no_more(llm, corpus):
    longest = sorted(range(len(corpus.passages)), key=lambda i: -len(corpus.passages[i].text))[:12]
    question = rag.COURSE_QUESTIONS[0].text
    kept = rag.fitting(llm, longest, corpus.passages, question, 32)

    def size(places):
        return len(llm.apply_chat_template(rag.messages([corpus.passages[i].text for i in places], question)))

    assert kept == longest[: len(kept)] and 0 < len(kept) < 12
    assert size(kept) + 32 <= llm.max_model_len < size(longest[: len(kept) + 1]) + 32


def test_the_model_answers_from_the_right_note(llm, corpus):
    greedy = SamplingParams(temperature=0, max_tokens=32)
    place = {passage.source: passage.text for passage in corpus.passages}
    chats = [rag.messages([place[each["source"]]], each["question"]) for each in corpus.note_questions]
    outputs = llm.chat(chats, greedy, use_tqdm=False)
    right = [o["text"] == each["answer"] for o, each in zip(outputs, corpus.note_questions, strict=True)]
    assert sum(right) >= 38


def test_the_corpus_can_be_frozen_anew(tmp_path, corpus):
    """The script runs on the files as they are, and most questions keep their passage; a refresh asks for all of them."""
    out = tmp_path / "corpus.json"
    script = notebooks.ROOT / "scripts" / "freeze_rag_corpus.py"
    done = subprocess.run([sys.executable, str(script), "--out", str(out)], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    now = rag.course_passages()
    assert len(now) > 300 and len({passage.text for passage in now}) == len(now)
    assert all(len(passage.text.split()) <= rag.MAX_WORDS for passage in now)
    assert not any(passage.source.startswith("12_") for passage in now)
    still = sum(bool(rag.right_passages(question, now)) for question in rag.COURSE_QUESTIONS)
    assert still >= 24, "mend COURSE_QUESTIONS in course/rag.py, then freeze the corpus anew"
    if still == 30:
        assert done.returncode == 0
        again = rag.load_corpus(out)
        assert again.note_questions == corpus.note_questions
    else:
        assert done.returncode == 1 and "No passage answers these any more" in done.stdout


def test_a_long_text_is_cut_at_sentences_and_loses_nothing():
    sentences = [" ".join([f"word{i}"] * 49) + " end." for i in range(5)]
    parts = list(rag._pieces([" ".join(sentences), "a short one"]))
    assert [len(part.split()) for part in parts] == [100, 100, 53]
    assert " ".join(parts).split() == (" ".join(sentences) + " a short one").split()


def test_what_the_lesson_says_about_the_recorded_run():
    run = recorded.load("rag_answers")
    text = next(c["source"] for c in notebook_cells() if c["id"] == "real-answer")
    right, pool = run["right"], run["pool"]
    assert run.median == right["found"] and run["workload"]["questions"] == 30
    for way, count in right.items():
        says = (re.search(q.says, row[way]) for q, row in zip(rag.COURSE_QUESTIONS, run["answers"], strict=True))
        assert sum(map(bool, says)) == count
    assert f"{right['closed']} of 30 without a passage, {right['found']} with three retrieved ones" in text
    assert f"{right['right']} with the right one" in text and right["right"] <= 10
    states, words = rag.within(pool["ranks"], 5), rag.within(pool["ranks_of_words"], 5)
    assert f"first five for {states} of the 70 questions" in text and f"words did for {words}." in text


def notebook_cells():
    (path,) = notebooks.paths(["12"])
    return [
        {"id": cell["id"], "source": " ".join(notebooks.source(cell).split())} for cell in notebooks.read(path)["cells"]
    ]


@pytest.mark.slow
def test_the_recording_script_runs(tmp_path):
    from nanovllm.config import EMBEDDED_MODEL

    script = recorded.ROOT / "benchmarks" / "record_rag.py"
    options = ["--model", str(EMBEDDED_MODEL), "--questions", "3", "--pool", "80", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True, timeout=300)
    data = json.loads((tmp_path / "rag_answers.json").read_text(encoding="utf-8"))
    assert recorded.faults(data) == [] and len(data["answers"]) == 3 and len(data["pool"]["ranks"]) == 70
    assert set(data["answers"][0]) == {"question", "closed", "found", "right", "found_passages"}


def test_figures_are_drawn(corpus, embed, texts):
    index = Index(embed.dim, metric="cosine")
    index.add(embed(texts[:60]), progress=False)
    ids, distances = index.search(embed([rag.COURSE_QUESTIONS[0].text]), k=4)
    rows = [(corpus.passages[i], 1 - float(d), i == 3) for i, d in zip(ids[0], distances[0], strict=True)]
    rows.append((rag.Passage("course", "x#$y", "t", r"$\sqrt{d}$ and \frac{ $"), 0.1, False))
    figure = rag.draw_answer("How many KiB? $", rows, "an $answer", "112")
    assert "The model: an $answer\nRight: 112" in figure._supxlabel.get_text()
    figures = [figure, rag.draw_answer("?", [], "", "x")]
    figures.append(rag.draw_search((10, 20), {"a": [0.5, 0.9]}, (500, 1000), {"brute force": [1, 2], "index": [1, 1]}))
    figures.append(rag.draw_latency({"one": {"embed": 0.2, "decode": 20.0}, "two": {"embed": 0.2, "decode": 40.0}}))
    assert all(len(plots.png(each)) > 5000 for each in figures)
