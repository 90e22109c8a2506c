"""Stacks: HDF5 datasets whose first dimension is states. Written whole, read in part, checked before they are read.

Chunks hold up to 16 states of one epoch and carry a checksum (fletcher32), so one epoch of all models and one
trajectory are both cheap, and a flipped bit is found by any HDF5 reader.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5t, h5z

from zoogen.core.errors import IntegrityError
from zoogen.store import FORMAT_VERSION

CHUNK_STATES = 16
CHUNK_BYTES = 4 << 20
# Readers and files before HDF5 1.10 lack the checksummed metadata of this version; everything since reads it.
_VERSIONS = ("v110", "v110")
_MOST_INFLATION = 1100  # deflate cannot exceed 1032 : 1
_MOST_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Stack:
    """One dataset to write.

    Attributes:
        dtype: NumPy dtype on disk, little-endian.
        row_shape: Shape of one state: ``(P,)``, or ``()`` for one value per state.
        parts: Consecutive rows; together as many as there are states.
        deflate: Compress (predictions, and what is mostly zeros; weights do not compress).
    """

    dtype: np.dtype
    row_shape: tuple[int, ...]
    parts: Iterable[np.ndarray]
    deflate: bool = False


def write_stacks(path: Path, stacks: Mapping[str, Stack], states_per_epoch: Sequence[int]) -> None:
    """Write a new HDF5 file; equal input gives equal bytes. The file is synced, its folder is not.

    Args:
        path: A temporary name; a file there is overwritten.
        stacks: By dataset name; ``side/int64`` lies in the group ``side``.
        states_per_epoch: Rows of each epoch, in order; chunks do not straddle epochs where that wastes nothing.

    Raises:
        OSError: the disk is full or failed.
    """
    states = sum(states_per_epoch)
    with path.open("w+b", buffering=0) as raw:
        sink = _Sink(raw)
        with h5py.File(sink, "w", libver=_VERSIONS, rdcc_nbytes=16 << 20) as file:
            file.attrs["zoogen_format_version"] = np.int64(FORMAT_VERSION)
            for name, stack in stacks.items():
                _write(file, name, stack, states, states_per_epoch)
        sink.raise_error()
        os.fsync(raw.fileno())


def _write(file: h5py.File, name: str, stack: Stack, states: int, states_per_epoch: Sequence[int]) -> None:
    shape = (states, *stack.row_shape)
    options: dict[str, object] = {}
    if prod(shape):
        options = {"chunks": chunk_shape(states_per_epoch, stack.row_shape, stack.dtype.itemsize), "fletcher32": True}
    if prod(shape) and stack.deflate:
        options |= {"compression": "gzip", "compression_opts": 4}
    dataset = file.create_dataset(name, shape, stack.dtype, track_times=False, **options)
    start = 0
    for part in stack.parts:
        if part.shape[1:] != stack.row_shape:
            raise ValueError(f"{name}: rows of shape {part.shape[1:]}, expected {stack.row_shape}")
        if part.size:
            dataset[start : start + len(part)] = part
        start += len(part)
    if start != states:
        raise ValueError(f"{name}: {start} rows for {states} states")


def chunk_shape(states_per_epoch: Sequence[int], row_shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Rows and columns of a chunk: up to 16 states of one epoch, at most about 4 MB, hardly any padding.

    HDF5 stores the last chunk in full, so a height that leaves much of it empty is not taken.
    """
    states = sum(states_per_epoch)
    if not row_shape:
        return (_even(states, CHUNK_BYTES // itemsize),)
    (columns,) = row_shape
    tallest = max(1, min(CHUNK_STATES, max(states_per_epoch), CHUNK_BYTES // (columns * itemsize)))
    heights = [h for h in range(tallest, 0, -1) if -states % h <= states / 200]
    aligned = next(h for h in heights if not any(n % h for n in states_per_epoch))
    height = aligned if 2 * aligned >= tallest else heights[0]
    return (height, _even(columns, max(1, CHUNK_BYTES // (height * itemsize))))


def _even(length: int, at_most: int) -> int:
    """The size of equal pieces of ``length``, none larger than ``at_most``, the last nearly full."""
    pieces = -(-length // at_most)
    return -(-length // pieces)


class _Sink(io.RawIOBase):
    """A file that remembers its first error instead of failing.

    HDF5 cannot close a file whose last writes failed, and the process would crash when it exits. So HDF5 is told that
    all went well, and the error is raised once the file is closed.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._error: BaseException | None = None

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer) -> int:
        return self._raw.readinto(buffer) or 0

    def write(self, data) -> int:
        view = memoryview(data)
        try:
            done = 0
            while self._error is None and done < len(view):
                done += self._raw.write(view[done:]) or 0
        except BaseException as error:  # a KeyboardInterrupt too must not unwind through HDF5
            self._error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self._error is None:
                self._raw.truncate(size)
        except BaseException as error:
            self._error = error
        return size or 0

    def flush(self) -> None:
        """Nothing is buffered here; ``write_stacks`` syncs at the end."""


class StackFile:
    """A stack file that was sealed, opened read-only, every dataset checked before any of it is read.

    Args:
        path: The file.
        expected: dtype and shape of every dataset, from ``shard.json``; the file may hold nothing else.

    Raises:
        IntegrityError: the file is not what was expected: missing, another size or version, links out of the file,
            virtual or external data, unknown filters, other dtypes or shapes.
    """

    def __init__(self, path: Path, expected: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
        self._path = path
        with self._blamed():
            information = path.stat()
            if not stat.S_ISREG(information.st_mode):
                raise IntegrityError(f"{path}: not a regular file")
            self._size = information.st_size
            self._file = h5py.File(path, "r", locking=False)
        try:
            with self._blamed():
                self._datasets = self._check(expected)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> StackFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(
        self, name: str, rows: Sequence[int] | np.ndarray | slice | None = None, columns: slice | None = None
    ) -> np.ndarray:
        """Rows of a dataset in the order asked for (repeats allowed), and a range of their columns.

        Raises:
            IndexError: a row is outside the file.
            IntegrityError: a chunk's checksum does not fit.
        """
        dataset = self._datasets[name]
        states = dataset.shape[0]
        if rows is None:
            rows = slice(None)
        wanted = np.arange(states)[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= states):
            raise IndexError(f"{self._path}: rows are 0 to {states - 1}, got {wanted.min()} to {wanted.max()}")
        if dataset.ndim == 1 and columns is not None:
            raise IndexError(f"{name} has no columns")
        cut = () if dataset.ndim == 1 else (slice(*(columns or slice(None)).indices(dataset.shape[1])),)
        with self._blamed():
            return _read(dataset, wanted, cut)

    def _check(self, expected: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> dict[str, h5py.Dataset]:
        version = h5a.open(self._file.id, b"zoogen_format_version")
        if not version.get_type().equal(h5t.STD_I64LE) or version.shape != ():
            raise IntegrityError(f"{self._path}: no format version")
        found = np.zeros((), np.int64)
        version.read(found)
        if found != FORMAT_VERSION:
            raise IntegrityError(f"{self._path}: format version {found}, this zoogen reads {FORMAT_VERSION}")
        self._check_links("/", {name.partition("/")[0] for name in expected})
        for group in {name.partition("/")[0] for name in expected if "/" in name}:
            inside = {n.partition("/")[2] for n in expected if n.startswith(f"{group}/")}
            self._check_links(group, inside)
        return {name: self._check_dataset(name, dtype, shape) for name, (dtype, shape) in expected.items()}

    def _check_links(self, group: str, names: set[str]) -> None:
        place = h5g.open(self._file.id, group.encode())
        links, count = place.links, place.get_num_objs()
        wrong = [n for n in names if not links.exists(n.encode()) or links.get_info(n.encode()).type != h5l.TYPE_HARD]
        if wrong or count != len(names):
            raise IntegrityError(
                f"{self._path}: group {group!r} holds {count} objects, expected {sorted(names)}; "
                f"missing or not stored in this file: {sorted(wrong)}"
            )

    def _check_dataset(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> h5py.Dataset:
        opened = h5d.open(self._file.id, name.encode())
        plist = opened.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        size = prod(shape) * dtype.itemsize
        stored = opened.get_storage_size()
        deflated = h5z.FILTER_DEFLATE in filters
        problems = {
            f"shape {opened.shape}, expected {shape}": opened.shape != shape,
            f"dtype is not {dtype}": not opened.get_type().equal(h5t.py_create(dtype)),
            "stored outside the file": plist.get_external_count() > 0,
            "not plain chunks": plist.get_layout() != (h5d.CHUNKED if size else h5d.CONTIGUOUS),
            f"filters {filters}": not set(filters) <= {h5z.FILTER_FLETCHER32, h5z.FILTER_DEFLATE},
            f"{stored} bytes stored in a file of {self._size}": stored > self._size,
            f"{stored} bytes stored for {size}": stored * (_MOST_INFLATION if deflated else 1) < size,
        }
        if size and plist.get_layout() == h5d.CHUNKED:
            chunk = plist.get_chunk()
            problems[f"chunks of {chunk}"] = prod(chunk) * dtype.itemsize > _MOST_CHUNK_BYTES
            chunks = prod(-(-n // c) for n, c in zip(shape, chunk, strict=False))
            problems["chunks are missing"] = len(chunk) == len(shape) and opened.get_num_chunks() != chunks
        wrong = [problem for problem, holds in problems.items() if holds]
        if wrong:
            raise IntegrityError(f"{self._path}: dataset {name!r}: {'; '.join(wrong)}")
        return h5py.Dataset(opened)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{self._path}: cannot be read, it is missing or damaged ({error})") from error


def _read(dataset: h5py.Dataset, wanted: np.ndarray, cut: tuple[slice, ...]) -> np.ndarray:
    if not len(wanted) or not dataset.size:
        widths = (len(range(*c.indices(n))) for c, n in zip(cut, dataset.shape[1:], strict=True))
        return np.empty((len(wanted), *widths), dataset.dtype)
    steps = np.diff(wanted)
    if (steps == 1).all():
        return dataset[(slice(int(wanted[0]), int(wanted[-1]) + 1), *cut)]
    # HDF5 loads whole chunks anyway: visit each row of chunks once and pick from it in memory.
    height = dataset.chunks[0]
    blocks = wanted // height
    out: np.ndarray | None = None
    for block in np.unique(blocks):
        here = np.flatnonzero(blocks == block)
        inside = wanted[here]
        low, high = int(inside.min()), int(inside.max()) + 1
        rows = dataset[(slice(low, high), *cut)]
        if out is None:
            out = np.empty((len(wanted), *rows.shape[1:]), dataset.dtype)
        out[here] = rows[inside - low]
    assert out is not None
    return out
