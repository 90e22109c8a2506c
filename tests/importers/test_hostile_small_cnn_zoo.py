"""Matrices and tables made to harm, or damaged: each is refused by name, nothing runs and nothing is written."""

import gzip
import io
import os
import shutil
import struct
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from published_matrices import CONFIGS, write_layout, write_small_cnn_zoo

from zoogen.build.importing import import_zoo
from zoogen.core.errors import IntegrityError
from zoogen.importers.opening import open_source


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "mnist"
    write_small_cnn_zoo(folder, dict(list(CONFIGS.items())[:1]))
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "zoo")


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def npy(header: object, version=(1, 0), length: int | None = None):
    """Replace the header of ``weights.npy``."""

    def write(folder):
        numbers = np.load(folder / "weights.npy").tobytes()
        text = header if isinstance(header, bytes) else repr(header).encode()
        kind = "<H" if version == (1, 0) else "<I"
        said = struct.pack(kind, len(text) if length is None else length)
        (folder / "weights.npy").write_bytes(b"\x93NUMPY" + bytes(version) + said + text + numbers)

    return write


def described(**changes):
    return {"descr": "<f4", "fortran_order": False, "shape": (9, 4970)} | changes


HEX = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + b"f" * 6000 + b", 2)}"


def matrix(change):
    def write(folder):
        np.save(folder / "weights.npy", change(np.load(folder / "weights.npy")), allow_pickle=True)

    return write


def resized(by: int):
    def write(folder):
        data = (folder / "weights.npy").read_bytes()
        (folder / "weights.npy").write_bytes(data[:by] if by < 0 else data + b"\0" * by)

    return write


def metrics(change):
    """Replace the bytes of the table by what ``change`` makes of them."""

    def write(folder):
        data = gzip.decompress((folder / "metrics.csv.gz").read_bytes())
        (folder / "metrics.csv.gz").write_bytes(gzip.compress(change(data)))

    return write


def packed(change):
    """Replace the bytes of the compressed file."""

    def write(folder):
        (folder / "metrics.csv.gz").write_bytes(change((folder / "metrics.csv.gz").read_bytes()))

    return write


def layout(**changes):
    return lambda folder: write_layout(folder / "layout.csv", **changes)


def layout_rows(change):
    def write(folder):
        change(pd.read_csv(folder / "layout.csv")).to_csv(folder / "layout.csv", index=False)

    return write


def whole(data: bytes):
    return lambda folder: (folder / "weights.npy").write_bytes(data)


def records(values):
    return np.zeros(len(values), [("w", "<f4"), ("b", "<f4")])


def lines(data: bytes, change) -> bytes:
    return b"\n".join(change(data.split(b"\n")))


def wider(table):
    """The last kernel takes ten numbers more than a row has."""
    table = table.replace({"shape": {"(16, 10)": "(17, 10)"}, "size": {160: 170}})
    return table.assign(end_idx=table.start_idx + table["size"])


WEIGHTS = {
    "objects": (matrix(lambda v: np.array([Code()] * 9, object)), "Python objects, which are pickles"),
    "objects in a matrix": (npy(described(descr="|O")), "Python objects, which are pickles"),
    "records": (matrix(records), "holds records of several fields"),
    "text": (npy(described(descr="<U1")), "holds numbers of type '<U1'"),
    "whole numbers": (matrix(lambda v: v.astype(np.int32)), "holds numbers of type '<i4'"),
    "wide floats": (npy(described(descr="<f16")), "holds numbers of type '<f16'"),
    "one axis": (matrix(lambda v: v.ravel()), "has the shape (44730,), not rows and columns"),
    "three axes": (matrix(lambda v: v[None]), "has the shape (1, 9, 4970), not rows and columns"),
    "no rows": (matrix(lambda v: v[:0]), "has the shape (0, 4970), not rows and columns"),
    "negative shape": (npy(described(shape=(-9, -4970))), "has the shape (-9, -4970)"),
    "a shape of bools": (npy(described(shape=(True, 4970))), "has the shape (True, 4970)"),
    "overflowing shape": (npy(described(shape=(1 << 62, 4970))), "its header says 4,611,686,018,427,387,904 x 4,970"),
    "shape of 4,000 digits": (npy(described(shape=(10**4000, 4970))), "has the shape (10000000000"),
    "shape of 6,000 hex digits": (npy(HEX), "(a number without end)"),
    "more rows than bytes": (npy(described(shape=(270_000, 4970))), "its header says 270,000 x 4,970"),
    "by columns": (matrix(np.asfortranarray), "is stored by columns (Fortran order)"),
    "an order that is no bool": (npy(described(fortran_order=0)), "has an order of axes that is neither"),
    "header that is code": (npy(b"__import__('os').mkdir('ran')"), "has a header that is no dictionary of descr"),
    "header that is a list": (npy(b"[1, 2]"), "has a header that is no dictionary"),
    "header with more keys": (npy(described(more=1)), "has a header that is no dictionary"),
    "header that is nested": (npy(b"(" * 9_000), "has a header that is no dictionary"),
    "header that is long": (npy(described(), (2, 0), (1 << 32) - 1), "has a header of 4,294,967,295 bytes"),
    "header beyond the end": (whole(b"\x93NUMPY\1\0\xff\x01{}"), "ends within its header"),
    "unknown version": (npy(described(), (9, 0)), "is no .npy file of version 1 to 3"),
    "another file": (whole(b"PK\3\4" * 10), "is no .npy file"),
    "empty": (whole(b""), "is no .npy file"),
    "truncated": (resized(-4), "its header says 9 x 4,970"),
    "too long": (resized(4), "its header says 9 x 4,970"),
}
LAYOUT = {
    "overlapping variables": (layout(start_idx=170, end_idx=2474), "overlaps the variable before it"),
    "gap between variables": (layout(start_idx=180, end_idx=2484), "leaves 176 on to no variable"),
    "beyond the row": (layout_rows(wider), "is for 4,980 numbers, a row has 4,970"),
    "missing variable": (layout_rows(lambda t: t.iloc[:-1]), "is for 4,810 numbers, a row has 4,970"),
    "variable twice": (
        layout_rows(lambda t: t.replace({"varname": {"sequential/conv2d_2/kernel:0": "sequential/conv2d_1/kernel:0"}})),
        "has a variable twice",
    ),
    "unknown variable": (layout(varname="sequential/lstm/kernel:0"), "names 'sequential/lstm/kernel:0'; expected"),
    "shape of another size": (layout(shape="(3, 3, 16, 17)"), "and the shape (3, 3, 16, 17)"),
    "shape that is code": (layout(shape="__import__('os').mkdir('ran')"), "which a kernel has not"),
    "shape of other axes": (layout(shape="(144, 16)"), "the shape (144, 16), which a kernel has not"),
    "shape that is huge": (layout(shape="(999999999, 999999999, 9, 9)"), "and the shape (999999999, 999999999, 9, 9)"),
    "size that is not that": (layout(size=7), "gives sequential/conv2d_1/kernel:0 the numbers 176 to 2480"),
    "negative start": (layout(start_idx=-1), "the numbers -1 to"),
    "without shapes": (layout_rows(lambda t: t.drop(columns="shape")), "has no column 'shape'"),
}
METRICS = {
    "fewer rows": (metrics(lambda d: lines(d, lambda r: r[:5])), "has 4 rows and weights.npy has 9"),
    "more rows": (metrics(lambda d: d + d.split(b"\n")[1] + b"\n"), "has more than the 9 rows that there can be"),
    "without rows": (metrics(lambda d: d.split(b"\n")[0]), "has no rows"),
    "empty": (packed(lambda d: gzip.compress(b"")), "has no rows"),
    "no steps": (metrics(lambda d: d.replace(b",step,", b",stop,", 1)), "has no column 'step'"),
    "no models": (metrics(lambda d: d.replace(b",modeldir,", b",dir,", 1)), "has no column 'modeldir'"),
    "a step that is text": (metrics(lambda d: d.replace(b"/2,3,", b"/2,x,")), "has step 'x' in row 5"),
    "a step that is negative": (metrics(lambda d: d.replace(b"/2,3,", b"/2,-3,")), "has step '-3' in row 5"),
    "a step within an epoch": (metrics(lambda d: d.replace(b"/2,3,", b"/2,3.5,")), "has step '3.5' in row 5"),
    "no name": (metrics(lambda d: d.replace(b",/somewhere/9001/2,", b",,", 1)), "has no modeldir in row 1"),
    "columns twice": (metrics(lambda d: d.replace(b"step", b"modeldir", 1)), "has the column 'modeldir' twice"),
    "a field too many": (metrics(lambda d: d.replace(b",42,", b",42,42,", 1)), "has 25 fields in line 2, not 24"),
    "NUL": (metrics(lambda d: d.replace(b"he_normal", b"he\0", 1)), "has control characters in line 2"),
    "escape": (metrics(lambda d: d.replace(b"he_normal", b"\x1b[2J", 1)), "has control characters in line 2"),
    "quoted newline": (metrics(lambda d: d.replace(b"he_normal", b'"a\nb"', 1)), "has control characters in line 2"),
    "open quote": (metrics(lambda d: d.replace(b"he_normal", b'"a', 1)), "is not readable as a table"),
    "no text": (metrics(lambda d: d.replace(b"he_normal", b"\xff\xfe", 1)), "is not readable as a table"),
    "blank lines": (metrics(lambda d: d + b"\n" * 1000), "has 0 fields in line 11"),
    "only blank lines": (metrics(lambda d: b"\n" * (1 << 20)), "has 0 columns"),
    "many columns": (metrics(lambda d: b"a," * 2_000 + d), "has 2,024 columns"),
    "no gzip": (packed(lambda d: b"a,b\n1,2\n"), "is not readable as a table"),
    "truncated gzip": (packed(lambda d: d[:-20]), "is not readable as a table"),
    "flipped bit in gzip": (packed(lambda d: d[:-6] + bytes([d[-6] ^ 1]) + d[-5:]), "is not readable as a table"),
}
HOSTILE = {"weights.npy": WEIGHTS, "layout.csv": LAYOUT, "metrics.csv.gz": METRICS}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, found in HOSTILE.items() for name in found])
def test_a_file_that_is_hostile_or_damaged_is_refused_with_its_reason(file, name, folder, tmp_path, monkeypatch):
    make, reason = HOSTILE[file][name]
    monkeypatch.chdir(tmp_path)
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError) as refused:
        import_zoo(folder, "small-cnn-zoo", tmp_path / "out", lambda text: None)
    assert str(refused.value).startswith(f"zoo: {file} ")
    assert reason in str(refused.value)
    assert str(refused.value).replace("\n", "").isprintable()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_decompression_bomb_is_not_inflated(folder, end):
    header = gzip.decompress((folder / "metrics.csv.gz").read_bytes()).split(b"\n")[0]
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        file.write(header + b"\n")
        for _ in range(32):
            file.write((b"0" * ((1 << 10) - len(end)) + end) * 1024)  # 32 MB in all
    (folder / "metrics.csv.gz").write_bytes(packed.getvalue())
    tracemalloc.start()
    refused = pytest.raises(
        IntegrityError, match=r"metrics\.csv\.gz (is not readable as a table|has 1 fields in line 2)"
    )
    with open_source(folder) as source, refused:
        list(source.models())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
