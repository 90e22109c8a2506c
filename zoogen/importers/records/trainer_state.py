"""``trainer_state.json``, the log that the Trainer of transformers writes into every ``checkpoint-<step>``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoogen.importers.records.numbers import one_each
from zoogen.importers.records.settings import RESULT, column

_MOST_NUMBERS = 100


def by_step(state: Mapping[str, Any], step: int, notes: list[str]) -> dict[int, dict[str, float]]:
    """Numbers by the step after which they were logged, as ``source.result.<name>``; of equal names the last counts.

    Args:
        state: The file; its ``log_history`` goes back to the first step.
        step: Of the checkpoint it stands in. Nothing is taken from a log that names another one.
        notes: Is told of names that become one.
    """
    lines = state.get("log_history")
    if state.get("global_step") != step or not isinstance(lines, list):
        return {}
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 1 << 31:
            continue
        numbers = found.setdefault(line["step"], {})
        for name, value in list(line.items())[:_MOST_NUMBERS]:
            if name != "step" and type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value):
                numbers[name] = float(value)
    return {
        at: one_each(((RESULT + column(name), value) for name, value in numbers.items()), notes)
        for at, numbers in found.items()
    }
