"""The pages' tables are those of the records; what they say follows from the samples."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("page_tables", ROOT / "scripts" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)
PEERS = json.loads((ROOT / "benchmarks" / "peers.json").read_text())


def without_lines(text: str) -> str:
    """The page without the table of line counts, which every change of code moves a little."""
    return re.sub(r"<!-- table:lines -->.*?<!-- /table -->", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_tables_are_current(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table:" in text
    current = tables.rewritten(text, chinese=tables.is_chinese(page))
    assert without_lines(text) == without_lines(current), "run: make tables"


def test_the_line_counts_are_current():
    text = (ROOT / "NANO_VLLM_VS_VLLM.md").read_text(encoding="utf-8")
    for folder, pattern in (
        ("nanovllm", r"in the package \| about ([\d,]+)"),
        ("tests/nanovllm", r"its tests: about ([\d,]+)"),
    ):
        files = subprocess.run(
            ["find", folder, "-name", "*.py"], cwd=ROOT, capture_output=True, text=True
        ).stdout.split()
        counted = sum((ROOT / file).read_bytes().count(b"\n") for file in files)
        shown = int(re.search(pattern, text)[1].replace(",", ""))
        assert shown == pytest.approx(counted, rel=0.15), "run: make tables"


def write(folder: Path, name: str, samples: list[float], **more) -> None:
    origin = {"device": {"name": "G"}, "date": "2026-01-02T03:04:05+00:00", "commit": "abcdef0123"}
    (folder / f"{name}.json").write_text(json.dumps(origin | {"samples": samples} | more))


def row(text: str, start: str) -> list[str]:
    return [cell.strip() for cell in re.search(rf"^\| {start}.*$", text, re.MULTILINE)[0].split("|")[1:-1]]


def test_speed_beside_peers(tmp_path):
    write(tmp_path, "throughput-nanovllm-graphs", [20000.0, 21000.0, 22000.0], cold=9000.0)
    write(tmp_path, "latency_bs1-nanovllm-graphs", [4.0, 2.5, 2.0], cold=9.0, workload={"batch": 1})
    write(tmp_path, "latency_bs32-nanovllm-graphs", [4.0, 3.0, 2.5], cold=9.0)
    write(tmp_path, "gpu_idle-nanovllm-graphs", [0.01, 0.0242, 0.5])
    text = tables.speed(tmp_path, PEERS)
    # 21000 / 15545 = 1.3509, 21000 / 17253 = 1.2172, 21000 / 25500 = 0.8235; a time is better when it is smaller.
    assert row(text, "bench")[1:] == ["**21,000**", "15,545", "1.35 x", "17,253", "1.21 x", "82 % of 25,500"]
    assert row(text, "batch 1,")[1:] == ["**400**", "415", "behind: 0.96 x", "447", "behind: 0.89 x", "15 % of 2,560"]
    # 2.53 / 3 = 0.843, 2.64 / 3 = 0.88, 0.69 / 3 = 0.23
    assert row(text, "batch 32,")[1:] == [
        "**3.00**",
        "2.53",
        "behind: 0.84 x",
        "2.64",
        "behind: 0.88 x",
        "23 % of 0.69",
    ]
    assert row(text, "batch 8,")[1] == "not measured yet" and "idle 2.4%" in text
    assert "G, 2026-01-02, commit abcdef0" in text and PEERS["measured"]["device"] in text


@pytest.mark.parametrize("name", ["speed", "attention", "cpu"])
def test_a_chinese_table_says_the_same(name):
    """The same figures in the same cells, and every head and label translated."""
    english = tables.TABLES[name](tables.RESULTS, PEERS)
    chinese = tables.in_chinese(english)
    figures = r"\d(?:[\d,.]*\d)?"
    rows = [[line for line in text.splitlines() if line.startswith("|")] for text in (english, chinese)]
    assert len(rows[0]) == len(rows[1]) > 2
    for ours, theirs in zip(*rows, strict=True):
        cells = [line.split("|") for line in (ours, theirs)]
        assert [sorted(re.findall(figures, cell)) for cell in cells[0]] == [
            sorted(re.findall(figures, cell)) for cell in cells[1]
        ]
    words = set(re.findall(r"[A-Za-z][a-z]{2,}", " ".join(rows[1])))
    assert words <= {"bench", "token", "nano", "vllm", "flash", "attn", "transformers", "Triton"}


def test_a_ratio_is_cut_and_below_one_is_behind():
    assert tables.standing(199.99, 100, True) == "1.99 x"
    assert tables.standing(99.99, 100, True) == "behind: 0.99 x"
    assert tables.standing(100, 50, False) == "behind: 0.50 x"


def test_every_table_says_where_it_comes_from(tmp_path):
    write(tmp_path, "decode_attention-triton", [2.0])
    write(tmp_path, "decode_attention-flash_attn", [2.5])
    assert row(tables.attention(tmp_path, PEERS), "128")[1:] == ["**2.00**", "2.50", "behind: 0.80 x"]
    for name, samples in (("nanovllm", [30.0, 44.0, 50.0]), ("transformers", [20.0, 20.0, 20.0])):
        write(tmp_path, f"cpu_vs_transformers_fixed-{name}", samples)
    assert row(tables.cpu(tmp_path, PEERS), "each prompt")[3] == "2.20 x"
    check = {"equal_prompts": 3, "prompts": 4}
    write(tmp_path, "tensor_parallel-qwen3-8b", [8.0], samples_of_one_process=[10.0], float32_check=check)
    assert row(tables.parallel(tmp_path, PEERS), "Qwen3-8B's")[1:] == ["G", "10.0", "**8.00**", "1.25 x", "3 of 4"]
    write(tmp_path, "tensor_parallel-qwen3-8b", [8.0], samples_of_one_process=[10.0], float32_check=None)
    assert row(tables.parallel(tmp_path, PEERS), "Qwen3-8B's")[5] == "not compared"


def test_two_gpus_beside_one_are_told_apart_by_their_gpu():
    """An H100's row must not be compared with an H200's."""
    text = tables.parallel(tables.RESULTS, PEERS)
    starts = (r"Qwen3-8B's shape \|", r"256 sequences of 1,024 tokens \|", r"Qwen3-8B's shape, NCCL's sums \|")
    found = [row(text, start) for start in (*starts, "Qwen3-8B's shape, NCCL's sums, not")]
    assert [cells[1] for cells in found] == ["H200", "H200", "H200", "H100"]
    assert [cells[4] for cells in found] == ["1.48 x", "1.79 x", "1.26 x", "1.14 x"]
    workload = tables.load(tables.RESULTS, "tensor_parallel-qwen3-8b-h200-batch256")["workload"]
    assert found[1][0] == "{batch} sequences of {prompt_tokens:,} tokens".format(**workload)


def test_commits_are_compared_on_one_kind_of_gpu(tmp_path):
    assert tables.by_commit(tmp_path, PEERS) == "Not measured yet.\n"
    for version, ours in (("-h200-276eb4a", 100.0), ("-h200-9a107e9", 90.0), ("-h200", 120.0)):
        write(tmp_path, f"throughput-nanovllm-graphs{version}", [ours])
        write(tmp_path, f"latency_bs8-nanovllm-graphs{version}", [ours])
    assert row(tables.by_commit(tmp_path, PEERS), "bench")[1:] == ["100", "90.0", "**120**", "1.20 x"]
    assert row(tables.by_commit(tmp_path, PEERS), "batch 8")[4] == "behind: 0.83 x"
    for name in ("throughput", *(f"latency_bs{batch}" for batch in (1, 8, 32, 128))):
        records = [
            tables.load(tables.RESULTS, f"{name}-nanovllm-graphs{version}")
            for version in ("-h200-276eb4a", "-h200-9a107e9", "-h200")
        ]
        assert {record["device"]["name"] for record in records} == {"NVIDIA H200"}


def test_a_cold_first_round_is_no_sample():
    assert tables.warm({"samples": [1.0, 5.0, 6.0]}) == [5.0, 6.0]
    assert tables.warm({"samples": [5.0, 6.0], "cold": 1.0}) == [5.0, 6.0]


def test_a_region_that_names_no_table_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="speeds"):
        tables.rewritten("<!-- table:speeds -->\n<!-- /table -->")
    with pytest.raises(ValueError, match="not closed"):
        tables.rewritten("<!-- table:speed -->\n")


def test_check_finds_a_stale_table(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- table:cpu -->\nold\n<!-- /table -->\n")
    monkeypatch.setattr(tables, "PAGES", (page,))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1 and "old" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0 and "transformers" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0
