"""``python -m course.notebooks COMMAND [NOTEBOOK ...]``; a notebook is a path, a name or a number, none means all.

format           write them in canonical form, with their generated cells up to date
execute          run them from top to bottom, store the outputs, record seconds and memory
lint             check what can be checked without running
check-exercises  run every exercise as shipped, with its solution, and with each wrong answer
status           print what the last runs cost, and which outputs are stale
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from course import models, notebooks
from course.notebooks import execute, kernel, lint, modes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.notebooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    given = parser.parse_args(arguments)
    try:
        chosen = notebooks.paths(given.notebooks)
    except ValueError as error:
        parser.error(str(error))
    return COMMANDS[given.command](chosen)


def _format(chosen: list[Path]) -> int:
    for path in chosen:
        notebook = notebooks.read(path)
        execute.fill_generated(notebook, execute.load_status().get(path.stem))
        changed = notebooks.write(path, notebook)
        print(f"{path.name}: {'rewritten' if changed else 'already in canonical form'}")
    return 0


def _execute(chosen: list[Path]) -> int:
    from nbclient.exceptions import CellExecutionError

    os.environ[models.VARIABLE] = ""  # stored outputs are those of the embedded model
    for path in chosen:
        print(f"{path.name}: running ...", flush=True)
        try:
            record = execute.execute(path)
        except CellExecutionError as error:
            print(f"{path.name}: FAILED, left as it was\n{error}")
            return 1
        print(f"{path.name}: {record['seconds']} s, {record['peak_memory_mib']} MiB")
    return 0


def _lint(chosen: list[Path]) -> int:
    found = [fault for path in chosen for fault in lint.faults(path)] + lint.faults_together(notebooks.paths())
    print("\n".join(found) or f"{len(chosen)} notebooks are in order")
    return 1 if found else 0


def _check_exercises(chosen: list[Path]) -> int:
    kernel.use_test_environment()
    outcomes = []
    for path in chosen:
        try:
            found = modes.run(path)
        except modes.CellFailed as error:
            print(f"FAILED {error}")
            return 1
        for outcome in found:
            print(("FAILED " if outcome.fault else "ok     ") + str(outcome))
        outcomes += found
    bad = sum(bool(outcome.fault) for outcome in outcomes)
    print(f"{len(outcomes)} answers judged, {bad} not as they must be")
    return 1 if bad else 0


def _status(chosen: list[Path]) -> int:
    print(execute.table())
    return 0


COMMANDS = {
    "format": _format,
    "execute": _execute,
    "lint": _lint,
    "check-exercises": _check_exercises,
    "status": _status,
}

if __name__ == "__main__":
    sys.exit(main())
