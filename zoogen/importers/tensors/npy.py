"""Matrices in NumPy's own format (``.npy``), read by rows: no pickles, and nothing that the header does not pay for.

magic (6 bytes), version (2), length of the header (2 or 4), the header as the text of a dictionary, the numbers.
"""

from __future__ import annotations

import ast
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoogen.core.errors import IntegrityError
from zoogen.importers.containers.files import Files

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"\x93NUMPY"
_LENGTHS = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}
_LONGEST_HEADER = 10_000  # NumPy's own bound
_NUMBERS = {f"{order}f{size}": size for order in "<>" for size in (2, 4, 8)}
_KEYS = {"descr", "fortran_order", "shape"}
_BLOCK, _BLOCKS = 1 << 18, 32


@dataclass(frozen=True)
class MatrixHeader:
    """Where the numbers of a matrix are.

    Attributes:
        dtype: Of a number in the file, as NumPy writes it: ``<f4``.
        rows, columns: At least one each.
        start: Byte of the first number.
    """

    dtype: str
    rows: int
    columns: int
    start: int

    @property
    def row_bytes(self) -> int:
        return self.columns * _NUMBERS[self.dtype]


def read_header(files: Files, name: str) -> MatrixHeader:
    """The header of a matrix of floats, one row after the other, that fills its file exactly.

    Raises:
        IntegrityError: it is damaged, or holds anything else.
    """
    head = files.read_range(name, 0, min(12, files.sizes[name]))
    version = (head[6], head[7]) if len(head) == 12 and head.startswith(_MAGIC) else None
    if version not in _LENGTHS:
        raise _refused(files, name, "is no .npy file of version 1 to 3")
    kind = _LENGTHS[version]
    (length,) = struct.unpack_from(kind, head, 8)
    start = 8 + struct.calcsize(kind) + length
    if length > _LONGEST_HEADER:
        raise _refused(files, name, f"has a header of {length:,} bytes, more than any matrix needs")
    if start > files.sizes[name]:
        raise _refused(files, name, "ends within its header")
    told = _literal(files.read_range(name, start - length, length))
    if not isinstance(told, dict) or told.keys() != _KEYS:
        raise _refused(files, name, f"has a header that is no dictionary of {', '.join(sorted(_KEYS))}")
    return _checked(files, name, told, start)


def _checked(files: Files, name: str, told: dict[str, Any], start: int) -> MatrixHeader:
    dtype, shape = told["descr"], told["shape"]
    if not isinstance(dtype, str) or dtype not in _NUMBERS:
        raise _refused(files, name, f"holds {_what(dtype)}; only floats of 2, 4 or 8 bytes are read")
    if told["fortran_order"] is True:
        raise _refused(files, name, "is stored by columns (Fortran order), so that a model is spread over all of it")
    if told["fortran_order"] is not False:
        raise _refused(files, name, "has an order of axes that is neither True nor False")
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 63 for n in shape):
        raise _refused(files, name, f"has the shape {_shown(shape)}, not rows and columns")
    needed = start + shape[0] * shape[1] * _NUMBERS[dtype]
    if needed != files.sizes[name]:
        said = f"{shape[0]:,} x {shape[1]:,} numbers, which are {needed:,} bytes with the header"
        raise _refused(files, name, f"has {files.sizes[name]:,} bytes, its header says {said}")
    return MatrixHeader(dtype, *shape, start)


class Rows:
    """Rows of a matrix, a few at a time in memory: those read last, and some around them."""

    def __init__(self, files: Files, name: str, header: MatrixHeader) -> None:
        self._files = files
        self._name = name
        self._header = header
        self._in_block = max(1, _BLOCK // header.row_bytes)
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()

    def row(self, index: int) -> np.ndarray:
        """The numbers [columns] of a row as they are in the file, counted from 0.

        Raises:
            IntegrityError: the file is damaged.
        """
        number, within = divmod(index, self._in_block)
        if number not in self._blocks:
            # Whole blocks, because an archive that is compressed would be read from its beginning for a row before the
            # last one; and the checkpoints of a model need not lie in their order.
            self._blocks[number] = self._read(number)
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number][within]

    def _read(self, number: int) -> np.ndarray:
        import numpy as np

        header, first = self._header, number * self._in_block
        count = min(self._in_block, header.rows - first)
        data = self._files.read_range(self._name, header.start + first * header.row_bytes, count * header.row_bytes)
        return np.frombuffer(data, np.dtype(header.dtype)).reshape(count, header.columns)


def _literal(header: bytes) -> Any:
    """The header's value, or None where it is no literal."""
    try:
        return ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _shown(value: Any) -> str:
    try:
        return f"{value!s:.60}"
    except ValueError:  # Python does not write out numbers of more than 4,300 digits
        return "(a number without end)"


def _what(dtype: Any) -> str:
    if isinstance(dtype, list):
        return "records of several fields"
    if isinstance(dtype, str) and "O" in dtype:
        return "Python objects, which are pickles and may run code"
    return f"numbers of type {_shown(dtype)!r}"


def _refused(files: Files, name: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{files.name}: {name} {why}\nget the file from its source, or write it again with numpy.save"
    )
