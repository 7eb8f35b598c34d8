"""What notebook 12 shows of a real model: its answers to the questions about the course, without a passage, with three
retrieved ones and with the right one, and how well the mean of its hidden states retrieves.

    python benchmarks/record_rag.py --model models/SmolLM2-135M-Instruct

An answer counts as right where the question's regular expression (`says` in course/rag.py) matches it: a generous rule, the
same for all three. About ten minutes on one CPU core with SmolLM2-135M.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import ROOT, record, write

from course import rag
from hnsw import Index
from nanovllm import LLM

MAX_TOKENS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="folder of a checkpoint or a hub name; only its last part is recorded"
    )
    parser.add_argument("--k", type=int, default=3, help="passages in a prompt (default %(default)s)")
    parser.add_argument("--questions", type=int, default=len(rag.COURSE_QUESTIONS), help="only the first N")
    parser.add_argument("--pool", type=int, default=200, help="passages whose hidden states are compared, 0 for none")
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "data", help="folder (default notebooks/data)")
    args = parser.parse_args()

    corpus = rag.load_corpus()
    texts = [rag.embedded_text(passage) for passage in corpus.passages]
    embed = rag.HashedWords(texts)
    vectors = embed(texts)
    index = Index(embed.dim, metric="cosine")
    index.add(vectors, progress=False)
    questions = rag.COURSE_QUESTIONS[: args.questions]
    found = index.search(embed([question.text for question in questions]), args.k, ef=200)[0].tolist()
    with LLM(args.model, kvcache_block_size=16, num_kvcache_blocks=1024, max_model_len=2048, max_num_seqs=8) as llm:
        counts, rows = rag.ask_about_the_course(llm, corpus, found, MAX_TOKENS)
    for row, places in zip(rows, found, strict=True):
        row["found_passages"] = [corpus.passages[place].source for place in places]
    print("right answers:", counts, "of", len(rows))

    pool = {}
    if args.pool:
        chosen, questions_of_pool, right_of_pool = rag.pool(corpus, args.pool)
        with LLM(args.model, enable_prefix_caching=False, num_kvcache_blocks=64, kvcache_block_size=16) as llm:
            states = rag.pooled_states(llm, [texts[i] for i in chosen])
            asked = rag.pooled_states(llm, questions_of_pool)
        words = rag.ranks(vectors[chosen], embed(questions_of_pool), right_of_pool)
        ranks = rag.ranks(rag.unit(states - states.mean(0)), rag.unit(asked - states.mean(0)), right_of_pool)
        pool = {"pool": {"passages": len(chosen), "ranks": ranks, "ranks_of_words": words}}
        print("in the first 5:", rag.within(ranks, 5), "words:", rag.within(words, 5), "of", len(ranks))

    result = record(
        "rag_answers",
        metric=f"right answers with {args.k} retrieved passages",
        samples=[counts["found"]],
        workload={"model": Path(args.model).name, "k": args.k, "questions": len(questions), "max_tokens": MAX_TOKENS},
        right=counts,
        answers=rows,
        **pool,
    )
    print(write(result, args.out))


if __name__ == "__main__":
    main()
