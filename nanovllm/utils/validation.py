"""Checks shared by the objects that users construct: they name the argument and say what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import math


class StrictArguments:
    """Mixin for dataclasses: an unknown keyword is a TypeError that lists the known ones and suggests the nearest."""

    def __new__(cls, *args, **kwargs):
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        for name in kwargs:
            if name not in known:
                raise TypeError(unknown_argument(cls.__name__, name, known))
        return super().__new__(cls)


def unknown_argument(where: str, name: str, known: list[str]) -> str:
    """The message for an argument that does not exist."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{where} has no argument {name!r}.{hint} Allowed: {', '.join(known)}."


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises TypeError unless `value` is an int (bool is not), ValueError unless low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__}).")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be {allowed}, got {value}.")


def check_float(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises TypeError unless `value` is a real number, ValueError unless it is finite and inside the interval."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}).")
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (math.isfinite(value) and above and below):
        left = "(" if open_low else "["
        right = ")" if open_high or math.isinf(high) else "]"
        raise ValueError(f"{name} must be a finite number in {left}{low}, {high}{right}, got {value}.")


def check_bool(name: str, value: object) -> None:
    """Raises TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__}).")


def check_choice(name: str, value: object, allowed: tuple) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
