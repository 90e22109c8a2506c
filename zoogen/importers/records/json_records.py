"""JSON that others wrote, read so that it can be written again."""

from __future__ import annotations

import json
import math
from typing import Any

_DEEPEST = 100
MOST_VALUES = 1_000_000


def read_json(data: bytes | str, at_most: int = MOST_VALUES) -> Any:
    """The value; numbers beyond float64 are NaN, not the infinity that nobody wrote.

    Args:
        data: Its text.
        at_most: Values in it, those within others too; one takes up to forty times the memory of its text.

    Raises:
        ValueError: it is no JSON, has too many values, or is nested deeper than any record (what can just be read
            cannot always be written).
    """
    check_values(data, at_most)
    try:
        found = json.loads(data, parse_float=float_of)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level, depth = [found], 0
    while level := [below for value in level for below in _below(value)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("it is nested too deep")
    return found


def check_values(data: bytes | str, at_most: int) -> None:
    """Refuse a text of too many values before it is read. Marks within texts count as well.

    Raises:
        ValueError: it may have more than ``at_most``.
    """
    text = data if isinstance(data, bytes) else data.encode(errors="replace")
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > at_most:
        raise ValueError(f"it has more than the {at_most:,} values that are read")


def float_of(text: str) -> float:
    """A number as it is written; NaN where it is beyond float64.

    Raises:
        ValueError: it is no number.
    """
    value = float(text)
    return math.nan if math.isinf(value) and "inf" not in text.lower() else value


def _below(value: Any) -> list[Any]:
    """The lists and mappings in a list or mapping."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [v for v in inside if isinstance(v, (dict, list))]
