"""NANO_VLLM_VS_VLLM.md: every cell has its evidence, and ours exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "NANO_VLLM_VS_VLLM.md").read_text(encoding="utf-8")
HEAD = "|  | this engine | nano-vllm | vLLM |\n| --- | --- | --- | --- |\n"
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
NANO = re.compile(
    r"https://github\.com/GeeeekExplorer/nano-vllm/((blob|tree)/[0-9a-f]{40}(/[\w./-]+)?|(pull|issues)/\d+)$"
)
VLLM = re.compile(r"https://github\.com/vllm-project/vllm/(blob|tree)/v0\.20\.2/[\w./-]+$")
FEATURES = """
what a step holds, chunked prefill, prefix caching, preemption, async scheduling, backends, block size, CUDA graphs,
what a decode step is given, fusion, tensor parallel, commands to the workers, several hosts, sampling parameters, logprobs,
stop strings, streaming, abort, models, quantization,
speculative decoding, LoRA, images, interface, metrics, trace, tests, runs on, start-up
"""


def rows() -> dict[str, list[str]]:
    """Feature -> the three cells, of every hand-written table."""
    page = re.sub(r"<!-- table:.*?<!-- /table -->", "", PAGE, flags=re.DOTALL)
    found = {}
    for part in page.split(HEAD)[1:]:
        for line in part.partition("\n\n")[0].splitlines():
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            assert len(cells) == 3, line
            found[name.strip()] = cells
    return found


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("feature", rows())
def test_every_cell_has_evidence(feature):
    ours, nano, vllm = rows()[feature]
    for cell in (ours, nano, vllm):
        claim, separator, evidence = cell.partition("<br>")
        assert claim and separator and LINK.search(evidence)
    for label, target in LINK.findall(ours):
        name = label.strip("`")
        assert name.startswith("test_") and name in functions_of(ROOT / target), f"{target}::{name}"
    for _, target in LINK.findall(nano):
        assert NANO.match(target), target
    for _, target in LINK.findall(vllm):
        assert VLLM.match(target), target


def test_every_feature_is_there():
    names = " ".join(rows())
    assert not [feature for feature in re.split(r",\s+", FEATURES.strip()) if feature not in names]
    assert re.findall(r"<!-- table:([\w-]+) -->", PAGE) == ["speed", "by-commit", "attention", "parallel", "lines"]


def test_files_named_in_the_text_exist():
    named = re.findall(r"`((?:nanovllm|benchmarks|tests|scripts)/[\w./-]+)`", PAGE)
    assert named and not [path for path in named if not (ROOT / path).exists()]
