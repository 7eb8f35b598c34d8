"""The glossaries of both languages hold the same terms, name each other's, list them all, and say where each is taught."""

from __future__ import annotations

import re

import pytest

from course import guides

PAGES = {"en": guides.FOLDER / "glossary.md", "zh": guides.FOLDER / "zh" / "glossary.md"}


def entries(language: str) -> dict[str, str]:
    """The text of each term."""
    parts = re.split(r"^### (.+)$", PAGES[language].read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def other_name(text: str) -> str:
    """The term in the other language, with which an entry begins."""
    found = re.match(r"\s*\*\*(.+?)[.。]\*\*", text)
    return found[1] if found else ""


def test_each_term_has_the_others_name():
    english, chinese = entries("en"), entries("zh")
    assert [other_name(text) for text in english.values()] == list(chinese)
    assert [other_name(text) for text in chinese.values()] == list(english)


@pytest.mark.parametrize("language", PAGES)
def test_no_term_is_there_twice(language):
    slugs = [guides.slug(term) for term in re.findall(r"^#+ (.+)$", PAGES[language].read_text(encoding="utf-8"), re.M)]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize("language", PAGES)
def test_the_list_at_the_top_has_every_term(language):
    top = PAGES[language].read_text(encoding="utf-8").partition("\n## ")[0]
    listed = re.findall(r"^\[[^\]]+\]\(#([^)]+)\)", top, re.M)
    assert sorted(listed) == sorted(guides.slug(term) for term in entries(language))


@pytest.mark.parametrize("language", PAGES)
def test_every_term_says_where_it_is_taught(language):
    nowhere = [term for term, text in entries(language).items() if not re.search(r"\]\([\w./]+\.(?:md|ipynb)", text)]
    assert not nowhere
