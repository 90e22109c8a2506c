"""Stacks: HDF5 datasets whose first dimension is states. Written whole here; ``stack_file`` reads them.

Chunks hold up to 16 states of one epoch and carry a checksum (fletcher32), so one epoch of all models and one
trajectory are both cheap, and a flipped bit is found by any HDF5 reader.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import h5py
import numpy as np

from zoogen.store import FORMAT_VERSION

CHUNK_STATES = 16
CHUNK_BYTES = 4 << 20
# Readers and files before HDF5 1.10 lack the checksummed metadata of this version; everything since reads it.
_VERSIONS = ("v110", "v110")


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
