"""The bug museum: real mistakes of inference engines and indexes, each with the smallest test that finds it.

One module here is one exhibit and defines `EXHIBIT`. The notebook that it belongs to shows the symptom, lets the
student run the detecting test, and shows the fix; ``tests/course/test_museum.py`` proves for every exhibit that the
test fails on the bug and passes on the fix.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exhibit:
    """One mistake.

    Attributes:
        name: the module's name.
        chapter: the notebook that shows it, without ``.ipynb``.
        title: the mistake in a few words.
        symptom: what a user of the broken code sees, in a sentence or two.
        buggy, fixed: the code with and without the mistake; both take the same arguments.
        detect: the minimal test; called with `buggy` or `fixed`, raises AssertionError with numbers when it finds the bug.
        source: where the mistake was made or is easy to make (a file, a paper's section, the notes this course grew from).
    """

    name: str
    chapter: str
    title: str
    symptom: str
    buggy: Callable[..., Any]
    fixed: Callable[..., Any]
    detect: Callable[[Callable[..., Any]], None]
    source: str

    def verdict(self, implementation: Callable[..., Any]) -> str:
        """Run the test on `implementation`: "passes", or "fails: " and what the test says."""
        try:
            self.detect(implementation)
        except AssertionError as error:
            return f"fails: {error}"
        return "passes"

    def show(self) -> None:
        """Print symptom, both versions of the code, the test, and what the test says about each."""
        print(f"{self.title}\nSymptom: {self.symptom}\nSource: {self.source}")
        for heading, function in (("The bug", self.buggy), ("The fix", self.fixed), ("The test", self.detect)):
            print(f"\n--- {heading}\n{textwrap.dedent(inspect.getsource(function)).rstrip()}")
        print(f"\non the bug the test {self.verdict(self.buggy)}\non the fix the test {self.verdict(self.fixed)}")


def names() -> list[str]:
    """Names of all exhibits, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Exhibit:
    """Return the exhibit of that name; raises ValueError for one that does not exist."""
    if name not in names():
        raise ValueError(f"There is no exhibit {name!r}; the museum has {', '.join(names()) or 'none yet'}.")
    return importlib.import_module(f"{__name__}.{name}").EXHIBIT
