"""Rows of an HDF5 dataset in few large reads, straight into the array that is asked for.

HDF5 loads, and checks, whole chunks, whichever of their rows are wanted. So rows that share chunks or lie in
neighbouring ones are read together, each chunk once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from h5py import h5d, h5s

_SPAN_BYTES = 4 << 20  # what is read beside the result where only some of its rows are wanted


def read_rows(dataset: h5d.DatasetID, wanted: np.ndarray, columns: slice | None, height: int, out: np.ndarray) -> None:
    """Fill ``out``, [wanted] or [wanted, columns], C-contiguous, with rows in the order asked for.

    Args:
        dataset: Of one or two dimensions.
        wanted: int64 rows, all of them inside; repeats are allowed.
        columns: For two dimensions; start, stop and step are given.
        height: Rows of a chunk.

    Raises:
        OSError: a chunk's checksum does not fit.
    """
    if not out.size:
        return
    steps = np.diff(wanted)
    if bool((steps == 1).all()):
        _read(dataset, int(wanted[0]), columns, out)
        return
    if int(steps.min()) < 1:
        ascending, places = np.unique(wanted, return_inverse=True)
        apart = np.empty((len(ascending), *out.shape[1:]), out.dtype)
        read_rows(dataset, ascending, columns, height, apart)
        _pick(apart, places, out)
        return
    row_bytes = out.nbytes // len(out)
    for first, last in _spans(wanted, height, row_bytes):
        low, high = int(wanted[first]), int(wanted[last - 1]) + 1
        if high - low == last - first:
            _read(dataset, low, columns, out[first:last])
            continue
        whole = np.empty((high - low, *out.shape[1:]), out.dtype)
        _read(dataset, low, columns, whole)
        _pick(whole, wanted[first:last] - low, out[first:last])


def _spans(wanted: np.ndarray, height: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Parts (first, last) of ascending rows, each to be read at once: no chunk is read in vain, none of them twice."""
    block = wanted // height
    tall = max(1, _SPAN_BYTES // (height * row_bytes))
    edges = [0, *(np.flatnonzero(np.diff(block) > 1) + 1).tolist(), len(wanted)]
    for first, last in pairwise(edges):
        if wanted[last - 1] - wanted[first] == last - 1 - first:
            yield first, last
            continue
        part = (block[first:last] - block[first]) // tall
        cuts = [first, *(np.flatnonzero(np.diff(part)) + 1 + first).tolist(), last]
        yield from pairwise(cuts)


def _read(dataset: h5d.DatasetID, low: int, columns: slice | None, out: np.ndarray) -> None:
    space = dataset.get_space()
    if columns is None:
        space.select_hyperslab((low,), out.shape)
    else:
        space.select_hyperslab((low, columns.start), out.shape, (1, columns.step))
    dataset.read(h5s.create_simple(out.shape), space, out)


def _pick(rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    np.take(rows, places, axis=0, out=out, mode="clip")  # "raise" would go through a copy of ``out``
