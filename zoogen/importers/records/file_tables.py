"""Tables of files as CSV, JSON or Parquet: plain values by name per row, and no more of them than an honest one has."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

from zoogen.core.errors import IntegrityError
from zoogen.importers.containers.files import Files
from zoogen.importers.records.json_records import float_of, read_json
from zoogen.importers.records.parquet_pages import page_sizes

_MOST_BYTES = 64 << 20
_MOST_COLUMNS = 1_000
_MOST_FIELDS = 5_000_000
_MOST_UNPACKED = 256 << 20
_AT_ONCE = 256  # rows of Parquet
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # numbers of rows, as pandas keeps them


def read_table(files: Files, name: str, at_most: int) -> list[dict[str, Any]]:
    """The rows of ``.csv``, ``.json`` (a list of objects) or ``.parquet``; None where a row has nothing.

    Raises:
        IntegrityError: it is damaged, has more than ``at_most`` rows, or more columns, values or bytes than any table.
    """
    data = files.read(name, _MOST_BYTES)
    rows: list[dict[str, Any]] = []
    fields = 0
    try:
        for row in _reader(name)(data, at_most):
            rows.append(row)
            fields += len(row)
            _bound(len(rows), at_most, "rows")
            _bound(fields, _MOST_FIELDS, "values")
    except (ValueError, KeyError, TypeError, csv.Error, OSError, MemoryError) as error:
        raise IntegrityError(f"{files.name}: {name} is not readable as a table ({str(error)[:200]})") from error
    return rows


def first_row(files: Files, name: str) -> dict[str, Any]:
    """The first row of a table, whatever stands behind it; empty where it is none."""
    try:
        return next(_reader(name)(files.read(name, _MOST_BYTES), _MOST_FIELDS), {})
    except (IntegrityError, ValueError, KeyError, TypeError, csv.Error, OSError):
        return {}


def _reader(name: str) -> Callable[[bytes, int], Iterator[dict[str, Any]]]:
    return _csv if name.endswith(".csv") else _parquet if name.endswith(".parquet") else _json


def _csv(data: bytes, at_most: int) -> Iterator[dict[str, Any]]:
    rows = csv.DictReader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""))
    _check_columns(list(rows.fieldnames or ()))
    for row in rows:
        yield {
            name: _value(text) for name, text in row.items() if name
        }  # numbers of rows, as pandas keeps them, have none


def _json(data: bytes, at_most: int) -> Iterator[dict[str, Any]]:
    rows = read_json(data, _MOST_FIELDS)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of objects")
    yield from rows


def _parquet(data: bytes, at_most: int) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(data))
    told = file.metadata
    groups = [told.row_group(place) for place in range(told.num_row_groups)]
    columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    _bound(told.num_rows, at_most, "rows")
    _bound(told.num_columns, _MOST_COLUMNS, "columns")
    _bound(sum(column.num_values for column in columns), _MOST_FIELDS, "values")
    largest = _largest_page(data, columns)
    for field in file.schema_arrow:
        items = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_nested(items):
            raise ValueError(f"column {field.name!r:.60} is of {field.type!s:.60}, which no setting is")
    names = [name for name in file.schema_arrow.names if not _PANDAS_INDEX.fullmatch(name)]
    _check_columns(names)
    unpacked = 0
    # Every row of a batch may have the longest value that a page can hold.
    for batch in file.iter_batches(max(1, min(_AT_ONCE, _MOST_UNPACKED // largest)), columns=names):
        unpacked += batch.nbytes
        _bound(unpacked, _MOST_UNPACKED, "bytes")  # one value may stand for many
        for row in batch.to_pylist():
            yield {name: _plain(value) for name, value in row.items()}


def _largest_page(data: bytes, columns: list[Any]) -> int:
    """Bytes of the largest page; all of them together are within the bound."""
    total, largest = 0, 1
    for column in columns:
        start = column.data_page_offset
        if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
            start = column.dictionary_page_offset
        for size in page_sizes(data, start, column.total_compressed_size):
            total, largest = total + size, max(largest, size)
            _bound(total, _MOST_UNPACKED, "bytes")
    return largest


def _bound(found: int, at_most: int, what: str) -> None:
    if found > at_most:
        raise ValueError(f"it has more than the {at_most:,} {what} that are read")


def _check_columns(names: list[str]) -> None:
    _bound(len(names), _MOST_COLUMNS, "columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"it has the column {twice[0]!r:.60} twice")


def _plain(value: Any) -> Any:
    """A value of Parquet as JSON has it: dates as text, bytes as text of them, NaN as nothing."""
    if value is None or value != value:
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, date):
        return value.isoformat()
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _value(text: Any) -> Any:
    """A field of a CSV file: a number where it reads as one, nothing where it is empty."""
    if not isinstance(text, str) or not text.strip():
        return None
    for kind in (int, float_of) if "_" not in text else ():  # 1_000 is a number in Python only
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
