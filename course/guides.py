"""Guides that cannot go stale: figures, excerpts, code and links of ``helper/`` are checked against the repository.

In a guide

* ``112<!-- claim: EXPRESSION -->``: the expression, rounded as the figure before it is printed, is that figure. What the
  expressions use is imported by ``<!-- claims use: from course.guide_figures import plan; import math -->``.
* ``<!-- excerpt: PATH NAME -->`` stands before a code block with the source of that function, class, method or constant.
* a code block that begins with ```` ```python run ```` is run; a ``text`` block right after it is what it prints. The blocks of
  a page share their names, in a process of their own.

``python -m course.guides fill`` writes figures, excerpts and outputs anew (read the sentences around a figure that changed),
``python -m course.guides count`` says how much is checked.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "helper"

CLAIM = re.compile(r"([^\s|(（]*)<!-- claim: (.+?) -->")
USES = re.compile(r"<!-- claims use: (.+?) -->", re.S)
FIGURE = re.compile(r"(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)\W*$")
EXCERPT = re.compile(r"<!-- excerpt: (\S+) (\S+) -->\n\n```python\n(.*?)^```$", re.S | re.M)
RUN = re.compile(r"^```python run\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.S | re.M)
LINK = re.compile(r"\]\(([^()\s]+)\)")
PATH = re.compile(
    r"`((?:nanovllm|hnsw|course|notebooks|helper|test-case|benchmarks|tests|training|scripts)/[\w./-]*[\w-])/?`"
)


def pages() -> list[Path]:
    """All guides, in both languages."""
    return sorted([*FOLDER.glob("*.md"), *FOLDER.glob("zh/*.md")])


# --- claims ------------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A figure as the page prints it, the expression that it must come from, and the line where it stands."""

    figure: str
    expression: str
    line: int


def claims(text: str) -> list[Claim]:
    """The claims of a page, in order; those in code blocks are examples, not claims."""
    text = blank_code(text)
    return [Claim(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in CLAIM.finditer(text)]


def names(text: str) -> dict[str, Any]:
    """What the page's expressions may use."""
    found: dict[str, Any] = {}
    for statements in USES.findall(text):
        for statement in statements.replace("\n", " ").split(";"):
            exec(statement.strip(), found)
    return found


def _figure(claim: Claim) -> str:
    found = FIGURE.search(claim.figure)
    return found[1] if found else ""


def fault_of(claim: Claim, scope: dict[str, Any]) -> str | None:
    """What is wrong with a claim, or None."""
    try:
        value = eval(claim.expression, scope)
    except Exception as error:  # whatever an expression raises, the page is wrong
        return f"line {claim.line}: {claim.expression} raises {type(error).__name__}: {error}"
    figure = FIGURE.search(claim.figure)
    if figure is None:
        return f"line {claim.line}: no figure stands before the claim {claim.expression}"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return f"line {claim.line}: {claim.expression} is {value!r}, not a number"
    printed = as_printed(value, figure[1])
    if printed != figure[1]:
        return f"line {claim.line}: the page says {figure[1]}, {claim.expression} is {printed} ({value!r})"
    return None


def as_printed(value: float, figure: str) -> str:
    """`value` in the form of `figure`: as many decimals, and commas if it has some."""
    mantissa, e, exponent = figure.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if e:
        short, _, power = f"{value:.{decimals}e}".partition("e")
        return f"{short}e{int(power)}"
    if not math.isfinite(value):
        return str(value)
    commas = "," if "," in figure else ""
    printed = f"{value:{commas}.{decimals}f}"
    return printed if float(printed.replace(",", "")) else printed.lstrip("-")


# --- excerpts ----------------------------------------------------------------------------------------------------------


def source_of(path: str, name: str) -> str:
    """The source of a function, class, method (``Class.method``) or assignment, decorators included, dedented.

    Raises:
        FileNotFoundError, LookupError: there is no such file, or no such name in it.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        for child in node.body:
            targets = getattr(child, "targets", [getattr(child, "target", None)])
            if part == getattr(child, "name", None) or part in [getattr(target, "id", None) for target in targets]:
                node = child
                break
        else:
            raise LookupError(f"{path} has no {name}")
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return textwrap.dedent("\n".join(text.split("\n")[first - 1 : node.end_lineno])) + "\n"


def excerpt_faults(text: str) -> list[str]:
    """Excerpts that are not what the source says now, and markers without a code block."""
    found = []
    for path, name, shown in EXCERPT.findall(text):
        try:
            if shown != source_of(path, name):
                found.append(f"{path} {name} has changed: python -m course.guides fill")
        except (OSError, LookupError) as error:
            found.append(str(error))
    bare = text.count("<!-- excerpt:") - len(EXCERPT.findall(text))
    return found + [f"{bare} excerpts have no code block: python -m course.guides fill"] * (bare > 0)


# --- code blocks -------------------------------------------------------------------------------------------------------


def run_blocks(text: str) -> list[tuple[str, str | None]]:
    """The blocks that run, each with the output that the page shows (None where it shows none)."""
    return [(code, shown if after else None) for code, shown, after in _with_presence(text)]


def _with_presence(text: str) -> Iterator[tuple[str, str, bool]]:
    for found in RUN.finditer(text):
        yield found[1], found[2] or "", found[2] is not None


@cache
def outputs(blocks: tuple[str, ...]) -> list[str]:
    """What the blocks print, run one after the other in a new process without a GPU; RuntimeError where one fails."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "course.guides", "blocks"],
        input=json.dumps(blocks), capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(result.stderr[-3000:])
    return json.loads(result.stdout.splitlines()[-1])


def _run_here(blocks: list[str]) -> list[str]:
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, code in enumerate(blocks, 1):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, f"<block {number}>", "exec"), scope)
        printed.append(tidy(out.getvalue()))
    return printed


def tidy(output: str) -> str:
    """Lines without trailing blanks, and no empty ones at the end."""
    return "".join(f"{line.rstrip()}\n" for line in output.rstrip().split("\n")) if output.strip() else ""


def block_faults(text: str) -> list[str]:
    """Blocks that fail or print something else than the page shows."""
    blocks = run_blocks(text)
    if not blocks:
        return []
    try:
        printed = outputs(tuple(code for code, _ in blocks))
    except RuntimeError as error:
        return [str(error)]
    return [
        f"block {number} prints\n{got}and the page shows\n{shown}"
        for number, (got, (_, shown)) in enumerate(zip(printed, blocks, strict=True), 1)
        if shown is not None and got != shown
    ]


# --- links -------------------------------------------------------------------------------------------------------------


def blank_code(text: str) -> str:
    """The page with the lines of its code blocks empty, so that line numbers stay."""
    return re.sub(r"^```.*?^```$", lambda found: "\n" * found[0].count("\n"), text, flags=re.S | re.M)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "").replace("*", "")).strip().lower()
    kept = (c for c in plain if c in " -_" or unicodedata.category(c)[0] in "LNM")
    return "".join(kept).replace(" ", "-")


def headings(text: str) -> list[tuple[int, str]]:
    """(level, text) of each heading."""
    return [(len(marks), words) for marks, words in re.findall(r"^(#+) (.+)$", blank_code(text), re.M)]


def links(text: str) -> list[str]:
    """Targets within the repository, in order."""
    return [target for target in LINK.findall(blank_code(text)) if not re.match(r"[a-z]+:", target)]


def link_faults(page: Path) -> list[str]:
    """Links to nothing, anchors that no heading has, and paths in backticks that do not exist."""
    text = page.read_text(encoding="utf-8")
    found = []
    for target in links(text):
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists():
            found.append(f"{target} does not exist")
        elif anchor and anchor not in [slug(words) for _, words in headings(other.read_text(encoding="utf-8"))]:
            found.append(f"{target}: no heading has that anchor")
    for path in PATH.findall(blank_code(text)):
        if not (ROOT / path).exists():
            found.append(f"`{path}` does not exist")
    return found


# --- two languages -----------------------------------------------------------------------------------------------------


def skeleton(page: Path) -> dict[str, list[Any]]:
    """What a page and its counterpart in the other language have in common."""
    text = page.read_text(encoding="utf-8")
    return {
        "headings": [level for level, _ in headings(text)],
        "claims": sorted((_figure(claim), claim.expression) for claim in claims(text)),
        "excerpts": [(path, name) for path, name, _ in EXCERPT.findall(text)],
        "code blocks": re.findall(r"^```([a-z].*)$", text, re.M),
    }


# --- command line ------------------------------------------------------------------------------------------------------


def fill(text: str) -> str:
    """The page with figures, excerpts and outputs as they are now."""
    scope = names(text)

    def with_figure(found: re.Match[str]) -> str:
        figure = FIGURE.search(found[1])
        value = eval(found[2], scope)
        if figure is None:
            return found[0]
        start, end = found.start(1) - found.start() + figure.start(1), found.start(1) - found.start() + figure.end(1)
        return found[0][:start] + as_printed(value, figure[1]) + found[0][end:]

    text = CLAIM.sub(with_figure, text)
    text = re.sub(
        r"<!-- excerpt: (\S+) (\S+) -->\n\n```python\n.*?^```$",
        lambda found: f"<!-- excerpt: {found[1]} {found[2]} -->\n\n```python\n{source_of(found[1], found[2])}```",
        text,
        flags=re.S | re.M,
    )
    blocks = run_blocks(text)
    if not blocks:
        return text
    printed = iter(outputs(tuple(code for code, _ in blocks)))

    def with_output(found: re.Match[str]) -> str:
        now = next(printed)
        return f"```python run\n{found[1]}```" + (f"\n\n```text\n{now}```" if found[2] is not None else "")

    return RUN.sub(with_output, text)


def main() -> None:
    command, *files = sys.argv[1:] or ["help"]
    chosen = [Path(file).resolve() for file in files] or pages()
    if command == "blocks":
        printed = _run_here(json.load(sys.stdin))
        print("\n" + json.dumps(printed))
    elif command == "fill":
        for page in chosen:
            old = page.read_text(encoding="utf-8")
            new = fill(old)
            if new != old:
                page.write_text(new, encoding="utf-8")
                print(f"{page.relative_to(ROOT)} written")
    elif command == "count":
        texts = [page.read_text(encoding="utf-8") for page in chosen]
        print(
            f"{len(texts)} pages: {sum(len(claims(text)) for text in texts)} claims, "
            f"{sum(len(EXCERPT.findall(text)) for text in texts)} excerpts, "
            f"{sum(len(run_blocks(text)) for text in texts)} code blocks that run, "
            f"{sum(len(links(text)) for text in texts)} links"
        )
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
