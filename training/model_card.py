"""Writes the model card of the embedded model from its config.json, training_run.json and scores.json.

python training/model_card.py nanovllm/embedded_model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import lexicon as lx
from data import HELD_OUT_ONE_IN, MIX

STORY_ROWS = (
    ("story_hero_kept", "hero kept"),
    ("story_thing_kept", "thing and its colour kept"),
    ("story_few_names", "no third child appears"),
    ("story_long", "100 tokens or more"),
    ("story_stops", "stops by itself"),
    ("story_all", "all of these"),
)
ANSWER_ROWS = (
    ("addition", "addition, 0 to 99"),
    ("subtraction", "subtraction, 0 to 99"),
    ("lookup", "looking a value up in a list"),
    ("passage_world", "question about a short passage, people and things moving"),
    ("passage_story", "question about a whole story"),
    ("copy", "copying a string, all lengths"),
    ("short_answers_stop", "short answer stops by itself"),
)


def parameter_rows(config: dict) -> list[tuple[str, int]]:
    """(part, parameters) of a Qwen3 with tied embeddings and `config`."""
    h, d, layers = config["hidden_size"], config["head_dim"], config["num_hidden_layers"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    return [
        ("embedding (also the LM head)", config["vocab_size"] * h),
        ("attention", layers * (h * q + 2 * h * kv + q * h)),
        ("gated MLP", layers * 3 * h * config["intermediate_size"]),
        ("norms", layers * (2 * h + 2 * d) + h),
    ]


def fraction(entry: dict) -> str:
    return f"{entry['right']} of {entry['of']} ({entry['percent']} %)"


def table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + " --- |" * len(head),
        *(f"| {' | '.join(map(str, r))} |" for r in rows),
        "",
    ]


def card(config: dict, run: dict, scores: dict, weight_bytes: int) -> str:
    """The text of the model card."""
    parts = parameter_rows(config)
    total = sum(n for _, n in parts)
    s, settings = scores["scores"], run["settings"]
    device = run["device"]
    where = device["name"] + (f" (driver {device['driver']})" if device["driver"] else "")
    lines = [
        "# The embedded model",
        "",
        "<!-- Written by training/model_card.py from config.json, training_run.json and scores.json. Do not edit. -->",
        "",
        f"A tiny Qwen3 with {total:,} parameters, made for this course: small enough to ship with the code and to run on any "
        "CPU, good enough to tell a story in which names and things hold, to copy from its prompt, and to stop by itself. "
        "It speaks simple English about a small world and knows nothing else.",
        "",
        "## Architecture",
        "",
        "Qwen3 as published (RMSNorm, RoPE, grouped-query attention with QK-norm, gated MLP), with the published tensor "
        "names, in bf16, tied embeddings.",
        "",
        *table(
            ("", ""),
            [
                ("layers", config["num_hidden_layers"]),
                ("hidden size", config["hidden_size"]),
                ("query heads, KV heads, head_dim", f"{config['num_attention_heads']}, {config['num_key_value_heads']}, {config['head_dim']}"),
                ("MLP size", config["intermediate_size"]),
                ("vocabulary", f"{config['vocab_size']:,} (byte-level BPE, one token a digit)"),
                ("positions", f"{config['max_position_embeddings']:,}"),
                ("RoPE theta", f"{config['rope_theta']:,}"),
                ("model.safetensors", f"{weight_bytes:,} bytes"),
            ],
        ),
        *table(("part", "parameters"), [(name, f"{n:,}") for name, n in [*parts, ("total", total)]]),
        "## Data",
        "",
        "No outside data. `training/data.py` writes every example from the words and sentence templates in "
        f"`training/lexicon.py`: toy stories with {len(lx.PLOTS)} plots whose state (who is who, who holds what, where, which "
        "colour) is drawn first and then told, and ChatML chats. The share of the examples:",
        "",
        ", ".join(f"{maker.__name__} {share:.0%}" for maker, share in MIX) + ".",
        "",
        f"One content in {HELD_OUT_ONE_IN} (a hero and thing, a pair of numbers, a string to copy, a list) is never trained "
        "on; the figures below are on such contents, drawn with another seed. Facts, counting, spelling and small talk are "
        "closed sets: they are trained on whole and have a loss below but no score.",
        "",
        "## Training",
        "",
        *table(
            ("", ""),
            [
                ("command", f"`{run['command']}`"),
                ("device", where),
                ("date, commit", f"{run['date']}, {(run['commit'] or 'unknown')[:12]}"),
                ("versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items() if v)),
                ("tokens", f"{run['tokens']:,} in {run['steps']:,} steps of {settings['batch_rows'] * settings['length']:,}"),
                (
                    "rows",
                    f"{settings['length']:,} tokens, {settings['long_length']:,} in the last {1 - settings['long_from']:.0%} of the run",
                ),
                ("time", f"{run['train_seconds']} s of training, {run['wall_seconds']} s with everything"),
                ("speed", f"{run['tokens_per_second']:,} tokens/s"),
                ("optimizer", f"AdamW, peak {settings['lr']:g}, cosine by the clock, weight decay {settings['weight_decay']}, {settings['precision']}"),
                ("last training loss", f"{run['final_loss']} nats a learned token"),
            ],
        ),
        "Only stories and the assistant's turns are learned; system and user turns are read without loss.",
        "",
        "## What it can do",
        "",
        f"Greedy and sampled (temperature 0.6, top-k 20, top-p 0.95) answers to held-out requests, scored by "
        f"`training/score.py` (seed {scores['seed']}); `scores.json` has the exact rules and some transcripts.",
        "",
        *table(
            ("a story about a hero and a thing", "greedy", "sampled"),
            [(label, fraction(s[f"{key}_greedy"]), fraction(s[f"{key}_sampled"])) for key, label in STORY_ROWS]
            + [("median length", *(f"{s[f'story_tokens_{mode}']['median']} tokens" for mode in ("greedy", "sampled")))],
        ),
        *table(
            ("short answers, greedy, exact", "right"),
            [(label, fraction(s[key])) for key, label in ANSWER_ROWS if key in s]
            + [
                (f"copying {key.removeprefix('copy_').removesuffix('_tokens')} tokens", fraction(s[key]))
                for key in sorted((k for k in s if k.startswith("copy_")), key=lambda k: int(k[5:].partition("-")[0]))
            ],
        ),
        *table(
            ("held-out loss", "nats a learned token", "tokens"),
            [(kind, e["loss"], f"{e['tokens']:,}") for kind, e in scores["held_out_loss"].items()],
        ),
        *table(
            ("held-out loss by position in a packed row", "nats a learned token"),
            list(scores["held_out_loss_by_position"].items()),
        ),
        "## What it cannot do",
        "",
        "It knows only the words of its lexicon and the kinds of request above. It knows no facts of the world, cannot "
        "reason, and other languages are bytes that it can at most copy. Sums outside 0 to 99 are guesses. Asked for "
        "anything else it says that it does not know, or talks nonsense. Its sentences are the course's templates: do not "
        "judge Qwen3 by it.",
        "",
        "The licence is that of the repository.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def card_of(folder: Path) -> str:
    """The card that belongs to the files in `folder`."""
    config, run, scores = (json.loads((folder / f"{n}.json").read_text()) for n in ("config", "training_run", "scores"))
    return card(config, run, scores, (folder / "model.safetensors").stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the card is out of date")
    args = parser.parse_args()
    target, text = args.folder / "README.md", card_of(args.folder)
    if not args.check:
        target.write_text(text)
    elif not target.exists() or target.read_text() != text:
        sys.exit(f"{target} is out of date: run python training/model_card.py {args.folder}")


if __name__ == "__main__":
    main()
