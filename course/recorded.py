"""Recorded runs: what a GPU measured, for those who have none, always with where and when it was measured.

A recorded run is one JSON file in the form that `benchmarks/` writes (see `SCHEMA_KEYS`). Notebooks read files from
``notebooks/data`` and ``benchmarks/results``; every figure shown is computed from ``samples``.
"""

from __future__ import annotations

import html
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT / "notebooks" / "data", ROOT / "benchmarks" / "results")
SCHEMA = 1
SCHEMA_KEYS = {
    "schema": int,
    "name": str,
    "date": str,
    "commit": str,
    "command": str,
    "device": dict,
    "versions": dict,
    "workload": dict,
    "metric": str,
    "samples": list,
    "median": (int, float),
}
"""What every recorded run holds: `date` in UTC (ISO 8601), `device` with at least ``name``, `samples` in `metric`."""


@dataclass(frozen=True)
class Recorded:
    """One recorded run; `data` is the whole file."""

    path: Path
    data: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    @property
    def median(self) -> float:
        """The median of the samples, computed here, in the unit that ``metric`` names."""
        return statistics.median(self.data["samples"])

    @property
    def badge(self) -> str:
        """Where these figures come from, in one line: device, date, commit."""
        data = self.data
        return f"recorded on {data['device']['name']}, {data['date'][:10]}, commit {data['commit'][:10]}"

    def show_badge(self) -> None:
        """Display the badge in a notebook."""
        show_badge(self.badge)


def show_badge(text: str) -> None:
    """Display `text` as a small framed line under a figure or table."""
    from IPython.display import display

    style = "display: inline-block; border: 1px solid #8a8f98; border-radius: 4px; padding: 0 0.6em; font-size: 85%"
    display({"text/plain": f"[{text}]", "text/html": f'<span style="{style}">{html.escape(text)}</span>'}, raw=True)


def load(name: str) -> Recorded:
    """Load the recorded run in ``<name>.json``.

    Raises:
        FileNotFoundError: there is no such run; the message lists those that exist.
        ValueError: the file does not follow the schema; the message says where.
    """
    for folder in FOLDERS:
        path = folder / f"{name}.json"
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
            problems = faults(data)
            if problems:
                raise ValueError(f"{path} is no recorded run: " + "; ".join(problems))
            return Recorded(path, data)
    known = sorted(path.stem for folder in FOLDERS if folder.is_dir() for path in folder.glob("*.json"))
    raise FileNotFoundError(f"no recorded run {name!r}; there are: {', '.join(known) or 'none'}")


def faults(data: Any) -> list[str]:
    """Return what keeps `data` from being a recorded run: an empty list when it is one."""
    if not isinstance(data, dict):
        return ["the file holds no JSON object"]
    found = [f"{key!r} is missing" for key in SCHEMA_KEYS if key not in data]
    for key, kind in SCHEMA_KEYS.items():
        if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            found.append(f"{key!r} has the wrong type")
    if found:
        return found
    if data["schema"] != SCHEMA:
        found.append(f"schema is {data['schema']}, this code reads {SCHEMA}")
    if "name" not in data["device"]:
        found.append("device has no 'name'")
    if not data["samples"]:
        found.append("there are no samples")
    elif abs(statistics.median(data["samples"]) - data["median"]) > 1e-9 * max(1.0, abs(data["median"])):
        found.append("the median is not the median of the samples")
    return found
