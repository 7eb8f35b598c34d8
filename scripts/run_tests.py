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


class Step:
    """One command, started from the repository's root when this is made; `finish` waits for it.

    Args:
        title: what the step does, for people.
        command: the program and its arguments.
        log: where the output waits until `finish` prints it; without one it is shown as it comes.
    """

    def __init__(self, title: str, command: list[str], log: Path | None = None) -> None:
        self.title, self.command, self.log = title, command, log
        self.started = time.perf_counter()
        if log is None:
            self._announce()
            self.process = subprocess.Popen(command, cwd=ROOT)
        else:
            with log.open("w", encoding="utf-8") as output:
                self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def finish(self) -> bool:
        """Wait for the step, say how it went, and return whether it passed."""
        passed = self.process.wait() == 0
        seconds = time.perf_counter() - self.started
        if self.log is not None:
            self._announce()
            print(self.log.read_text(encoding="utf-8"), end="")
        print(f"== {self.title}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s", flush=True)
        return passed

    def _announce(self) -> None:
        print(f"\n== {self.title}\n   {' '.join(self.command[1:])}", flush=True)


def pytest_command(name: str, *arguments: str) -> list[str]:
    """The command of a pytest run whose counts `totals` reads by this name."""
    return [sys.executable, "-m", "pytest", "-q", f"--junitxml={CACHE / name}.xml", *arguments]


def totals(name: str) -> dict[str, int]:
    """Return how many tests of a pytest run passed, failed and were skipped."""
    report = CACHE / f"{name}.xml"
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
        "style": Step("Code style of code and notebooks", [ruff, "check", "."]).finish(),
        "format": Step("Format of code and notebooks", [ruff, "format", "--check", "."]).finish(),
    }
    # Beside the tests, not after them: each of the two keeps one core busy.
    beside = Step(
        "Notebooks: form, exercises, browser, and every cell with the marked outputs compared",
        pytest_command("notebooks", "tests/notebooks", "notebooks"),
        log=CACHE / "notebooks.log",
    )
    steps["tests"] = Step("Tests", pytest_command("tests", "tests", "--ignore=tests/notebooks")).finish()
    steps["notebooks"] = beside.finish()

    cells, answers = counted("notebooks"), counted("exercises")
    tests = {key: totals("tests")[key] + totals("notebooks")[key] - cells.get(key, 0) for key in totals("tests")}
    print(f"\n== All of it, in {time.perf_counter() - started:.0f} s")
    print(f"   tests           {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
    print(
        f"   notebook cells  {cells.get('passed', 0)} passed, {cells.get('failed', 0)} failed, "
        f"{cells.get('skipped', 0)} skipped; {cells.get('compared', 0)} outputs compared"
    )
    print(
        f"   exercises       {answers.get('stub', 0)} as shipped, {answers.get('solution', 0)} solved, "
        f"{answers.get('wrong', 0)} wrong answers judged"
    )
    print("   " + ", ".join(f"{name}: {'passed' if passed else 'FAILED'}" for name, passed in steps.items()))
    return 0 if all(steps.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
