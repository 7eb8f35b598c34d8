"""Scores a model folder on held-out examples, with counts: what the tiny Qwen3 can do and how often.

    python training/score.py --model nanovllm/embedded_model --out training/out/scores.json

Every item comes from the held-out split (`data.is_held_out`): no answer's content was trained on. Generation is
transformers', in fp32 on the weights as shipped. What each score means is in `RULES`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import lexicon as lx
import torch
import transformers
from data import Example, examples, render_chat
from tokenizers import Tokenizer
from train import NO_LOSS, command_output, count_parameters, device_facts, held_out_losses, loss_sum, pack
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED = 7
STORY_LIMIT = 320  # tokens; the longest training story has about 250
COPY_BUCKETS = ((1, 8), (9, 16), (17, 32), (33, 64), (65, 128))
NAMES = frozenset(lx.GIRLS + lx.BOYS)
RULES = {
    "story_hero_kept": "the hero that the request names is in the first and in the second half of the story, and every "
    'phrase that introduces a child ("girl named X", "boy called X", "story of X", "X was a girl") introduces the hero',
    "story_thing_kept": "the noun of the thing that the request names is in the story twice or more, once at least in "
    "the second half, and it never has two colours, nor another colour than in the request",
    "story_few_names": "at most one other known name is in the story (plots have a hero and a friend)",
    "story_long": "the story has 100 tokens or more",
    "story_stops": f"the story ends by itself within {STORY_LIMIT} tokens",
    "addition": "the number after '=' is the sum, terms 0 to 99",
    "subtraction": "the number after '=' is the difference, 99 >= a >= b >= 0",
    "copy": "the answer is the string, character by character, by its length in tokens",
    "lookup": "the answer is the value that stands beside the name in the prompt's list",
    "passage": "the answer is the expected sentence",
}
INTRODUCTION = re.compile(
    r"\b(?:girl|boy) (?:named|called) ([A-Z][a-z]+)|\bstory of ([A-Z][a-z]+)|\b([A-Z][a-z]+) was a (?:[a-z]+ )?(?:girl|boy)\b"
)


def halves(text: str) -> tuple[str, str]:
    """The text cut in two at the word in the middle."""
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def colours_of(text: str, noun: str) -> set[str]:
    """The colours that stand right before the noun, anywhere in the text."""
    return set(re.findall(rf"\b({'|'.join(lx.COLOURS)}) {re.escape(noun)}\b", text))


def judge_story(text: str, tokens: int, stopped: bool, request: str, hero: str, noun: str) -> dict[str, bool]:
    """The story rules of `RULES` for one generated story."""
    first, second = halves(text)
    introduced = ["".join(groups) for groups in INTRODUCTION.findall(text)]
    twice = len(re.findall(rf"\b{re.escape(noun)}\b", text)) >= 2
    one_colour = len(colours_of(text, noun) | colours_of(request, noun)) <= 1
    others = {word for word in re.findall(r"[A-Z][a-z]+", text) if word in NAMES and word != hero}
    return {
        "story_hero_kept": mentions(first, hero) and mentions(second, hero) and all(x == hero for x in introduced),
        "story_thing_kept": twice and mentions(second, noun) and one_colour,
        "story_few_names": len(others) <= 1,
        "story_long": tokens >= 100,
        "story_stops": stopped,
    }


def judge_result(answer: str, result: str) -> bool:
    """Whether the first number after the last '=' is `result`."""
    found = re.match(r"\s*(\d+)", answer.rpartition("=")[2])
    return found is not None and found.group(1) == result


def bucket(tokens: int) -> str | None:
    for low, high in COPY_BUCKETS:
        if low <= tokens <= high:
            return f"{low}-{high}"
    return None


@torch.no_grad()
def generate(model, tokenizer, prompts: list[str], limit: int, batch: int, sample: bool = False):
    """(text, tokens, stopped) of each prompt, in order. Sampled: temperature 0.6, top-k 20, top-p 0.95."""
    how = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95} if sample else {"do_sample": False}
    if not sample:  # the folder's generation_config asks for sampling
        how |= {"temperature": None, "top_k": None, "top_p": None}
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: list = [None] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left")
        inputs = inputs.to(model.device)
        out = model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=limit, **how
        )
        for i, row in zip(chosen, out[:, inputs.input_ids.shape[1] :].tolist()):
            end = next((k for k, token in enumerate(row) if token in stop), None)
            ids = row if end is None else row[:end]
            results[i] = (tokenizer.decode(ids), len(ids), end is not None)
    return results


def prompt_of(example: Example) -> str:
    return render_chat(example.messages[:-1], add_generation_prompt=True)


def held_out(kind: str, n: int, keep=lambda example: True) -> list[Example]:
    return list(islice((e for e in examples(SEED, "heldout", kind) if keep(e)), n))


def names_both(example: Example) -> bool:
    request = example.messages[-2]["content"]
    return mentions(request, example.facts["hero"]) and mentions(request, example.facts["noun"])


def score(model, tokenizer, per_kind: int, batch: int, say=print) -> dict[str, dict]:
    """{score: {"right", "of"}} and a few transcripts under "samples"."""
    results: dict[str, dict] = {}
    samples: list[dict] = []

    def add(name: str, right: bool) -> None:
        entry = results.setdefault(name, {"right": 0, "of": 0})
        entry["right"] += bool(right)
        entry["of"] += 1

    stories = held_out("tell", per_kind, names_both)
    for mode in ("greedy", "sampled"):
        torch.manual_seed(SEED)
        prompts = [prompt_of(e) for e in stories]
        generated = generate(model, tokenizer, prompts, STORY_LIMIT, batch, sample=mode == "sampled")
        lengths = sorted(tokens for _, tokens, _ in generated)
        for e, (text, tokens, stopped) in zip(stories, generated):
            marks = judge_story(text, tokens, stopped, e.messages[-2]["content"], e.facts["hero"], e.facts["noun"])
            for name, right in marks.items():
                add(f"{name}_{mode}", right)
            add(f"story_all_{mode}", all(marks.values()))
        results[f"story_tokens_{mode}"] = {"median": lengths[len(lengths) // 2], "of": len(lengths)}
        for e, (text, _, _) in list(zip(stories, generated))[:2]:
            samples.append({"kind": f"tell, {mode}", "prompt": e.messages[-2]["content"], "answer": text})
        say(f"stories, {mode}: {results[f'story_all_{mode}']}")

    limits = {"addition": 24, "subtraction": 24, "copy": 220, "lookup": 24, "passage": 40}
    for kind, limit in limits.items():
        items = held_out(kind, per_kind)
        generated = generate(model, tokenizer, [prompt_of(e) for e in items], limit, batch)
        for e, (text, _, stopped) in zip(items, generated):
            if kind in ("addition", "subtraction"):
                right = judge_result(text, e.facts["result"])
            else:
                right = text == e.answer and stopped
            add(kind, right)
            add("short_answers_stop", stopped)
            if kind == "copy":
                within = bucket(len(tokenizer(e.answer).input_ids))
                if within:
                    add(f"copy_{within}_tokens", right)
            if kind == "passage":
                add(f"passage_{e.facts['about']}", right)
        for e, (text, _, _) in list(zip(items, generated))[:2]:
            samples.append({"kind": kind, "prompt": e.messages[-2]["content"], "answer": text})
        say(f"{kind}: {results[kind]}")
    for entry in results.values():
        if "right" in entry:
            entry["percent"] = round(100 * entry["right"] / entry["of"], 1)
    return {"scores": results, "samples": samples}


@torch.no_grad()
def losses_by_position(model, tokenizer: Tokenizer, device, rows: int, length: int = 2048) -> dict[str, float]:
    """Mean held-out loss of the training mix by position in a packed row: how far the context carries."""
    batch = torch.from_numpy(pack(examples(SEED, "heldout"), tokenizer, rows, length)).to(device)
    marked = batch.long()
    ids = torch.where(marked >= NO_LOSS, marked - NO_LOSS, marked)
    sums: dict[str, list[float]] = {}
    for row, row_marked in zip(ids.split(8), marked.split(8)):
        logits = model(input_ids=row).logits.float()
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), row[:, 1:], reduction="none")
        learned = row_marked[:, 1:] < NO_LOSS
        for start in range(0, length, 512):
            part = slice(start, min(start + 512, length - 1))
            entry = sums.setdefault(f"{start}-{start + 511}", [0.0, 0.0])
            entry[0] += losses[:, part][learned[:, part]].sum().item()
            entry[1] += learned[:, part].sum().item()
    return {name: round(total / n, 4) for name, (total, n) in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--per-kind", type=int, default=500)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--loss-rows", type=int, default=64, help="rows of 1,024 tokens a kind")
    parser.add_argument("--device", help="cuda or cpu; default: a GPU if there is one")
    parser.add_argument("--command", help="the command to record, where sys.argv says it wrongly")
    args = parser.parse_args()
    started = time.perf_counter()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device).eval()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {text}", flush=True)

    raw = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    losses = held_out_losses(model, loss_sum, raw, args.loss_rows, 1024, device, seed=SEED)
    say(f"held-out loss of the mix: {losses['mix']}")
    by_position = losses_by_position(model, raw, device, args.loss_rows)
    say(f"by position: {by_position}")
    result = {
        "schema": 1,
        "name": "scores",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("TRAINING_COMMIT") or command_output("git", "rev-parse", "HEAD"),
        "command": args.command or "python " + " ".join(sys.argv),
        "device": device_facts(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seed": SEED,
        "parameters": count_parameters(model),
        "rules": RULES,
        "held_out_loss": losses,
        "held_out_loss_by_position": by_position,
        **score(model, tokenizer, args.per_kind, args.batch, say),
    }
    result["wall_seconds"] = round(time.perf_counter() - started, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    say(f"wrote {args.out}")


if __name__ == "__main__":
    main()
