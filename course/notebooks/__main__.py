"""``python -m course.notebooks COMMAND [NOTEBOOK ...]``; a notebook is a path, a name or a number, none means all.

format           write them in the course's canonical form
check-exercises  run every exercise as shipped, with its solution, and with each wrong answer
"""

from __future__ import annotations

import argparse
import sys

from course import notebooks
from course.notebooks import kernel, modes


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


def _format(chosen) -> int:
    for path in chosen:
        changed = notebooks.write(path, notebooks.read(path))
        print(f"{path.name}: {'rewritten' if changed else 'already in canonical form'}")
    return 0


def _check_exercises(chosen) -> int:
    kernel.limit_threads()
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


COMMANDS = {"format": _format, "check-exercises": _check_exercises}

if __name__ == "__main__":
    sys.exit(main())
