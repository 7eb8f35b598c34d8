"""The two guides that read a file line by line show all of it, and every line that they explain is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from course import guides

READINGS = {"weight_loading_guide.md": "nanovllm/utils/loader.py", "qwen3_walkthrough.md": "nanovllm/models/qwen3.py"}
PAGES = [folder / name for folder in (guides.FOLDER, guides.FOLDER / "zh") for name in READINGS]
HEAD = re.compile(r"^- (?=`)((?:`[^`\n]+`|[^`:：\n])+)[:：]", re.M)
"""What stands before the colon of a list item that begins with code."""


def page_name(page: Path) -> str:
    return str(page.relative_to(guides.FOLDER))


def parts(path: str) -> list[str]:
    """The functions and classes of a file."""
    tree = ast.parse((guides.ROOT / path).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def not_in(text: str, excerpts: list[str]) -> list[str]:
    """The lines before the colon of list items that no excerpt has; `...` in them stands for anything on the line."""
    source = "\n".join(excerpts)
    heads = [head for head in HEAD.findall(text) if not guides.PATH.search(head)]
    quotes = [quote for head in heads for quote in re.findall(r"`([^`]+)`", head)]
    return [quote for quote in quotes if not re.search(".*".join(map(re.escape, quote.split("..."))), source)]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_whole_file_is_shown(page):
    path = READINGS[page.name]
    shown = {name for file, name, _ in guides.EXCERPT.findall(page.read_text(encoding="utf-8")) if file == path}
    assert not set(parts(path)) - shown


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_line_that_is_explained_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert len(HEAD.findall(text)) > 60
    assert not not_in(text, [shown for _, _, shown in guides.EXCERPT.findall(text)])


def test_a_line_that_is_not_there_is_found():
    text = "- `x = 1`: one.\n- `x = 2`: two.\n- `f(...) == 3`: a call.\n- `f(1` ... `== 3`: its two ends.\n- Text with `x = 4`: none."
    assert not_in(text, ["x = 1\ny = f(1, 2) == 3\n"]) == ["x = 2"]
