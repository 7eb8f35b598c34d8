"""Run everything that CI runs: lint, tests, notebooks. Called by ``make test``, in the virtual environment.

Every step runs even when one before it failed; the counts at the end say what ran, and the exit code whether all passed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from course.notebooks.kernel import use_test_environment

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "test-run"
COUNTS = ROOT / ".cache" / "counts"


def run(title: str, *command: str) -> bool:
    """Run one step from the repository's root, say how it went, and return whether it passed."""
    print(f"\n== {title}\n   {' '.join(command[1:])}", flush=True)
    started = time.perf_counter()
    passed = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    print(f"== {title}: {'passed' if passed else 'FAILED'} in {time.perf_counter() - started:.0f} s", flush=True)
    return passed


def pytest(title: str, folder: str) -> bool:
    """Run pytest on `folder`; its counts go to a file that `totals` reads."""
    return run(title, sys.executable, "-m", "pytest", folder, "-q", f"--junitxml={CACHE / folder}.xml")


def totals(folder: str) -> dict[str, int]:
    """Return how many tests of a pytest run passed, failed and were skipped."""
    report = CACHE / f"{folder}.xml"
    if not report.is_file():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    skipped = int(suite.get("skipped"))
    return {"passed": int(suite.get("tests")) - failed - skipped, "failed": failed, "skipped": skipped}


def counted(name: str) -> dict[str, int]:
    """Return what a step wrote into ``.cache/counts``."""
    path = COUNTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> int:
    started = time.perf_counter()
    for folder in (CACHE, COUNTS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    use_test_environment()
    ruff = str(Path(sys.executable).parent / "ruff")
    steps = {
        "code style": run("Code style of code and notebooks", ruff, "check", "."),
        "code format": run("Format of code and notebooks", ruff, "format", "--check", "."),
        "tests": pytest("Tests", "tests"),
        "notebooks": pytest("Notebooks, every cell, with the marked outputs compared", "notebooks"),
    }
    tests, cells = totals("tests"), totals("notebooks")
    compared, answers = counted("notebooks").get("compared", 0), counted("exercises")
    print(f"\n== All of it, in {time.perf_counter() - started:.0f} s")
    print(f"   tests           {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
    print(f"   notebook cells  {cells['passed']} run, {cells['failed']} failed, {cells['skipped']} skipped")
    print(f"   outputs         {compared} compared")
    print(
        f"   exercises       {answers.get('stub', 0)} as shipped, {answers.get('solution', 0)} solved, "
        f"{answers.get('wrong', 0)} wrong answers judged"
    )
    print("   " + ", ".join(f"{name}: {'passed' if passed else 'FAILED'}" for name, passed in steps.items()))
    return 0 if all(steps.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
