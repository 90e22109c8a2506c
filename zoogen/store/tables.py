"""Parquet tables: written with checksums and in one step, read only when their columns are what they should be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zoogen.core.errors import IntegrityError
from zoogen.core.regular import open_regular
from zoogen.store import FORMAT_VERSION
from zoogen.store.durable import TEMPORARY, disk_faults, publish

_VERSION_KEY = b"zoogen.format_version"
ROWS_PER_GROUP = 1 << 17
_ROWS_AT_LEAST, _ROWS_PER_BYTE = 1 << 20, 20  # ids differ, so that a real row takes a byte at the very least
_MOST_COLUMNS = 1 << 14  # an import has at most 10,000 settings


def write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write and sync a file; equal input gives equal bytes. Tables are streamed; each becomes a row group or several.

    Raises:
        OSError: the disk is full or failed.
    """
    schema = schema.with_metadata({_VERSION_KEY: str(FORMAT_VERSION).encode()})
    with path.open("wb") as file:
        writer = pq.ParquetWriter(
            file,
            schema,
            version="2.6",
            compression="zstd",
            compression_level=3,
            write_page_checksum=True,
            write_page_index=False,
        )
        with writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=ROWS_PER_GROUP)
        file.flush()
        os.fsync(file.fileno())


def replace_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, *, needed: int = 0) -> None:
    """``write_parquet`` in one step: a reader sees the old table or the new one.

    Raises:
        EnvironmentFault: the disk is full or may not be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with disk_faults(str(path), path.parent, needed):
        try:
            write_parquet(temporary, tables, schema)
            publish(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def read_schema(path: Path, expected: Mapping[str, pa.DataType] | None = None) -> tuple[pa.Schema, int]:
    """The checked schema of a table and its number of rows; no row is read.

    Args:
        path: The file.
        expected: Columns it must have, with these types; others may follow.

    Raises:
        IntegrityError: not Parquet, another format version, a required column missing or of another type, or a column
            of a type that tables here never have.
    """
    with opened_parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    check_schema(path, schema, expected)
    check_rows(path, rows)
    return schema, rows


def check_rows(path: Path, rows: int) -> None:
    """Raise IntegrityError where a table claims more rows than a file of its size can have."""
    size = path.stat().st_size
    if rows > _ROWS_AT_LEAST + _ROWS_PER_BYTE * size:
        raise IntegrityError(f"{path}: {rows:,} rows in {size:,} bytes, more than any table has")


def check_schema(path: Path, schema: pa.Schema, expected: Mapping[str, pa.DataType] | None = None) -> None:
    """Of a file that is open already; raises as ``read_schema``."""
    version = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise IntegrityError(f"{path}: format version {version}, this zoogen reads {FORMAT_VERSION}")
    if len(schema) > _MOST_COLUMNS:
        raise IntegrityError(f"{path}: {len(schema):,} columns; at most {_MOST_COLUMNS:,} are read")
    counts = Counter(schema.names)
    for name, kind in (expected or {}).items():
        if counts[name] != 1 or schema.field(name).type != kind:
            found = [str(f.type) for f in schema if f.name == name]
            raise IntegrityError(f"{path}: column {name!r} should be {kind}, found {', '.join(found) or 'none'}")
    for field in schema:
        if counts[field.name] != 1 or not _belongs(field):
            raise IntegrityError(
                f"{path}: column {field.name!r:.60} of type {field.type!s:.60} does not belong in a table"
            )


def read_parquet(
    path: Path,
    expected: Mapping[str, pa.DataType] | None = None,
    columns: list[str] | None = None,
    nullable: Collection[str] = (),
) -> pa.Table:
    """A whole table, or some of its columns, after ``read_schema`` found it in order.

    Args:
        path, expected: As for ``read_schema``.
        columns: None for all.
        nullable: Expected columns that may lack values; the others must have one in every row.

    Raises:
        IntegrityError: as ``read_schema``, a page's checksum does not fit, or a value is missing.
        FileNotFoundError: not there.
    """
    _, rows = read_schema(path, expected)
    with opened_parquet(path) as file:
        table = file.read(columns=columns, use_threads=rows >= ROWS_PER_GROUP)
        table.validate(full=True)
    for name in expected or ():
        if name in table.column_names and name not in nullable and _lacks_values(table[name]):
            raise IntegrityError(f"{path}: column {name!r} lacks values")
    return table


def release_memory() -> None:
    """Give back to the system what tables took while they were read: Arrow keeps twice their size for the next ones."""
    pa.default_memory_pool().release_unused()


@contextmanager
def opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A file whose pages are compared with their checksums; errors name it.

    Raises:
        IntegrityError: not a regular file, not Parquet, or what is read is damaged.
        FileNotFoundError: not there.
    """
    with blamed(path):
        open_regular(path).close()  # Arrow would wait for a pipe; from a path it reads faster than from an open file
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Name the file in whatever pyarrow says about it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise IntegrityError(f"{path}: not readable as Parquet, it is damaged ({error})") from error


def _lacks_values(column: pa.ChunkedArray) -> bool:
    lists = pa.types.is_list(column.type)
    return column.null_count > 0 or (lists and any(chunk.flatten().null_count for chunk in column.chunks))


def _belongs(field: pa.Field) -> bool:
    """Whether a column is of a type that tables have, and where its name has one meaning in all of them, of that."""
    is_kind = _KINDS.get(field.name, _is_scalar if "." in field.name else _plain)
    return _plain(field.type) and (pa.types.is_null(field.type) or is_kind(field.type))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    """Settings and scores of other sources, which have dotted names, are no lists."""
    return not pa.types.is_nested(kind)


_KINDS = {
    **dict.fromkeys(("split", "status", "reason", "cohort_id", "architecture_id", "task_id", "parent_id"), _is_text),
    **dict.fromkeys(("seed", "parent_epoch", "diverged_epoch", "last_epoch", "last_finite_epoch"), pa.types.is_integer),
    **dict.fromkeys(("train_loss", "val_loss", "test_loss", "ggap", "sparsity"), pa.types.is_floating),
    **dict.fromkeys(("train_acc", "train_eval_acc", "val_acc", "test_acc"), pa.types.is_floating),
}


def _plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _plain(kind.value_type)
    if pa.types.is_dictionary(kind):
        return pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    tests = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_null,
    )
    return not isinstance(kind, pa.BaseExtensionType) and any(test(kind) for test in tests)
