"""Writes course/rag_corpus.json, the passages that notebook 12 retrieves from: a frozen copy of the course's own texts.

The notebook's compared outputs hang on this file, so it changes only when somebody runs this script, and then:

    python scripts/freeze_rag_corpus.py && make notebooks NOTEBOOKS=12

Three kinds of passages go in: the Markdown of the notebooks (not of notebook 12: it quotes the questions), the docstrings of
both packages, and 40 notes about who has what, drawn by training/data.py from its held-out split. The notes are what the
embedded model has learned to answer questions about. With --guides the English guides go in as well.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

import data  # noqa: E402 - the corpus generator of training/

from course import rag  # noqa: E402

OUT = ROOT / "course" / "rag_corpus.json"
NUM_NOTES = 40
SEED = 12


def notes() -> tuple[list[rag.Passage], list[dict[str, str]]]:
    """NUM_NOTES notes and a question about each; the thing that a question asks about is in no other note."""
    things = set(data.random.Random(SEED).sample(data.lx.NOUNS, NUM_NOTES))
    missing = set(things)
    made: list[rag.Passage] = []
    asked: list[dict[str, str]] = []
    for example in data.examples(SEED, "heldout", "passage"):
        thing = example.key.split("|")[1]
        content = example.messages[-2]["content"].replace("\n\nQuestion: ", " ").replace("\n", " ")
        text, _, question = content.rpartition(". ")
        others = set(re.findall(r"[a-z]+", text)) & things - {thing}
        if example.facts["about"] != "world" or f"the {thing}" not in question or thing not in missing or others:
            continue
        missing.remove(thing)
        made.append(rag.Passage("note", f"note-{len(made):02d}", f"Note {len(made)}", text + "."))
        asked.append({"question": question, "answer": example.answer, "source": made[-1].source})
        if not missing:
            break
    return made, asked


def collect(guides: bool = False) -> dict:
    """Everything that the file holds but where and when it was made."""
    made, asked = notes()
    return {
        "passages": [passage._asdict() for passage in (*rag.course_passages(guides), *made)],
        "note_questions": asked,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default %(default)s)")
    parser.add_argument("--guides", action="store_true", help="the guides in helper/ as well")
    args = parser.parse_args()
    corpus = collect(args.guides)
    passages = [rag.Passage(**passage) for passage in corpus["passages"]]
    without = [item.text for item in rag.COURSE_QUESTIONS if not rag.right_passages(item, passages)]
    if without:
        print("No passage answers these any more; mend COURSE_QUESTIONS in course/rag.py:", *without, sep="\n  ")
        return 1
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    head = {"frozen": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "commit": commit.stdout.strip() or "unknown"}
    args.out.write_text(json.dumps(head | corpus, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(corpus['passages'])} passages, {len(corpus['note_questions'])} questions about notes: {args.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
