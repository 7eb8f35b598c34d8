"""The course as a site: ``make site`` builds build/site from the notebooks and guides as they are, without a network.

The repository's root is the source folder, so that a link between pages means the same here and there. Notebooks are
not run: their stored outputs are shown. Formulas become MathML, which browsers draw themselves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parent.parent

project = "How an LLM inference engine works"
author = copyright = ""
language = "en"
extensions = ["myst_nb"]
root_doc = "site/index"
include_patterns = [
    "site/*.md",
    "*.md",
    "helper/**.md",
    "notebooks/*.ipynb",
    "benchmarks/LEDGER.md",
    "benchmarks/results/hnsw_peers.md",
    "test-case/*.md",
    "nanovllm/embedded_model/README.md",
]
exclude_patterns = [".venv", "build"]
templates_path = ["templates"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

suppress_warnings = [
    "mystnb.unknown_mime_type"
]  # a check's verdict for the tests; the text that people read is beside it

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["course.css"]
html_additional_pages = {"index": "to_the_start.html"}
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search field stands in the side bar already
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}  # dark where the reader's system is
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"


def counterpart(page: str) -> tuple[str, str] | None:
    """The same page in the other language as (name, what to call it), or None where there is only one."""
    if page.startswith("helper/zh/"):
        other, label = page.replace("helper/zh/", "helper/", 1), "English"
    elif page.startswith("helper/"):
        other, label = page.replace("helper/", "helper/zh/", 1), "中文"
    else:
        readmes = {"README": ("README.zh-CN", "中文"), "README.zh-CN": ("README", "English")}
        other, label = readmes.get(page, (page, ""))
    return (other, label) if label and (ROOT / f"{other}.md").is_file() else None


def is_chinese(page: str) -> bool:
    """Whether a page is written in Chinese."""
    return page.startswith("helper/zh/") or page.endswith("zh-CN")


def mark_language(app, page, template, context, doctree):
    """Tell browsers and screen readers a page's language, and link to the other one."""
    if is_chinese(page):
        context["language"] = "zh-CN"
    if other := counterpart(page):
        link = f'<p class="other-language"><a href="{context["pathto"](other[0])}">{other[1]}</a></p>\n'
        context["body"] = link + context.get("body", "")


def name_folders(app, doctree):
    """Show links to folders of the repository as text: a site has no page for them. Other dead links stay errors."""
    here = (ROOT / app.env.docname).parent
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftarget"] and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


class Diagrams(SphinxTransform):
    """Show Mermaid blocks as the pictures that scripts/draw_diagrams.py made of them."""

    default_priority = 400

    def apply(self, **kwargs):
        for block in list(self.document.findall(nodes.literal_block)):
            if block.get("language") == "mermaid":
                name = hashlib.sha256(block.astext().strip().encode()).hexdigest()[:16]
                picture = nodes.image(uri=f"/site/diagrams/{name}.svg", alt=block.astext(), classes=["diagram"])
                picture.source, picture.line = block.source, block.line
                block.replace_self(picture)


def visit_inline(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_block(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_lexer("mermaid", TextLexer)  # diagrams: GitHub and JupyterLab draw them, the site shows their source
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.add_transform(Diagrams)
    app.connect("doctree-read", name_folders)
    app.connect("html-page-context", mark_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
