"""What Ray Tune measured, line by line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoogen.importers.records.json_records import float_of, read_json
from zoogen.importers.source import Unusable

_MOST_LINES = 1_000_000
_MOST_BAD = 100
_LONGEST_LINE = 1 << 20
_MOST_NAMES = 1_000
_MOST_NUMBERS = 5_000_000  # of a file; each takes about a hundred bytes in memory
_ITERATION, _CHECKPOINT, _OLD_RAY = "training_iteration", "checkpoint_dir_name", "experiment_id"
_NOT_MEASURED = (_CHECKPOINT, _OLD_RAY, "config")


@dataclass(frozen=True)
class Result:
    """What one line says.

    Attributes:
        iteration: Its ``training_iteration``.
        checkpoint: Name of the folder of its checkpoint, where its Ray writes it.
        names_checkpoints: Whether its Ray writes such names, here or in lines that have a checkpoint.
        counts_alike: It is of a Ray that names checkpoints after iterations.
        numbers: All that is a number, by name; those within mappings and lists as ``name/part``.
    """

    iteration: int | None
    checkpoint: str | None
    names_checkpoints: bool
    counts_alike: bool
    numbers: Mapping[str, int | float]


def results_of(name: str, data: bytes, notes: list[str]) -> list[Result | None]:
    """What ``result.json`` or ``progress.csv`` measured, line by line; None is a line that could not be read.

    Raises:
        Unusable: it is larger than any log; then nothing is known of it.
    """
    names: dict[str, str] = {}  # one text in memory for all lines
    found: list[Result | None] = []
    bad: list[str] = []
    count, left_out = 0, False
    for told in (lines_of if name.endswith(".json") else table_of)(data, bad):
        if told is None:
            found.append(None)
            continue
        numbers: dict[str, int | float] = {}
        for key, value in _numbers(told):
            if key not in names and len(names) == _MOST_NAMES:
                left_out = True
            else:
                numbers[names.setdefault(key, key)] = value
        iteration, checkpoint = told.get(_ITERATION), told.get(_CHECKPOINT)
        found.append(
            Result(
                iteration if type(iteration) is int and 0 <= iteration < 1 << 31 else None,
                checkpoint if isinstance(checkpoint, str) else None,
                _CHECKPOINT in told,
                _OLD_RAY in told,
                numbers,
            )
        )
        count += len(numbers) + 1
        if count > _MOST_NUMBERS:
            raise Unusable(f"{name} has more than {_MOST_NUMBERS:,} numbers; none of them is taken")
    notes += bad
    if left_out:
        notes.append(f"{name} has more than {_MOST_NAMES:,} metrics; others than the first are not taken")
    return found


def _numbers(told: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Numbers by name, as Ray's own CSV calls those within others."""
    rest = [(k, v) for k, v in told.items() if k not in _NOT_MEASURED and not k.startswith("config/")][::-1]
    while rest:
        name, value = rest.pop()
        if type(value) in (int, float):
            yield name, value
        elif isinstance(value, (dict, list)):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            rest += [(f"{name}/{part}", one) for part, one in parts][::-1]


def lines_of(data: bytes, notes: list[str]) -> Iterator[dict[str, Any] | None]:
    """The JSON objects of ``result.json``; a line that is none (the last one was being written) is None, and noted.

    Raises:
        Unusable: it has too many lines, or too many that are none.
    """
    bad = 0
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
        yield None
        bad += 1
        if bad > _MOST_BAD:
            raise Unusable(f"result.json has more than {_MOST_BAD} lines that are no JSON objects")


def table_of(data: bytes, notes: list[str]) -> Iterator[dict[str, Any] | None]:
    """The rows of ``progress.csv``, numbers as numbers; None where it is damaged, with which it ends.

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
        yield None


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
