"""Reading stack files: any rows and columns against NumPy, each chunk once, and files that are closed in between."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pytest

from zoogen.core.errors import IntegrityError
from zoogen.store import spans
from zoogen.store.stack_file import StackFile
from zoogen.store.stacks import Stack, write_stacks

STATES, COLUMNS, HEIGHT = 150, 7, 10


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((STATES, COLUMNS)).astype("<f4")


@pytest.fixture
def path(tmp_path, rows):
    stacks = {
        "weights": Stack(rows.dtype, (COLUMNS,), [rows]),
        "packed": Stack(rows.dtype, (COLUMNS,), [rows], deflate=True),
        "epoch": Stack(np.dtype("<i4"), (), [np.arange(STATES, dtype="<i4")]),
    }
    write_stacks(tmp_path / "weights.h5", stacks, [HEIGHT] * (STATES // HEIGHT))
    return tmp_path / "weights.h5"


def opened(path):
    wide = (np.dtype("<f4"), (STATES, COLUMNS))
    return StackFile(path, {"weights": wide, "packed": wide, "epoch": (np.dtype("<i4"), (STATES,))})


WANTED = {
    "all": np.arange(STATES),
    "some neighbours": np.arange(13, 87),
    "every third": np.arange(2, STATES, 3),
    "one of each chunk": np.arange(4, STATES, HEIGHT),
    "far apart": np.array([3, 5, 41, 42, 43, 120]),
    "backwards": np.arange(STATES)[::-1],
    "repeated": np.array([7, 7, 90, 3, 90]),
    "none": np.arange(0),
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("columns", [None, slice(2, 5), slice(1, 7, 2)], ids=str)
@pytest.mark.parametrize("span", [1, 300, 1 << 20])
def test_rows_are_those_that_were_written(path, rows, wanted, columns, span, monkeypatch):
    monkeypatch.setattr(spans, "_SPAN_BYTES", span)
    expected = rows[wanted] if columns is None else rows[wanted, columns]
    with opened(path) as file:
        for name in ("weights", "packed"):
            assert np.array_equal(file.read(name, wanted, columns), expected)
            out = np.full(expected.shape, np.nan, np.float32)
            assert file.read(name, wanted, columns, out) is out
            assert np.array_equal(out, expected)
        assert np.array_equal(file.read("epoch", wanted), wanted)


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("span", [1, 300, 1 << 20])
def test_no_chunk_is_read_twice_or_in_vain(path, wanted, span, monkeypatch):
    monkeypatch.setattr(spans, "_SPAN_BYTES", span)
    touched, original = [], spans._read

    def listening(dataset, low, columns, out):
        touched.extend(range(low // HEIGHT, (low + len(out) - 1) // HEIGHT + 1))
        original(dataset, low, columns, out)

    monkeypatch.setattr(spans, "_read", listening)
    with opened(path) as file:
        file.read("weights", wanted)
    assert sorted(touched) == np.unique(wanted // HEIGHT).tolist()


def test_a_closed_file_is_opened_again_when_it_is_read(path, rows):
    file = opened(path)
    for _ in range(3):
        assert np.array_equal(file.read("weights", [5, 1]), rows[[5, 1]])
        assert str(path) in open_files()
        file.close()
        assert str(path) not in open_files()


@pytest.mark.parametrize("how", ["replaced", "written to"])
def test_a_file_that_was_changed_while_it_was_closed_is_refused(path, how):
    file = opened(path)
    file.close()
    data = bytearray(path.read_bytes())
    if how == "replaced":
        path.rename(path.with_name("before.h5"))
    path.write_bytes(data)
    if how == "written to":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(IntegrityError, match=r"weights\.h5: it was replaced or changed"):
        file.read("weights")


def test_chunks_are_not_kept_in_memory(path):
    """HDF5 would keep up to 8 MB of each dataset."""
    file = opened(path)
    file.read("weights")
    assert file._file.get_access_plist().get_cache()[2] == 0


def open_files():
    return {file.path for file in psutil.Process().open_files()}
