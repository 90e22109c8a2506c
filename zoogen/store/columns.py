"""Columns of a table, read when they are asked for: of a Parquet file that is kept open, or of a table in memory."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.regular import open_regular
from zoogen.store.check import CHECKPOINT_COLUMNS
from zoogen.store.derive import in_groups
from zoogen.store.tables import ROWS_PER_GROUP, blamed, check_rows, check_schema, release_memory
from zoogen.store.zoo import to_frame

if TYPE_CHECKING:
    import pandas as pd


class TableColumns:
    """Columns of a table in memory.

    Attributes:
        path: The file that errors name.
        names: All columns, in order.
        rows: How many rows there are.
    """

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.path = path
        self.names: tuple[str, ...] = tuple(table.column_names)
        self.rows: int = table.num_rows
        self._table = table

    def frame(self, names: Sequence[str], rows: np.ndarray | None = None) -> pd.DataFrame:
        """Some columns as ``to_frame`` makes them of a whole table, of all rows or of some (int64, in any order).

        Raises:
            IntegrityError: a page's checksum does not fit, or the file was written over since it was opened.
        """
        if rows is None:
            found = to_frame(self._read(names, None))
        else:
            gaps = [name for name in names if self._has_gaps(name)]
            found = to_frame(self._taken(names, rows), gaps)
        release_memory()
        return found

    def numbers(self, name: str) -> np.ndarray:
        """int64 [rows].

        Raises:
            IntegrityError: as ``frame``, or one is missing.
        """
        return self._complete(name).to_numpy().astype(np.int64)

    def codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of text as int64 codes [rows] into its values, objects [values]; no text is made per row.

        Raises:
            IntegrityError: as ``numbers``.
        """
        column = self._complete(name, coded=True).unify_dictionaries()
        if not column.num_chunks:
            return np.zeros(0, np.int64), np.zeros(0, object)
        parts = [np.asarray(chunk.indices, np.int64) for chunk in column.chunks]
        return np.concatenate(parts), column.chunk(0).dictionary.to_numpy(zero_copy_only=False)

    def _complete(self, name: str, *, coded: bool = False) -> pa.ChunkedArray:
        column = self._read([name], None, coded=coded)[name]
        if column.null_count:
            raise IntegrityError(f"{self.path}: {name} is missing in {column.null_count} rows")
        return column

    def _taken(self, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Group by group, and only groups that have some of the rows."""
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(self._sizes())
        starts = np.append(0, ends[:-1])
        bounds = np.searchsorted(rows[order], np.append(starts, self.rows))
        parts = [self._read(names, [])]
        for group, (first, last) in enumerate(pairwise(bounds.tolist())):
            if first < last:
                own = rows[order[first:last]] - starts[group]
                parts.append(self._read(names, [group]).take(pa.array(own)))
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_tables(parts).take(pa.array(back))

    def _sizes(self) -> list[int]:
        """Rows of each group."""
        return [self.rows]

    def _read(self, names: Sequence[str], groups: Sequence[int] | None, *, coded: bool = False) -> pa.Table:
        """Columns of some groups, or of all; keys as text, or ``coded``."""
        found = self._table.select(list(names))
        if not coded:
            plain = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in found.schema]
            found = found.cast(pa.schema(zip(found.column_names, plain, strict=True)))
        return found if groups is None or groups else found.slice(0, 0)

    def _has_gaps(self, name: str) -> bool:
        """Whether a value is missing in any row."""
        return self._table[name].null_count > 0


def in_memory(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> TableColumns:
    """The columns of many small tables one after another, read to their end; keys are held as codes."""
    coded = [field.name for field in schema if field.name in CHECKPOINT_COLUMNS and pa.types.is_string(field.type)]
    parts = [schema.empty_table(), *in_groups(tables)]
    for name in coded:
        place = schema.get_field_index(name)
        parts = [part.set_column(place, name, part[name].dictionary_encode()) for part in parts]
    return TableColumns(pa.concat_tables(parts).unify_dictionaries(), path)


class FileColumns(TableColumns):
    """Columns of a Parquet file.

    The file is kept open, so after it was replaced (as builds do, in one step) columns are still those of the table
    that was opened. One that is written over in place is an error.

    Args:
        path: The file.
        expected: Columns it must have, with these types; others may follow.

    Raises:
        IntegrityError: as ``read_schema``.
        FileNotFoundError: not there.
    """

    def __init__(self, path: Path, expected: Mapping[str, pa.DataType]) -> None:
        self.path = path
        self._expected = expected
        # Before it is opened: where it is replaced in between, a copy in another process will not take it for this one.
        self._identity = _identity(path)
        with blamed(path):
            open_regular(path).close()  # Arrow would wait for a pipe
            source = pa.OSFile(str(path))
            # Without pre_buffer: a reader that stays would keep all bytes that it read.
            how: dict[str, Any] = {"page_checksum_verification": True, "pre_buffer": False}
            self._plain = pq.ParquetFile(source, **how)
            schema, about = self._plain.schema_arrow, self._plain.metadata
            keys = [name for name, kind in expected.items() if pa.types.is_string(kind)]
            self._coded = pq.ParquetFile(source, metadata=about, read_dictionary=keys, **how)
        check_schema(path, schema, expected)
        check_rows(path, about.num_rows)
        self.names = tuple(schema.names)
        self.rows = about.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._expected, self._identity)

    def _sizes(self) -> list[int]:
        about = self._plain.metadata
        return [about.row_group(group).num_rows for group in range(about.num_row_groups)]

    def _read(self, names: Sequence[str], groups: Sequence[int] | None, *, coded: bool = False) -> pa.Table:
        file = self._coded if coded else self._plain
        groups = range(file.metadata.num_row_groups) if groups is None else groups
        # Threads keep memory of their own, which small tables do not pay back.
        threads = len(names) > 1 and self.rows >= ROWS_PER_GROUP
        self._refuse_another()
        with blamed(self.path):
            try:
                found = file.read_row_groups(list(groups), columns=list(names), use_threads=threads)
            except OSError as error:
                if error.errno == errno.ESTALE:  # replaced by another host, on a network file system
                    raise UserError(f"{self.path} was replaced since the zoo was opened; open it again") from error
                raise
            found.validate(full=True)
        self._refuse_another()
        return found.select(list(names))

    def _refuse_another(self) -> None:
        try:
            now = _identity(self.path)
        except FileNotFoundError:
            return
        if now[0] == self._identity[0] and now != self._identity:
            raise IntegrityError(f"{self.path} was written over since the zoo was opened; open it again")

    def _has_gaps(self, name: str) -> bool:
        about = self._plain.metadata
        places = [i for i in range(about.num_columns) if about.schema.column(i).path == name]
        for group in range(about.num_row_groups):
            for place in places:
                told = about.row_group(group).column(place).statistics
                if told is None or not told.has_null_count:
                    return self._read([name], None)[name].null_count > 0
                if told.null_count:
                    return True
        return False


def _identity(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _reopened(path: Path, expected: Mapping[str, pa.DataType], identity: tuple[int, int, int]) -> FileColumns:
    found = FileColumns(path, expected)
    if found._identity != identity:
        raise UserError(f"{path} was replaced since the zoo was opened; open it again")
    return found
