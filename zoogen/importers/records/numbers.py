"""What was measured, one number to a name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TOLD = 5


def one_each(told: Iterable[tuple[str, float]], notes: list[str]) -> dict[str, float]:
    """Numbers by our names. Of two different ones under one name neither is taken: which is meant is not known.

    Args:
        told: In the order of the source; several of its names may have become one.
        notes: Is told once of what is left out.
    """
    found: dict[str, float] = {}
    twice: dict[str, None] = {}
    for name, value in told:
        if name in found and repr(found[name]) != repr(value):
            twice[name] = None
        found.setdefault(name, value)
    if twice:
        names = ", ".join(list(twice)[:_TOLD]) + (", ..." if len(twice) > _TOLD else "")
        note = f"has different numbers that are all called {names}; none of them is taken"
        if note not in notes:
            notes.append(note)
    return {name: value for name, value in found.items() if name not in twice}


def number(value: Any) -> float | None:
    """An integer or float as float64; None for all else, and for integers beyond it."""
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:
        return None
