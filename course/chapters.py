"""The chapters of the course: one list, from which the first notebook and the README make their tables."""

from __future__ import annotations

from dataclasses import dataclass

from course import notebooks


@dataclass(frozen=True)
class Chapter:
    """One notebook: its name without ``.ipynb``, and the question that it answers."""

    name: str
    question: str

    @property
    def exists(self) -> bool:
        """Tell whether the notebook is written; the others are still to come."""
        return (notebooks.FOLDER / f"{self.name}.ipynb").is_file()


CHAPTERS = (
    Chapter("00_start_here", "What happens between a prompt and the text that comes back?"),
    Chapter("01_attention_variance", "Why does attention divide its scores by the square root of d?"),
    Chapter("02_qwen3_anatomy", "Which computations make up Qwen3, and can you rebuild them to the last digit?"),
    Chapter("03_weight_loading", "How does a checkpoint on disk become a model in memory, and what can go wrong?"),
    Chapter("04_kv_cache_sizing", "How much memory does a conversation take, and how many fit on a GPU?"),
    Chapter("05_prefill_vs_decode", "Why is reading a prompt fast and writing an answer slow?"),
    Chapter("06_cuda_graphs", "What does a GPU wait for in a small model, and how does a graph remove that?"),
    Chapter("07_tensor_parallel", "How do several GPUs share one model?"),
    Chapter("08_hnsw", "How does an index find neighbours without looking at every vector?"),
    Chapter(
        "09_scheduler_and_paging", "Who computes next, where do its keys live, and what happens when memory runs out?"
    ),
    Chapter(
        "10_write_a_paged_attention_kernel", "How do you get from five lines of PyTorch to the engine's own kernel?"
    ),
    Chapter("11_from_slow_to_fast", "Which change bought how much, and how far is the roofline?"),
    Chapter("12_rag_capstone", "Can the index and the engine together answer questions about this course?"),
)


def table(folder: str = "") -> str:
    """Return the chapters as a Markdown table; only those that exist are links, relative to `folder`."""
    rows = ["| chapter | its question |", "| --- | --- |"]
    for chapter in CHAPTERS:
        name = f"[{chapter.name}]({folder}{chapter.name}.ipynb)" if chapter.exists else f"{chapter.name} (to come)"
        rows.append(f"| {name} | {chapter.question} |")
    return "\n".join(rows)
