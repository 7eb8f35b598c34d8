"""One command for all recordings: every step has its own end, and none stops the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import record_all
from record_all import DATA, Step

ROOT = Path(__file__).resolve().parents[2]
WRITES = """
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]); out.mkdir(parents=True, exist_ok=True)
(out / "made.json").write_text(json.dumps({"commit": os.environ["BENCH_COMMIT"]}))
"""
HANGS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({pid!r}).write_text(str(child.pid))
time.sleep(600)
"""


def run(steps: list[Step], monkeypatch, *arguments: object, gpus: int = 1) -> int:
    monkeypatch.setattr(sys, "argv", ["record_all", *map(str, arguments)])
    return record_all.main(steps, gpus=gpus)


def test_a_failure_and_a_hang_stop_nothing(tmp_path, monkeypatch, capsys):
    pid = tmp_path / "pid"
    steps = [
        Step("wrong", ("-c", "print('the reason'); raise SystemExit(3)"), 60, None),
        Step("endless", ("-c", HANGS.format(pid=str(pid))), 3, None),
        Step("two", ("-c", ""), 60, None, gpus=2),
        Step("elsewhere", ("-c", ""), 60, None, package="no_such_package"),
        Step("absent", ("no_such_script",), 60),
        Step("writes", ("-c", WRITES), 60, DATA),
    ]
    assert run(steps, monkeypatch, "--out", tmp_path) == 1
    text = capsys.readouterr().out
    results = dict(re.findall(r"^(\w+) +\d+  (.*)$", text[text.index("step ") :], re.MULTILINE))
    assert results == {
        "wrong": "failed (3)",
        "endless": "stopped",
        "two": "skipped: needs 2 GPUs",
        "elsewhere": "skipped: no_such_package is not installed",
        "absent": "skipped: there is no no_such_script.py",
        "writes": "ok  made.json",
    }
    assert "the reason" in text and "[6/6] writes" in text
    assert (tmp_path / "logs" / "wrong.log").read_text() == "the reason\n"
    made = json.loads((tmp_path / DATA.relative_to(ROOT) / "made.json").read_text())
    assert made["commit"] == record_all.commit()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(pid.read_text())) and time.monotonic() < deadline:
        if psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(int(pid.read_text())), "what a stopped step started still runs"


def test_the_minutes_are_kept(tmp_path, monkeypatch, capsys):
    steps = [Step(name, ("-c", "import time; time.sleep(30)"), 60, None) for name in ("first", "second")]
    monkeypatch.setattr(record_all, "SHORTEST", 1)
    start = time.monotonic()
    assert run(steps, monkeypatch, "--out", tmp_path, "--minutes", 2.5 / 60) == 1
    assert time.monotonic() - start < 20
    text = capsys.readouterr().out
    assert re.search(r"^first +\d+  stopped$", text, re.MULTILINE)
    assert re.search(r"^second +0  skipped: no time left$", text, re.MULTILINE)


def test_only_and_skip(tmp_path, monkeypatch, capsys):
    steps = [Step(name, ("-c", ""), 60, None) for name in ("a", "b", "c")]
    assert run(steps, monkeypatch, "--only", "a", "b", "--skip", "b", "--out", tmp_path) == 0
    text = capsys.readouterr().out
    assert "[1/1] a: ok" in text and " b" not in text.split("\n\n")[-1]
    with pytest.raises(SystemExit, match="there is no step d; there are a, b, c"):
        run(steps, monkeypatch, "--only", "d")


def test_every_step_is_a_script_that_takes_its_options():
    steps = record_all.all_steps(Path("peer"))
    assert [step.name for step in steps[:2]] == ["tests", "agreement"]
    assert len({step.name for step in steps}) == len(steps)
    for step in steps[1:]:
        script = ROOT / "benchmarks" / f"{step.words[0] if step.words[0] != '-m' else 'kernels'}.py"
        source = script.read_text()
        if "engines.add_options(" in source:
            source += (ROOT / "benchmarks" / "engines.py").read_text()
        for option in ["--out", *(word for word in step.words if word.startswith("--"))]:
            assert f'"{option}"' in source, f"{step.name}: {option}"
        # Where its files go without --out is where the steps look for them.
        default = re.search(r'"--out", type=Path, default=(?:common\.)?(\w+)', source)[1]
        assert getattr(record_all, default) == step.folder, step.name


def test_without_a_gpu_it_says_so_and_lists(tmp_path):
    """Without the packages installed too: the folder is enough."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    script = ROOT / "benchmarks" / "record_all.py"
    refused = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1 and "no CUDA device" in refused.stderr
    listed = subprocess.run(
        [sys.executable, script, "--list"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == len(record_all.all_steps())
