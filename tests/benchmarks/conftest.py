"""Lets the tests in this folder import the benchmarks, as the scripts import each other."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
