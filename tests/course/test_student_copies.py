"""Student copies carry no answer and still work; what students hand in is judged as the course's own check judges it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course import notebooks
from course.notebooks import execute, kernel, student
from course.notebooks.__main__ import main

STUDENT = "04_kv_cache_sizing"


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "course"
    student.copy_course(folder)
    return folder


def test_no_answer_is_handed_out(handed_out):
    answers = [p for kind in ("solutions", "wrong") for p in (notebooks.FOLDER / kind).rglob("*.py")]
    assert answers
    texts = {p: p.read_text(encoding="utf-8", errors="ignore") for p in handed_out.rglob("*") if p.is_file()}
    assert not [p for p in texts if {"solutions", "wrong"} & set(p.relative_to(handed_out).parts)]
    for path in notebooks.FOLDER.glob("solutions/*/*.py"):
        assert not [p for p, text in texts.items() if path.read_text(encoding="utf-8") in text]


def test_stubs_and_checks_are_kept_and_their_outputs_cleared(handed_out):
    cleared = 0
    for path in notebooks.paths():
        given, own = notebooks.read(handed_out / "notebooks" / path.name), notebooks.read(path)
        assert [cell["source"] for cell in given["cells"]] == [cell["source"] for cell in own["cells"]]
        answers = {i for e in notebooks.exercises(path, own) for i in (e.stub, e.check)}
        for index, (a, b) in enumerate(zip(given["cells"], own["cells"], strict=True)):
            if index in answers:
                cleared += 1
                assert a["outputs"] == [] and a["execution_count"] is None
            else:
                assert a == b
    assert cleared >= 4 * len(notebooks.paths())


def test_the_copy_works_by_itself(handed_out):
    """Its own package judges its own stubs: all of them not done, no solution, no wrong answer."""
    environment = os.environ | kernel.TEST_ENVIRONMENT | {"PYTHONPATH": str(handed_out)}
    command = [sys.executable, "-m", "course.notebooks", "check-exercises", STUDENT]
    run = subprocess.run(command, cwd=handed_out, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    exercises = len(notebooks.exercises(notebooks.paths([STUDENT])[0], notebooks.read(notebooks.paths([STUDENT])[0])))
    assert run.stdout.count("[as shipped] not done") == exercises
    assert f"{exercises} answers judged, 0 not as they must be" in run.stdout


def test_a_students_work_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine.ipynb").write_text("work of a week")
    assert main(["student", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["mine.ipynb"]


def hand_in(course, who: str, answer: str, **changes: str) -> Path:
    """Write a student's copy of the small notebook with `answer` in the stub; `changes` are sources by cell id."""
    notebook = notebooks.read(course.path)
    for cell in notebook["cells"]:
        cell["source"] = changes.get(cell["id"], answer if cell["id"] == "stub" else cell["source"])
    path = course.folder / "submissions" / who / course.path.name
    path.parent.mkdir(parents=True)
    notebooks.write(path, notebook)
    return path


def test_what_students_hand_in_is_judged(small_course):
    hand_in(small_course, "ada", "def double(x):\n    return x + x\n")
    hand_in(small_course, "bob", "def double(x):\n    return x * x\n")
    hand_in(small_course, "cas", "def double(x):\n    return ...\n")
    hand_in(small_course, "dan", "def double(x) return\n")
    hand_in(small_course, "eve", "def double(x):\n    return 0\n", judge='print("correct")', setup="check = print")
    folder = small_course.folder / "submissions"
    assert main(["grade", "--submissions", str(folder)]) == 0
    with (folder / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"ada": "correct", "bob": "wrong", "cas": "not done", "dan": "wrong", "eve": "wrong"}
    assert "SyntaxError" in rows["dan"]["message"] and "should be 6" in rows["bob"]["message"]


def test_an_answer_that_never_ends_is_wrong(small_course, monkeypatch):
    monkeypatch.setattr(student, "SECONDS_A_CELL", 5)
    path = hand_in(small_course, "fay", "def double(x):\n    while True:\n        pass\n")
    verdict, message = student.grade(small_course.path, path)["double"]
    assert verdict == "wrong" and "Timeout" in message


def test_a_removed_exercise_is_missing(small_course):
    path = hand_in(small_course, "gil", "pass")
    notebook = notebooks.read(path)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "stub"]
    notebooks.write(path, notebook)
    assert student.grade(small_course.path, path)["double"][0] == "missing"


def test_nothing_handed_in_is_said(small_course, capsys):
    assert main(["grade", "--submissions", str(small_course.folder / "none")]) == 1
    assert "nothing to judge" in capsys.readouterr().out


def test_measure_runs_copies_and_compares(small_course, capsys):
    execute.execute(small_course.path)
    before = small_course.path.read_bytes()
    out = small_course.folder / "out"
    assert main(["measure", "--out", str(out)]) == 0
    assert small_course.path.read_bytes() == before
    assert "1 outputs compared" in capsys.readouterr().out
    assert notebooks.read(out / small_course.path.name)["cells"][-1]["outputs"]

    notebook = notebooks.read(small_course.path)
    notebook["cells"][-1]["outputs"][0]["text"] = "3\n"  # what the stored output claims and this machine does not print
    notebooks.write(small_course.path, notebook)
    assert main(["measure", "--out", str(out)]) == 1
    assert "DIFFERENT: after" in capsys.readouterr().out

    notebook["cells"][0]["source"] = "raise RuntimeError('no such GPU')"
    notebooks.write(small_course.path, notebook)
    assert main(["measure", "--out", str(out)]) == 1
    assert "FAILED" in (said := capsys.readouterr().out) and "no such GPU" in said


def test_the_status_table_has_both_machines(small_course):
    execute.execute(small_course.path)
    cpu = execute.load_status()["00_small"]
    gpu = cpu | {"device": "A GPU", "seconds": 4.5, "gpu_memory_mib": 2048, "compared": 1, "different": []}
    execute.save_status(execute.status_file("gpu"), {"00_small": gpu})
    table = execute.table()
    assert f"| 00_small | {cpu['seconds']} |" in table and "| 4.5 |" in table and "GPU: A GPU" in table
    assert "On a GPU: About" in execute.generated_texts("00_small")["needs"]
    page = "a\n<!-- status -->\nold\n<!-- /status -->\nb"
    assert execute.with_status(page) == f"a\n<!-- status -->\n\n{table}\n\n<!-- /status -->\nb"
    small_course.cell("after")["source"] = "print(factor + 0)"
    small_course.save()
    assert "older than the code" in execute.table()
