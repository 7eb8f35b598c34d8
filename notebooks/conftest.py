"""How pytest runs the notebooks: ``pytest notebooks`` or ``pytest notebooks/01_attention_variance.ipynb``.

Every code cell is a test; cells tagged ``nbval-check-output`` must give the output that is stored in the notebook.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from course.notebooks import is_checked
from course.notebooks.kernel import use_test_environment

HERE = Path(__file__).parent
SECONDS_A_CELL = 300
SECONDS_FOR_OUTPUT = 60
NOT_COMPARED = ("text/html", "image/svg+xml", "application/javascript", "stderr")
"""Besides what nbval itself leaves out; a table's text is compared, its HTML is not."""

_counts = {"passed": 0, "failed": 0, "skipped": 0, "compared": 0}


def pytest_configure(config):
    option = config.option
    option.nbval_lax = True
    option.nbval_current_env = True
    option.nbval_cell_timeout = SECONDS_A_CELL
    option.nbval_sanitize_with = str(HERE / "sanitize.cfg")
    use_test_environment()


def pytest_ignore_collect(collection_path, config):
    return True if collection_path.is_dir() and collection_path.name in ("solutions", "wrong", "data") else None


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "cell"):
            item.output_timeout = SECONDS_FOR_OUTPUT


def pytest_runtest_setup(item):
    failed = getattr(item.parent, "failed_cell", None)
    if failed is not None:
        pytest.skip(f"cell {failed!r} of this notebook failed")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if not hasattr(item, "cell") or report.when == "teardown":
        return
    if report.failed:
        item.parent.failed_cell = item.cell["id"]
    if report.when == "call" or not report.passed:
        report.notebook_cell = is_checked(item.cell)


def pytest_runtest_logreport(report):
    if hasattr(report, "notebook_cell"):
        _counts[report.outcome] += 1
        _counts["compared"] += report.passed and report.notebook_cell


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(f"{_counts['passed']} notebook cells ran, {_counts['compared']} outputs compared")
    cache = config.rootpath / ".cache" / "counts"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "notebooks.json").write_text(json.dumps(_counts), encoding="utf-8")
