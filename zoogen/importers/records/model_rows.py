"""Tables as CSV, perhaps gzipped, read line by line and no further than they may be long."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from zoogen.core.errors import IntegrityError
from zoogen.importers.containers.files import Files

_MOST_BYTES = 1 << 30
_MOST_COLUMNS = 1_000
_LONGEST_LINE = 1 << 14
_LONGEST_INTEGER = 18  # digits that 64 bits hold
# Written so that no text is tried in more ways than it has characters.
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf", re.ASCII)
_DAMAGE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


@dataclass(frozen=True)
class Table:
    """Fields as text, in the order of the file; every row has as many as there are columns."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def read_rows(files: Files, name: str, at_most: int) -> Table:
    """The table in a ``.csv`` or ``.csv.gz`` with up to ``at_most`` rows below its header.

    Raises:
        IntegrityError: it is damaged, has more rows or longer ones, rows of several lengths, columns of the same name,
            or control characters.
    """
    data = io.BytesIO(files.read(name, _MOST_BYTES))
    columns: tuple[str, ...] | None = None
    rows: list[tuple[str, ...]] = []
    try:
        with gzip.GzipFile(fileobj=data) if name.endswith(".gz") else data as stream:
            for number, fields in enumerate(csv.reader(_lines(stream), strict=True), start=1):
                if not "".join(fields).isprintable():
                    raise _refused(files, name, f"has control characters in line {number}")
                if columns is None:
                    columns = _columns(files, name, fields)
                    continue
                if len(fields) != len(columns):
                    raise _refused(files, name, f"has {len(fields)} fields in line {number}, not {len(columns)}")
                if len(rows) == at_most:
                    raise _refused(files, name, f"has more than the {at_most:,} rows that there can be")
                # Most fields are those of the row before, and need no memory of their own.
                before = rows[-1] if rows else fields
                rows.append(tuple(b if b == f else f for b, f in zip(before, fields, strict=True)))
    except _DAMAGE as error:
        raise _refused(files, name, f"is not readable as a table ({error})") from error
    if columns is None or not rows:
        raise _refused(files, name, "has no rows")
    return Table(columns, rows)


def value_of(text: str) -> float | int | str | None:
    """A field: a number where it is written as one, None where there is none (empty, NaN), else the text."""
    if not text or text in ("nan", "NaN"):
        return None
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= _LONGEST_INTEGER else text
    return float(text) if _NUMBER.fullmatch(text) else text


def whole_number(text: str) -> int | None:
    """A whole number from 0 to 2^31, written so or as ``3.0``; None where it is none."""
    found = value_of(text)
    if isinstance(found, (int, float)) and math.isfinite(found) and 0 <= found < 1 << 31 and found == int(found):
        return int(found)
    return None


def _lines(stream: io.BytesIO | gzip.GzipFile) -> Iterator[str]:
    encoding = "utf-8-sig"
    while line := stream.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise csv.Error(f"a line of more than {_LONGEST_LINE:,} bytes")
        yield line.decode(encoding)
        encoding = "utf-8"


def _columns(files: Files, name: str, fields: list[str]) -> tuple[str, ...]:
    if not 0 < len(fields) <= _MOST_COLUMNS:
        raise _refused(files, name, f"has {len(fields):,} columns")
    if twice := sorted({c for c in fields if fields.count(c) > 1}):
        raise _refused(files, name, f"has the column {twice[0]!r} twice")
    return tuple(fields)


def _refused(files: Files, name: str, why: str) -> IntegrityError:
    return IntegrityError(f"{files.name}: {name} {why}\nget the file from its source")
