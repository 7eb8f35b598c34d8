"""The small course as a fixture."""

from __future__ import annotations

import pytest
from small_course import SmallCourse, make_small_course


@pytest.fixture
def small_course(tmp_path, monkeypatch) -> SmallCourse:
    return make_small_course(tmp_path, monkeypatch)
