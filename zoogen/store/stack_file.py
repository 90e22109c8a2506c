"""Reads sealed stack files (see ``stacks``): every dataset is checked before any of it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5p, h5t, h5z

from zoogen.core.errors import IntegrityError
from zoogen.core.regular import open_regular
from zoogen.store import FORMAT_VERSION
from zoogen.store.spans import read_rows

_MOST_INFLATION = 1100  # deflate cannot exceed 1032 : 1
_MOST_CHUNK_BYTES = 64 << 20
_AS_THEY_ARE = frozenset({"weights", "model_id", "epoch"})  # so that each of their rows takes its bytes in the file


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
        self._expected = expected
        self._heights: dict[str, int] = {}
        self._datasets: dict[str, h5d.DatasetID] = {}
        self._checked: tuple[int, ...] | None = None
        self._file: h5f.FileID | None = None
        self._opened()

    def __enter__(self) -> StackFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading opens it again, and checks no more than that it is still the same file."""
        self._datasets.clear()  # HDF5 keeps a file open as long as anything in it is
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(
        self,
        name: str,
        rows: Sequence[int] | np.ndarray | slice | None = None,
        columns: slice | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows of a dataset in the order asked for (repeats allowed), and a range of their columns.

        Args:
            name: Of the dataset.
            rows: None for all.
            columns: None for all.
            out: C-contiguous array of the dataset's dtype to read into.

        Raises:
            IndexError: a row is outside the file.
            IntegrityError: a chunk's checksum does not fit; or the file is not the one that was checked.
        """
        dtype, (states, *widths) = self._expected[name]
        if rows is None:
            rows = slice(None)
        wanted = np.arange(states)[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= states):
            raise IndexError(f"{self._path}: rows are 0 to {states - 1}, got {wanted.min()} to {wanted.max()}")
        if not widths and columns is not None:
            raise IndexError(f"{name} has no columns")
        cut = slice(*(columns or slice(None)).indices(widths[0])) if widths else None
        if out is None:
            out = np.empty((len(wanted), *([len(range(widths[0])[cut])] if cut else [])), dtype)
        with self._blamed():
            read_rows(self._dataset(name), wanted, cut, self._heights[name], out)
        return out

    def _opened(self) -> h5f.FileID:
        if self._file is None:
            with self._blamed():
                open_regular(self._path).close()  # HDF5 would wait for a pipe
                file = h5f.open(os.fsencode(self._path), h5f.ACC_RDONLY, _ACCESS)
                try:
                    self._check(file)
                except BaseException:
                    file.close()
                    raise
            self._file = file
        return self._file

    def _dataset(self, name: str) -> h5d.DatasetID:
        file = self._opened()
        if name not in self._datasets:
            self._datasets[name] = h5d.open(file, name.encode())
        return self._datasets[name]

    def _check(self, file: h5f.FileID) -> None:
        """All of it when it is opened first; later that it is the same file, since sealed files never change."""
        about = os.fstat(file.get_vfd_handle())
        found = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if self._checked is None:
            self._size = about.st_size
            self._check_version(file)
            self._check_attributes(file, "/", 1)
            self._check_links(file, "/", {name.partition("/")[0] for name in self._expected})
            for group in {name.partition("/")[0] for name in self._expected if "/" in name}:
                inside = {n.partition("/")[2] for n in self._expected if n.startswith(f"{group}/")}
                self._check_links(file, group, inside)
            for name, (dtype, shape) in self._expected.items():
                self._datasets[name] = self._check_dataset(file, name, dtype, shape)
        elif found != self._checked:
            raise IntegrityError(f"{self._path}: it was replaced or changed while it was in use; open the zoo again")
        self._checked = found

    def _check_version(self, file: h5f.FileID) -> None:
        version = h5a.open(file, b"zoogen_format_version")
        if not version.get_type().equal(h5t.STD_I64LE) or version.shape != ():
            raise IntegrityError(f"{self._path}: no format version")
        found = np.zeros((), np.int64)
        version.read(found)
        if found != FORMAT_VERSION:
            raise IntegrityError(f"{self._path}: format version {found}, this zoogen reads {FORMAT_VERSION}")

    def _check_attributes(self, place: h5g.GroupID | h5d.DatasetID | h5f.FileID, name: str, expected: int) -> None:
        """Attributes beyond the version, of which a file may hold any number, are never read, and never written."""
        if (count := h5a.get_num_attrs(place)) != expected:
            raise IntegrityError(f"{self._path}: {name!r} has {count} attributes, expected {expected}")

    def _check_links(self, file: h5f.FileID, group: str, names: set[str]) -> None:
        place = h5g.open(file, group.encode())
        if group != "/":
            self._check_attributes(place, group, 0)
        links, count = place.links, place.get_num_objs()
        wrong = [n for n in names if not links.exists(n.encode()) or links.get_info(n.encode()).type != h5l.TYPE_HARD]
        if wrong or count != len(names):
            raise IntegrityError(
                f"{self._path}: group {group!r} holds {count} objects, expected {sorted(names)}; "
                f"missing or not stored in this file: {sorted(wrong)}"
            )

    def _check_dataset(self, file: h5f.FileID, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> h5d.DatasetID:
        opened = h5d.open(file, name.encode())
        self._check_attributes(opened, name, 0)
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
            "compressed": deflated and (name in _AS_THEY_ARE or name.startswith("side/")),
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
        self._heights[name] = plist.get_chunk()[0] if size else 1
        return opened

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{self._path}: cannot be read, it is missing or damaged ({error})") from error


def _sealed() -> h5p.PropFAID:
    """No lock, since sealed files never change; no cache of chunks, since each is read once for all rows wanted of it
    (HDF5 would keep 8 MB per dataset).
    """
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_file_locking(False, ignore_when_disabled=False)
    elements, slots, _, preemption = access.get_cache()
    access.set_cache(elements, slots, 0, preemption)
    return access


_ACCESS = _sealed()
