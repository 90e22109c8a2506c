"""Files of ``torch.save`` that differ from one read before in nothing but their numbers are read without torch.

torch takes a millisecond or more for a small file, nearly all of it for a pickle that says the same in every checkpoint
of a network. So the first file of a kind is read by torch, and what it is made of is found by experiment: torch also
reads a copy whose records hold other bytes, and the tensors show which record is theirs. Later files of that kind have
the same size and the same bytes everywhere but in these records, in checksums, in the name that the file had when it
was saved and in the number that torch gives every file; then torch would find the same tensors in the same places. Any
other byte, or a wrong checksum, and the file is no longer of the kind.
"""

from __future__ import annotations

import io
import re
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from os import urandom
from struct import Struct, unpack_from
from typing import TYPE_CHECKING, Any
from zlib import crc32

from zoogen.importers.source import Unusable
from zoogen.importers.tensors.views import Form, View, Views

if TYPE_CHECKING:
    from torch import Tensor

_MOST_BYTES = 16 << 20
"""Larger files take torch long anyway."""
_MOST_TEMPLATES = 256
_MOST_SAME = 1 << 20
"""Bytes that a template keeps: those that are the same in all its files."""
_DTYPES = frozenset(
    ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
)  # that every machine keeps alike
_STEM = re.compile(rb"[0-9A-Za-z_.-]+")
_LOCAL, _CENTRAL, _DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"

Load = Callable[[bytes], Mapping[str, "Tensor"]]


class Templates:
    """Kinds of files seen so far, at most 256 of them."""

    def __init__(self) -> None:
        self._known: dict[int, list[Template]] = {}
        self._left = _MOST_TEMPLATES

    def read(self, data: bytes) -> Views | None:
        """The tensors of a file of a known kind; None: of no known kind, or damaged."""
        for template in self._known.get(len(data), ()):
            found = template.read(data)
            if found is not None:
                return found
        return None

    def learn(self, data: bytes, tensors: Mapping[str, Tensor], load: Load) -> None:
        """Know files of this kind from now on, where that is possible.

        Args:
            data: A file whose checksums are right.
            tensors: What torch reads in it.
            load: How torch reads another.
        """
        if self._left and len(data) <= _MOST_BYTES:
            self._left -= 1
            template = template_of(data, load)
            if template is not None and _all_equal(Views(data, template.form), tensors):
                self._known.setdefault(len(data), []).append(template)


@dataclass(frozen=True)
class Template:
    """A file cut into pieces, of which most are the same in every file of the kind.

    Attributes:
        cut: Into pieces.
        same, expected: Which pieces, and what they are.
        stems: Pieces that are equal to each other: the file's name, before every record's.
        number: The piece that is the file's number, or -1.
        sums: Pieces that are records, each with those that are its checksum.
        truths: Pieces that are records of booleans, in which every byte is 0 or 1.
        form: Where the tensors lie.
    """

    cut: Struct
    same: Callable[[tuple[Any, ...]], tuple[bytes, ...]]
    expected: tuple[bytes, ...]
    stems: Callable[[tuple[Any, ...]], tuple[bytes, ...]]
    number: int
    sums: tuple[tuple[int, tuple[int, ...]], ...]
    truths: tuple[int, ...]
    form: Form

    def read(self, data: bytes) -> Views | None:
        """The tensors of a file of this kind; None: it is not, or a checksum is wrong."""
        if len(data) != self.cut.size:
            return None
        pieces = self.cut.unpack(data)
        if self.same(pieces) != self.expected or len(stem := set(self.stems(pieces))) > 1:
            return None
        if not _STEM.fullmatch(stem.pop()) or (self.number >= 0 and not pieces[self.number].isdigit()):
            return None
        for record, places in self.sums:
            found = crc32(pieces[record])
            for place in places:
                if pieces[place] != found:
                    return None
        if any(pieces[record].strip(b"\0\1") for record in self.truths):
            return None
        return Views(data, self.form)


def template_of(data: bytes, load: Load) -> Template | None:
    """What this file, which ``load`` reads, has in common with others; None where that cannot be told for certain."""
    records = _records(data)
    if records is None:
        return None
    parts = sorted(
        [(r.start, r.end, r.kind) for r in records if r.kind != "same" and r.end > r.start]
        + [(place, place + 4, "sum") for r in records for place in r.sums]
        + [(place, place + r.stem, "stem") for r in records for place in r.names]
    )
    formats, kinds, starts, end = ["<"], [], [], 0
    for start, stop, kind in [*parts, (len(data), len(data), "same")]:
        if start < end:
            return None
        formats += [f"{start - end}s", "I" if kind == "sum" else f"{stop - start}s"]
        kinds += ["same", kind]
        starts += [end, start]
        end = stop
    cut = Struct("".join(formats))
    piece = {start: i for i, (start, kind) in enumerate(zip(starts, kinds, strict=True)) if kind != "same"}
    same = itemgetter(*(i for i, kind in enumerate(kinds) if kind == "same"))
    expected = same(cut.unpack(data))
    if sum(map(len, expected)) > _MOST_SAME:
        return None
    stems = itemgetter(*(i for i, kind in enumerate(kinds) if kind == "stem"))
    sums = tuple((piece[r.start], tuple(piece[place] for place in r.sums)) for r in records if r.sums)
    number = kinds.index("number") if "number" in kinds else -1
    form = _form(data, records, load)
    if form is None:
        return None
    truths = tuple(piece[r.start] for r in _of_booleans(records, form))
    return Template(cut, same, expected, stems, number, sums, truths, form)


def _of_booleans(records: list[_Record], form: Form) -> list[_Record]:
    """Records that booleans lie in, whose places are counted in bytes."""
    import torch

    starts = sorted(view.start for view in form.views.values() if view.dtype is torch.bool)
    filled = [r for r in records if r.kind == "record" and r.end > r.start]
    return [r for r in filled if bisect_left(starts, r.start) < bisect_left(starts, r.end)]


@dataclass(frozen=True)
class _Record:
    """A member of the zip.

    Attributes:
        kind: ``same`` in every file, ``record`` of numbers, or the ``number`` of the file.
        start, end: Of its content.
        sums: Where its checksum stands.
        names, stem: Where its name stands, and the length of what comes before the ``/`` in it.
    """

    kind: str
    start: int
    end: int
    sums: tuple[int, ...]
    names: tuple[int, int]
    stem: int


def _records(data: bytes) -> list[_Record] | None:
    """All members; None where the file is not as torch writes it."""
    if not data.startswith(_LOCAL):
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members, place = file.infolist(), file.start_dir
    found = []
    first: bytes | None = None
    for member in members:
        header = member.header_offset
        if data[place : place + 4] != _CENTRAL or data[header : header + 4] != _LOCAL:
            return None
        length, extra, comment = unpack_from("<3H", data, place + 28)
        own_length, own_extra = unpack_from("<2H", data, header + 26)
        stem, slash, name = data[place + 46 : place + 46 + length].partition(b"/")
        start = header + 30 + own_length + own_extra
        end = start + member.file_size
        first = stem if first is None else first
        if stem != first or not slash or own_length != length or end > len(data):
            return None
        number = name == b".data/serialization_id" and data[start:end].isdigit()
        kind = "number" if number else "record" if name.startswith(b"data/") else "same"
        places = [place + 16, header + 14, *([end + 4] if data[end : end + 4] == _DESCRIPTOR else [])]
        # What is 0 was not computed, or stands elsewhere: it is then 0 in every file of the kind.
        free = kind != "same" and end > start and member.CRC != 0
        sums = [p for p in places if free and unpack_from("<I", data, p) == (member.CRC,)]
        found.append(_Record(kind, start, end, tuple(sums), (header + 30, place + 46), len(stem)))
        place += 46 + length + extra + comment
    return found if first and _STEM.fullmatch(first) else None


def _form(data: bytes, records: list[_Record], load: Load) -> Form | None:
    """Where the tensors lie; None where something in them is not in the records, byte for byte."""
    import torch

    other = bytearray(data)
    starts: dict[bytes, int] = {b"": 0}
    for record in (r for r in records if r.kind == "record"):
        content = urandom(record.end - record.start)  # nobody can have written a file with these
        if content and starts.setdefault(content, record.start) != record.start:
            return None  # two very short records that cannot be told apart
        other[record.start : record.end] = content
        for place in record.sums:
            other[place : place + 4] = crc32(content).to_bytes(4, "little")
    try:
        read = load(bytes(other))
    except Unusable:
        return None
    views = {}
    for name, tensor in read.items():
        storage = tensor.untyped_storage()
        start = starts.get(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes())
        size = tensor.element_size()
        if type(tensor) is not torch.Tensor or str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
            return None
        if start is None or start % size:
            return None
        first = start // size + int(tensor.storage_offset())
        views[name] = View(tensor.dtype, first, tuple(tensor.shape), tuple(tensor.stride()))
    form = Form(views)
    return form if _all_equal(Views(bytes(other), form), read) else None


def _all_equal(found: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    return list(found) == list(tensors) and all(_equal(found[name], tensor) for name, tensor in tensors.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit."""
    import torch

    if other.is_neg() or one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (t.reshape(-1).contiguous().view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)
