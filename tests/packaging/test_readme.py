"""README and CONTRIBUTING are true: their links, commands, files and figures; the Chinese README says the same."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from course.guides import blank_code, headings
from nanovllm.config import EMBEDDED_MODEL
from nanovllm.utils.memory import kv_bytes_per_token

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_named_files_and_folders_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:nanovllm|hnsw|course|notebooks|training|benchmarks|tests|test-case|scripts)/[\w./-]*)`", text
    )
    named += re.findall(r"(?<=[ /])((?:tests|notebooks|benchmarks)/[\w/.-]+\.(?:py|ipynb))", text)
    assert named
    assert not [path for path in named if "NN" not in path and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^    |`)make ([a-z][a-z-]+)", text, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets >= ({"lab", "test"} if page.startswith("README") else {"test", "format"})
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)]


def test_the_chapters_are_the_notebooks():
    linked = re.findall(r"\]\(notebooks/([^)]+\.ipynb)\)", README)
    assert linked == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_figures():
    """Each figure in the text, computed again."""
    parameters = json.loads((EMBEDDED_MODEL / "training_run.json").read_text())["parameters"]
    assert f"{parameters / 1e6:.1f} million parameters" in README
    # Qwen3-0.6B: 28 layers, 8 KV heads of 128, bfloat16; 596,049,920 parameters (tests/course/test_anatomy.py counts them).
    per_token = kv_bytes_per_token(28, 8, 128, 2)
    assert f"{per_token / 2**10:.0f} KiB of KV cache" in README
    assert f"4,096 tokens take {4096 * per_token / 2**20:.0f} MiB" in README
    assert f"{596_049_920 * 2 / 1e9:.1f} GB for the weights" in README


def test_speeds_are_those_of_the_records():
    """The ratios to transformers, computed here once more: cut, not rounded up. The rest: tests/benchmarks/test_tables.py."""

    def load(name: str) -> dict:
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))

    for kind, words in (("fixed", "each prompt gets 128 tokens"), ("natural", "each ends where the model ends it")):
        rates = [load(f"cpu_vs_transformers_{kind}-{engine}")["samples"] for engine in ("nanovllm", "transformers")]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(*rates, strict=True))
        (row,) = re.findall(rf"^\| {words} \|.*$", README, re.MULTILINE)
        assert row.endswith(f" {int(ratio * 100) / 100:.2f} x |")


def test_the_five_lines_run(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "stop" in (out := capsys.readouterr().out) or "length" in out


def test_terminal_commands_exist():
    commands = re.findall(r"-m nanovllm (\w+)|`(generate|bench)\b", README)
    named = {a or b for a, b in commands}
    assert named == {"chat", "generate", "bench"}
    for command in named:
        subprocess.run([sys.executable, "-m", "nanovllm", command, "--help"], check=True, capture_output=True)


# --- README.zh-CN.md keeps step with README.md -------------------------------------------------------------------------


def figures(text: str) -> Counter[float]:
    """How often each number stands on the page, whatever its unit is called: 4.7 million is 470 万."""
    found: Counter[float] = Counter()
    for digits, unit in re.findall(r"(\d[\d,]*(?:\.\d+)?)( million| 万)?", text):
        found[round(float(digits.replace(",", "")) * {" million": 1e6, " 万": 1e4}.get(unit, 1), 6)] += 1
    return found


def outline(text: str) -> dict[str, object]:
    """What both languages have in common, in the order of the page."""
    lines = text.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {
        "headings": [level for level, _ in headings(text)],
        "paragraphs": [
            re.match(r"\W*", block)[0].strip() for block in re.split(r"\n\n+", blank_code(text)) if block.strip()
        ],
        "links": re.findall(r"\]\(([^)]+)\)", text)[1:],  # the first leads to the other language
        "code blocks": re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL),
        "commands": [line.partition("#")[0].strip() for line in lines if line.startswith("    ")],
        "code in the text": sorted(re.findall(r"`[^`\n]+`", blank_code(text))),
        "generated regions": re.findall(r"<!-- (.+?) -->", text),
        "cells of the tables": [len(row) for row in rows],
        "first cells": [row[0] for row in rows if re.match(r"`|\d\d(_|$)", row[0])],
    }


@pytest.mark.parametrize("part", outline(README))
def test_the_chinese_readme_has_the_same_structure(part):
    assert outline(CHINESE)[part] == outline(README)[part]


def test_the_chinese_readme_has_the_same_figures():
    assert figures(CHINESE) == figures(README)


def test_each_readme_links_to_the_other_before_anything_else():
    firsts = [re.search(r"\]\(([^)]+)\)", text)[1] for text in (README, CHINESE)]
    assert firsts == ["README.zh-CN.md", "README.md"]
