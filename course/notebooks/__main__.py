"""``python -m course.notebooks COMMAND [NOTEBOOK ...]``; a notebook is a path, a name or a number, none means all.

format           write them in canonical form, with their generated cells up to date
execute          run them from top to bottom, store the outputs, record seconds and memory
lint             check what can be checked without running
check-exercises  run every exercise as shipped, with its solution, and with each wrong answer
status           write what the last runs cost into the notebooks' heads and the readmes
measure          run copies of them in the folder --out on a GPU machine, record seconds and memory there
student          write the course without its answers into the folder --out
grade            judge the notebooks in the folder --submissions, which students handed in
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

from course import device, models, notebooks
from course.notebooks import execute, kernel, lint, modes, student

READMES = {"README.md": "en", "README.zh-CN.md": "zh"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.notebooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=sorted([*COMMANDS, "measure", "student", "grade"]))
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    parser.add_argument("--out", type=Path, help="folder for measure (build/gpu-notebooks) and student (student)")
    parser.add_argument("--submissions", type=Path, default=Path("submissions"), help="folder for grade (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        chosen = notebooks.paths(given.notebooks)
    except ValueError as error:
        parser.error(str(error))
    if given.command == "measure":
        return _measure(chosen, given.out or Path("build/gpu-notebooks"))
    if given.command == "student":
        return _student(given.out or Path("student"))
    if given.command == "grade":
        return _grade(chosen, given.submissions)
    return COMMANDS[given.command](chosen)


def _format(chosen: list[Path]) -> int:
    for path in chosen:
        notebook = notebooks.read(path)
        execute.fill_generated(notebook, path.stem)
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
    _format(notebooks.paths())
    for name, language in READMES.items():
        page = notebooks.ROOT / name
        if page.is_file():
            page.write_text(execute.with_status(page.read_text(encoding="utf-8"), language), encoding="utf-8")
    print(execute.table())
    return 0


def _measure(chosen: list[Path], out: Path) -> int:
    """Run copies; exit status 1 where a cell raised or an output that must be equal everywhere is not."""
    os.environ[models.VARIABLE] = ""
    print(f"on {device.name()}", flush=True)
    records = {}
    for path in chosen:
        record = records[path.stem] = execute.measure(path, out)
        execute.save_status(out / execute.status_file("gpu").name, records)
        if "error" in record:
            print(f"{path.name}: FAILED {record['error']}", flush=True)
        else:
            print(
                f"{path.name}: {record['seconds']} s, {record['peak_memory_mib']} MiB, "
                f"{record['gpu_memory_mib']} MiB on the GPU, {record['compared']} outputs compared"
                + "".join(f", DIFFERENT: {name}" for name in record["different"]),
                flush=True,
            )
    return int(any("error" in record or record["different"] for record in records.values()))


def _student(out: Path) -> int:
    try:
        copies = student.copy_course(out)
    except FileExistsError as error:
        print(error)
        return 1
    print(f"{len(copies)} notebooks and what they need are in {out}, without answers; `make lab` works there")
    return 0


def _grade(chosen: list[Path], folder: Path) -> int:
    """Judge FOLDER/<student>/<notebook>.ipynb for each notebook; verdicts go to FOLDER/verdicts.csv."""
    kernel.use_test_environment()
    rows = []
    for path in chosen:
        for submission in sorted(folder.glob(f"*/{path.name}")):
            verdicts = student.grade(path, submission)
            for exercise, (verdict, message) in verdicts.items():
                rows.append((submission.parent.name, path.stem, exercise, verdict, message))
            right = sum(verdict == "correct" for verdict, _ in verdicts.values())
            print(f"{submission.parent.name}, {path.stem}: {right} of {len(verdicts)} correct", flush=True)
    if not rows:
        print(f"nothing to judge: no {folder}/<student>/<notebook>.ipynb")
        return 1
    with (folder / "verdicts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("student", "notebook", "exercise", "verdict", "message"), *rows])
    print(f"written: {folder / 'verdicts.csv'}")
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
