"""What Ray Tune measured, line by line, and which checkpoint a line belongs to.

Ray named checkpoints after the training_iteration until 2.6; since then it counts them from 0 while iterations are
counted from 1, and only some results name their checkpoint. Where that stays open no metric is better than a wrong one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from zoogen.importers.records.settings import RESULT, column
from zoogen.importers.source import METRICS

_METRICS = {**{name: name for name in METRICS}, "validation_loss": "val_loss", "validation_acc": "val_acc"}


def lines_of(data: bytes, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of ``result.json``; a line that is none (the last one was being written) is noted."""
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            what = "is truncated" if number == len(lines) else "is no JSON object"
            notes.append(f"line {number} of result.json {what} and is left out")
            continue
        yield found


def table_of(data: bytes, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of ``progress.csv``, numbers as numbers."""
    try:
        for row in csv.DictReader(data.decode(errors="replace").splitlines()):
            yield {name: _number(text) for name, text in row.items() if isinstance(name, str)}
    except csv.Error as error:
        notes.append(f"progress.csv is damaged ({error})")


def _number(text: object) -> object:
    try:
        return int(text) if str(text).isdigit() else float(text)  # type: ignore[call-overload,arg-type]
    except (TypeError, ValueError):
        return text


def by_checkpoint(
    rows: Sequence[dict[str, Any]], last: int, lines: int, notes: list[str]
) -> dict[int, dict[str, float]]:
    """Metrics by the number of the checkpoint they belong to; of two rows of one number the later one counts.

    Args:
        rows: Of ``result.json`` or ``progress.csv``.
        last: Number of the last checkpoint.
        lines: How many rows there were, those that could not be read included.
        notes: Is told where it cannot be known which row is whose.
    """
    found: dict[int, dict[str, float]] = {}
    # Where some rows name their checkpoint, the others have none.
    named = any("checkpoint_dir_name" in row for row in rows)
    shift = None if named else _shift(rows, last, lines)
    if shift is None and not named:
        notes.append("numbers its results from 1 and its checkpoints otherwise, so that none can be assigned")
    for row in rows:
        match = re.fullmatch(r"checkpoint_(\d{1,9})", str(row.get("checkpoint_dir_name")))
        iteration = row.get("training_iteration")
        if match:
            found[int(match[1])] = _metrics(row)
        elif shift is not None and type(iteration) is int:
            found[iteration - shift] = _metrics(row)
    return found


def _shift(rows: Sequence[dict[str, Any]], last: int, lines: int) -> int | None:
    """training_iteration minus number of the checkpoint; None where it is not known."""
    iterations = [i for row in rows if type(i := row.get("training_iteration")) is int]
    if 0 in iterations or any("experiment_id" in row for row in rows):
        return 0  # counted from 0 as the zoos of 2022 do, or written by a Ray that names by iteration
    end = max([*iterations, lines])
    return 0 if last == end else 1 if last + 1 == end else None


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    metrics = {}
    for name, value in row.items():
        if type(value) in (int, float) and not name.startswith("config/"):
            try:
                metrics[_METRICS.get(name) or RESULT + column(name)] = float(value)
            except OverflowError:
                continue
    return metrics
