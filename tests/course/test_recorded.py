"""Recorded runs follow one schema, and a badge says where each comes from."""

from __future__ import annotations

import json

import pytest

from course import recorded

RUN = {
    "schema": 1,
    "name": "example",
    "date": "2026-11-22T20:00:00Z",
    "commit": "0123456789abcdef",
    "command": "python benchmarks/example.py",
    "device": {"name": "A GPU", "driver": "1", "memory_gib": 80, "count": 1},
    "versions": {"torch": "2.13.0"},
    "workload": {"seed": 0},
    "metric": "output tokens/s",
    "samples": [3.0, 1.0, 2.0],
    "median": 2.0,
}


@pytest.fixture
def save(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDERS", (tmp_path,))

    def write(**changes):
        (tmp_path / "example.json").write_text(json.dumps(RUN | changes))

    return write


def test_a_run_is_loaded_with_its_badge(save):
    save()
    run = recorded.load("example")
    assert run.median == 2.0
    assert run["metric"] == "output tokens/s"
    assert run.badge == "recorded on A GPU, 2026-11-22, commit 0123456789"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"median": 2.5}, "median is not the median"),
        ({"samples": []}, "no samples"),
        ({"schema": 2}, "schema is 2"),
        ({"device": {}}, "device has no 'name'"),
        ({"samples": "fast"}, "'samples' has the wrong type"),
    ],
)
def test_a_run_that_breaks_the_schema_is_refused(save, changes, message):
    save(**changes)
    with pytest.raises(ValueError, match=message):
        recorded.load("example")


@pytest.mark.parametrize("key", RUN)
def test_every_key_is_required(key):
    assert recorded.faults({name: value for name, value in RUN.items() if name != key}) == [f"{key!r} is missing"]


def test_an_unknown_run_names_those_that_exist(save):
    save()
    with pytest.raises(FileNotFoundError, match="'missing'; there are: example"):
        recorded.load("missing")


def test_every_run_in_the_repository_follows_the_schema():
    for folder in recorded.FOLDERS:
        for path in sorted(folder.glob("*.json")):
            if not path.name.startswith("status"):
                data = json.loads(path.read_text(encoding="utf-8"))
                assert recorded.faults(data) == [], path
