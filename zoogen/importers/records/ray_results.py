"""What Ray Tune measured, line by line, and which checkpoint a line belongs to.

Ray named checkpoints after the training_iteration until 2.6; since then it counts them from 0 while iterations are
counted from 1, and only some results name their checkpoint. Where that stays open no metric is better than a wrong one.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from zoogen.importers.records.json_records import float_of, read_json
from zoogen.importers.records.numbers import number, one_each
from zoogen.importers.records.settings import RESULT, column
from zoogen.importers.source import METRICS, Unusable

_MOST_LINES = 1_000_000
_MOST_BAD = 100
_LONGEST_LINE = 1 << 20
_MOST_NAMES = 1_000
_MOST_NUMBERS = 5_000_000  # of a file; each takes about a hundred bytes in memory
_ITERATION, _CHECKPOINT = "training_iteration", "checkpoint_dir_name"
_KEPT = (_ITERATION, _CHECKPOINT, "experiment_id")
_METRICS = {**{name: name for name in METRICS}, "validation_loss": "val_loss", "validation_acc": "val_acc"}


def results_of(name: str, data: bytes, notes: list[str]) -> tuple[list[dict[str, Any]], int]:
    """What ``result.json`` or ``progress.csv`` measured, line by line, and nothing else of it; and how many lines there
    were, those that could not be read included.

    Raises:
        Unusable: it is larger than any log; then nothing is known of it.
    """
    bad: list[str] = []
    names: dict[str, str] = {}  # one text in memory for all lines
    rows: list[dict[str, Any]] = []
    count = 0
    for told in (lines_of if name.endswith(".json") else table_of)(data, bad):
        row = {key: told[key] for key in _KEPT if key in told and isinstance(told[key], (str, int, type(None)))}
        for key, value in told.items():
            measured = key not in row and type(value) in (int, float) and not key.startswith("config/")
            if measured and (key in names or len(names) < _MOST_NAMES):
                row[names.setdefault(key, key)] = value
        rows.append(row)
        count += len(row)
        if count > _MOST_NUMBERS:
            raise Unusable(f"{name} has more than {_MOST_NUMBERS:,} numbers; none of them is taken")
    notes += bad
    if len(names) == _MOST_NAMES:
        notes.append(f"{name} has {_MOST_NAMES:,} metrics or more; others than the first are not taken")
    return rows, len(rows) + len(bad)


def lines_of(data: bytes, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of ``result.json``; a line that is none (the last one was being written) is noted.

    Raises:
        Unusable: it has too many lines, or too many that are none.
    """
    for place, line in enumerate(_lines("result.json", data), start=1):
        if not line.strip():
            continue
        try:
            found = None if len(line) > _LONGEST_LINE else read_json(line)
        except ValueError:
            found = None
        if isinstance(found, dict):
            yield found
            continue
        what = "is no JSON object" if line.endswith(b"\n") else "is truncated"
        notes.append(f"line {place} of result.json {what} and is left out")
        if len(notes) > _MOST_BAD:
            raise Unusable(f"result.json has more than {_MOST_BAD} lines that are no JSON objects")


def table_of(data: bytes, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of ``progress.csv``, numbers as numbers.

    Raises:
        Unusable: it has too many lines.
    """
    try:
        rows = csv.reader(line.decode(errors="replace") for line in _lines("progress.csv", data))
        names = next(rows, [])
        if len(set(names)) < len(names):
            raise csv.Error("two columns of one name")
        for row in rows:
            if row:
                yield {name: _number(text) for name, text in zip(names, row, strict=False)}
    except csv.Error as error:
        notes.append(f"progress.csv is damaged ({error})")


def _lines(name: str, data: bytes) -> Iterator[bytes]:
    for place, line in enumerate(io.BytesIO(data)):
        if place == _MOST_LINES:
            raise Unusable(f"{name} has more than {_MOST_LINES:,} lines; nothing of it is taken")
        yield line


def _number(text: str) -> int | float | str:
    try:
        return int(text) if text.isdigit() else text if "_" in text else float_of(text)
    except ValueError:
        return text


def by_checkpoint(
    rows: Sequence[dict[str, Any]], last: int, lines: int, notes: list[str]
) -> dict[int, dict[str, float]]:
    """Metrics by the number of the checkpoint they belong to; of two rows of one number the later one counts.

    Args:
        rows: Of ``result.json`` or ``progress.csv``, as ``results_of`` gives them.
        last: Number of the last checkpoint.
        lines: How many rows there were, those that could not be read included.
        notes: Is told where it cannot be known which row is whose.
    """
    found: dict[int, dict[str, float]] = {}
    # Where some rows name their checkpoint, the others have none.
    named = any(_CHECKPOINT in row for row in rows)
    shift = None if named else _shift(rows, last, lines)
    if shift is None and not named:
        notes.append("numbers its results from 1 and its checkpoints otherwise, so that none can be assigned")
    for row in rows:
        match = re.fullmatch(r"checkpoint_(\d{1,9})", str(row.get(_CHECKPOINT)))
        iteration = row.get(_ITERATION)
        if match:
            found[int(match[1])] = _metrics(row, notes)
        elif shift is not None and type(iteration) is int:
            found[iteration - shift] = _metrics(row, notes)
    return found


def _shift(rows: Sequence[dict[str, Any]], last: int, lines: int) -> int | None:
    """training_iteration minus number of the checkpoint; None where it is not known."""
    iterations = [i for row in rows if type(i := row.get(_ITERATION)) is int]
    if 0 in iterations or any("experiment_id" in row for row in rows):
        return 0  # counted from 0 as the zoos of 2022 do, or written by a Ray that names by iteration
    end = max([*iterations, lines])
    return 0 if last == end else 1 if last + 1 == end else None


def _metrics(row: dict[str, Any], notes: list[str]) -> dict[str, float]:
    numbers = ((_METRICS.get(name) or RESULT + column(name), number(value)) for name, value in row.items())
    return one_each(((name, value) for name, value in numbers if value is not None), notes)
