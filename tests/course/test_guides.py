"""The guides say what is so: figures, excerpts, code, links, and both languages alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from course import guides

PAGES = guides.pages()
ENGLISH = [page for page in PAGES if page.parent == guides.FOLDER]


def name(page: Path) -> str:
    return str(page.relative_to(guides.FOLDER))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_figures_are_what_their_claims_compute(page):
    text = read(page)
    scope = guides.names(text)
    faults = [fault for claim in guides.claims(text) if (fault := guides.fault_of(claim, scope))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_claim_is_read(page):
    """A comment that the pattern misses would check nothing."""
    text = guides.blank_code(read(page))
    assert len(guides.claims(text)) == len(re.findall(r"<!--\s*claim\b", text))
    assert len(guides.USES.findall(text)) == len(re.findall(r"<!--\s*claims", text))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_excerpts_are_the_source(page):
    assert not guides.excerpt_faults(read(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_runs_and_prints_what_is_shown(page):
    assert not guides.block_faults(read(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert not guides.link_faults(page)


@pytest.mark.parametrize("page", ENGLISH, ids=name)
def test_both_languages_carry_the_same(page):
    counterpart = guides.FOLDER / "zh" / page.name
    assert counterpart.is_file(), f"helper/zh/{page.name} is missing"
    ours, theirs = guides.skeleton(page), guides.skeleton(counterpart)
    for part, values in ours.items():
        assert values == theirs[part], f"{part} differ"


def test_no_chinese_page_stands_alone():
    assert {page.name for page in PAGES} == {page.name for page in ENGLISH}


# --- the checks themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("112<!-- claim: 56 * 2 -->", False),
        ("1,024<!-- claim: 2**10 --> bytes", False),
        ("**1.5**<!-- claim: 1.5499 -->", False),
        ("1.5e-21<!-- claim: 1.469e-21 -->", False),
        ("约 0.0<!-- claim: -0.001 -->", False),
        ("113<!-- claim: 56 * 2 -->", True),
        ("1.6<!-- claim: 1.5499 -->", True),
        ("1,024<!-- claim: 2**11 -->", True),
        ("words<!-- claim: 1 -->", True),
        ("1<!-- claim: missing_name -->", True),
        ("1<!-- claim: True -->", True),
    ],
)
def test_a_wrong_figure_is_found(page, wrong):
    (claim,) = guides.claims(page)
    assert bool(guides.fault_of(claim, guides.names(page))) == wrong


def test_a_wrong_figure_is_filled():
    page = "是**1,025**<!-- claim: 2**10 --> and 7 %, (0.3<!-- claim: 1 / 4 -->) and 3e-5<!-- claim: 1.4e-21 -->"
    assert guides.fill(page) == (
        "是**1,024**<!-- claim: 2**10 --> and 7 %, (0.2<!-- claim: 1 / 4 -->) and 1e-21<!-- claim: 1.4e-21 -->"
    )


def test_claims_use_what_the_page_imports():
    text = "<!-- claims use: import math; from course.kv_cache import GIB -->\n\n1,073,741,824<!-- claim: math.trunc(GIB) -->"
    (claim,) = guides.claims(text)
    assert guides.fault_of(claim, guides.names(text)) is None


def test_a_drifted_excerpt_is_found_and_filled():
    head = "<!-- excerpt: nanovllm/utils/memory.py kv_block_bytes -->\n\n"
    drifted = head + "```python\ndef kv_block_bytes():\n    return 0\n```"
    assert guides.excerpt_faults(drifted)
    assert not guides.excerpt_faults(guides.fill(drifted))
    assert guides.excerpt_faults(head + "no block")
    assert guides.excerpt_faults(drifted.replace("kv_block_bytes", "no_such_function"))


def test_a_block_that_prints_something_else_is_found_and_filled():
    page = "```python run\nx = 3\nprint(x)\n```\n\n```text\n4\n```\n\n```python run\nprint(x + 1)\n```\n\n```text\n4\n```\n"
    (fault,) = guides.block_faults(page)
    assert "block 1" in fault
    assert not guides.block_faults(guides.fill(page))
    assert "ZeroDivisionError" in guides.block_faults("```python run\n1 / 0\n```\n")[0]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[a](memory.md#2-the-bytes)", 0),
        ("[a](#1-here-it-is)", 0),
        ("[a](https://example.org/x#y)", 0),
        ("[a](missing.md)", 1),
        ("[a](memory.md#3-the-bytes)", 1),
        ("`nanovllm/utils/memory.py` and `nanovllm/utils/`", 0),
        ("`nanovllm/utils/no_such.py`", 1),
        ("```\n[a](missing.md)\n```", 0),
    ],
)
def test_a_dead_link_is_found(text, faults, tmp_path):
    (tmp_path / "memory.md").write_text("# Memory\n\n## 2. The `bytes`!\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n## 1. Here: it is\n\n{text}\n")
    assert len(guides.link_faults(page)) == faults


def test_chinese_anchors():
    assert guides.slug("6. 实例：8、16、24 和 80 GB") == "6-实例81624-和-80-gb"
    assert guides.slug("5. `empty_cache` and `reset_peak_memory_stats`") == "5-empty_cache-and-reset_peak_memory_stats"


def test_a_difference_between_languages_is_seen(tmp_path):
    one, other = tmp_path / "a.md", tmp_path / "b.md"
    one.write_text("# A\n\n## B\n\n3<!-- claim: 1 + 2 -->\n")
    other.write_text("# A\n\n## B\n\n4<!-- claim: 2 + 2 -->\n")
    assert guides.skeleton(one)["headings"] == guides.skeleton(other)["headings"]
    assert guides.skeleton(one)["claims"] != guides.skeleton(other)["claims"]
