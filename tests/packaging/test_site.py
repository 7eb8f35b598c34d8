"""The site builds from the repository as it is, without a warning and without asking a network for anything."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of `source` into `out`, as ``make site`` does."""
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-c", str(source / "site")]
    command += ["-d", str(out.parent / "doctrees"), str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site") / "html"
    built = build(ROOT, out)
    assert built.returncode == 0, built.stderr
    return out


def test_every_notebook_and_guide_has_a_page_and_is_in_the_navigation(site):
    sources = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("helper/**/*.md"), ROOT / "README.md"]
    pages = [source.relative_to(ROOT).with_suffix(".html").as_posix() for source in sources]
    start = (site / "site" / "index.html").read_text(encoding="utf-8")
    assert len(pages) > 10
    assert [page for page in pages if not (site / page).is_file() or f'href="../{page}"' not in start] == []


def test_both_languages_know_each_other(site):
    for chinese in sorted((ROOT / "helper" / "zh").glob("*.md")):
        name = chinese.stem
        page = (site / "helper" / "zh" / f"{name}.html").read_text(encoding="utf-8")
        assert '<html lang="zh-CN"' in page and f'href="../{name}.html">English</a>' in page
        page = (site / "helper" / f"{name}.html").read_text(encoding="utf-8")
        assert '<html lang="en"' in page and f'href="zh/{name}.html">中文</a>' in page


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]+\"")
    pages = list(site.rglob("*.html"))
    assert not [(page.name, hit) for page in pages for hit in loaded.findall(page.read_text(encoding="utf-8"))]


def test_formulas_and_stored_outputs_are_shown(site):
    page = (site / "notebooks" / "01_attention_variance.html").read_text(encoding="utf-8")
    assert (
        page.count("<math") > 10
        and "$" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL).split("<article")[1]
    )
    assert page.count("cell_output") > 20 and list((site / "_images").glob("*.png"))


def test_every_diagram_has_its_picture_and_every_picture_its_diagram(site):
    spec = importlib.util.spec_from_file_location("draw_diagrams", ROOT / "scripts" / "draw_diagrams.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    pictures = {path.name for path in (ROOT / "site" / "diagrams").glob("*.svg")}
    assert pictures and pictures == set(drawing.diagrams()), "run: make diagrams"
    assert pictures <= {path.name for path in (site / "_images").iterdir()}


def test_a_dead_link_fails_the_build(tmp_path):
    shutil.copytree(ROOT / "site", tmp_path / "site")
    (tmp_path / "site" / "index.md").write_text("# Start\n\n[a](../notes.md)\n\n```{toctree}\n../README\n```\n")
    (tmp_path / "README.md").write_text("# Read\n\n[a](nowhere.md), [b](#no-such-heading)\n")
    built = build(tmp_path, tmp_path / "out" / "html")
    assert built.returncode != 0
    for target in ("../notes.md", "nowhere.md", "no-such-heading"):
        assert target in built.stderr
