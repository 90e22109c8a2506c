"""How large the pages of a Parquet file are, told by the headers that stand before each of them.

What the end of a file tells of sizes is not what a reader allocates: that stands in the page's own header, a structure
of Thrift's compact protocol (https://github.com/apache/parquet-format, ``PageHeader``).
"""

from __future__ import annotations

from collections.abc import Iterator

_MOST_PAGES = 100_000
_DEEPEST = 10
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _, _, _, _STRUCT = range(1, 13)
_UNCOMPRESSED, _COMPRESSED = 2, 3  # numbers of fields of a PageHeader


def page_sizes(data: bytes, start: int, length: int) -> Iterator[int]:
    """Bytes of each page of a column chunk once it is inflated.

    Args:
        data: The file.
        start, length: Of the chunk in it.

    Raises:
        ValueError: a header makes no sense, or leads out of the chunk.
    """
    end = start + length
    if not 0 <= start <= end <= len(data):
        raise ValueError("a column lies beyond the end of the file")
    for _ in range(_MOST_PAGES):
        if start == end:
            return
        header = _Header(data, start, end)
        sizes = header.integers()
        uncompressed, compressed = sizes.get(_UNCOMPRESSED, -1), sizes.get(_COMPRESSED, -1)
        start = header.at + compressed
        if uncompressed < 0 or compressed < 0 or start > end:
            raise ValueError("a page has an impossible size")
        yield uncompressed
    raise ValueError(f"a column has more than {_MOST_PAGES:,} pages")


class _Header:
    """Reads one structure; ``at`` is behind it afterwards."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._end = end
        self.at = at

    def integers(self) -> dict[int, int]:
        """The structure's own fields that are integers, by number."""
        found: dict[int, int] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            if kind & 15 in (_I16, _I32, _I64):
                found[number] = self._integer()
            else:
                self._skip(kind & 15, 0)
        return found

    def _byte(self) -> int:
        if self.at >= self._end:
            raise ValueError("a page ends within its header")
        self.at += 1
        return self._data[self.at - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page has a number without end in its header")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError("a page has a header that is nested too deep")
        if kind in (_I16, _I32, _I64):
            self._unsigned()
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            length = {_BYTE: 1, _DOUBLE: 8}.get(kind) or self._unsigned()
            self.at += length
        elif kind == _STRUCT:
            while inner := self._byte():
                if not inner >> 4:
                    self._unsigned()
                self._skip(inner & 15, depth + 1)
        elif kind not in (_TRUE, _FALSE):  # no page has lists, sets or maps in its header
            raise ValueError("a page has a header of an unknown kind")
