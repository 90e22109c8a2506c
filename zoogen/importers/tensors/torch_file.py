"""One file that ``torch.save`` wrote: its objects at once, with its tensors as places; numbers when they are asked for.

Since torch 1.6 such a file is a zip with the members ``<root>/data.pkl`` and ``<root>/data/<key>``, stored without
compression. Before, it was four pickles (a magic number, a version, the system, the objects), one of the keys of all
storages, and behind it each storage as 8 bytes for the number of its elements and their bytes.
"""

from __future__ import annotations

import io
import zipfile
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

from zoogen.core.errors import IntegrityError
from zoogen.importers.containers.files import Files
from zoogen.importers.source import Unusable
from zoogen.importers.tensors.inert import Admitted, Placed, Storage
from zoogen.importers.tensors.pickle_machine import load_pickle

if TYPE_CHECKING:
    from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_BLOCK = 1 << 20
_COUNT = 8
_HEADER = 30
_MOST_PREAMBLE = 1 << 16
_DAMAGE = (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError, RuntimeError)


class _Storages(Protocol):
    def read(self, storage: Storage, start: int, length: int) -> bytes:
        """Bytes of a storage."""
        ...


class TorchFile:
    """What a file holds.

    Attributes:
        objects: Plain containers, numbers, texts, ``Inert``, and ``Placed`` for tensors.
    """

    objects: Any

    def __init__(self, files: Files, name: str) -> None:
        """Read all but numbers.

        Raises:
            Unusable: damaged, or with anything in it that is not admitted.
        """
        raw = _Ranges(files, name)
        admitted = Admitted()
        self._size = files.sizes[name]
        try:
            if files.read_range(name, 0, min(4, self._size)) == b"PK\x03\x04":
                zipped = _Zipped(raw)
                self._storages: _Storages = zipped
                with zipped.open() as stream:
                    buffered = io.BufferedReader(stream, _BLOCK)
                    self.objects = load_pickle(buffered, zipped.pickle.file_size, admitted.meaning)
                for storage in admitted.stores.values():
                    zipped.check(storage)
            else:
                self.objects, self._storages = _old_format(raw, self._size, admitted)
        except IntegrityError as error:
            raise Unusable(str(error)) from error
        except _DAMAGE as error:
            raise Unusable(f"is damaged ({error})") from error

    def tensor(self, placed: Placed) -> Tensor:
        """Read one tensor.

        Raises:
            Unusable: damaged, or it is no plain tensor but a view that repeats or skips numbers.
        """
        import torch

        count = 1
        for n, step in zip(reversed(placed.shape), reversed(placed.stride), strict=True):
            if n != 1 and step != count:
                raise Unusable("holds a tensor whose numbers overlap or have gaps between them")
            count *= n
        storage = placed.storage
        kind = getattr(torch, storage.dtype)
        if count == 0:
            return torch.empty(placed.shape, dtype=kind)
        try:
            data = self._storages.read(storage, placed.offset * storage.width, count * storage.width)
        except IntegrityError as error:
            raise Unusable(str(error)) from error
        except _DAMAGE as error:
            raise Unusable(f"is damaged ({error})") from error
        if storage.dtype == "bool" and data.strip(b"\0\1"):
            raise Unusable("holds booleans that are neither true nor false")
        return torch.frombuffer(bytearray(data), dtype=kind).reshape(placed.shape)


class _Zipped:
    """The records of a zip: where they begin, their bytes and their checksums, of storages by key.

    There may be millions of them, so that numbers are all that is kept.
    """

    def __init__(self, raw: _Ranges) -> None:
        self._raw = raw
        self._stream = io.BufferedReader(raw, 1 << 16)
        self._zip = zipfile.ZipFile(self._stream)
        self._checked: set[int] = set()
        members = self._zip.infolist()
        names = _checked_names(members)
        root = next((n.removesuffix("data.pkl") for n in names if n.count("/") == 1 and n.endswith("/data.pkl")), None)
        if root is None:
            raise Unusable("is a zip without the record data.pkl, so that torch did not write it")
        order = f"{root}byteorder"
        if order in names and self._part(self._zip.getinfo(order).header_offset, 0, 6) != b"little":
            raise Unusable("has numbers in big-endian order, which are not read")
        self.pickle = self._zip.getinfo(f"{root}data.pkl")
        self._starts, self._sizes = array("q", [-1]) * len(members), array("q", [0]) * len(members)
        self._sums = array("Q", [0]) * len(members)
        for member in members:
            folder, _, name = member.orig_filename.rpartition("/")
            if folder == f"{root}data" and (key := _key(name)) < len(members):
                self._starts[key], self._sizes[key] = member.header_offset, member.file_size
                self._sums[key] = member.CRC
        self._zip.filelist.clear()
        self._zip.NameToInfo.clear()

    def open(self) -> Any:
        """The pickle."""
        return self._zip.open(self.pickle)

    def check(self, storage: Storage) -> None:
        """Every storage must have its record, of its size.

        Raises:
            Unusable: it has none, or one of another size.
        """
        key = _key(storage.key)
        if key >= len(self._starts) or self._starts[key] < 0:
            raise Unusable(f"has no record of its storage {storage.key}")
        if self._sizes[key] != storage.elements * storage.width:
            raise Unusable(f"has {self._sizes[key]:,} bytes for {storage.elements:,} elements of {storage.dtype}")

    def read(self, storage: Storage, start: int, length: int) -> bytes:
        key = _key(storage.key)
        place, size = self._starts[key], self._sizes[key]
        if size <= _BLOCK:
            data = self._part(place, 0, size)
            self._compare(key, crc32(data))
            return data[start : start + length]
        if key not in self._checked:  # parts of it have no checksum of their own
            total = 0
            for at in range(0, size, _BLOCK):
                total = crc32(self._part(place, at, min(_BLOCK, size - at)), total)
            self._compare(key, total)
            self._checked.add(key)
        return self._part(place, start, length)

    def _compare(self, key: int, found: int) -> None:
        if found != self._sums[key]:
            raise Unusable(f"is damaged: the checksum (CRC) of its storage {key} is another")

    def _part(self, record: int, start: int, length: int) -> bytes:
        """Bytes of the record whose header begins there."""
        self._stream.seek(record)
        header = self._stream.read(_HEADER)
        if len(header) < _HEADER or header[:4] != b"PK\x03\x04":
            raise Unusable("is damaged: a record does not begin where its directory says")
        behind = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        self._stream.seek(behind + start, io.SEEK_CUR)
        data = self._stream.read(length)
        if len(data) < length:
            raise Unusable("is damaged: it ends within a record")
        return data


def _key(name: str) -> int:
    """The number that a storage is called; beyond all numbers where it is called something else, ``00`` say."""
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else 1 << 62
    return number if str(number) == name else 1 << 62


def _checked_names(members: list[zipfile.ZipInfo]) -> set[str]:
    names: set[str] = set()
    lower: set[str] = set()
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        where = f"record {member.orig_filename!r:.60}"
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Unusable(f"has the compressed {where}; torch writes none")
        if member.file_size != member.compress_size:
            raise Unusable(f"has the {where} of two sizes")
        if member.filename != member.orig_filename:
            raise Unusable(f"has the {where}, whose name ends within")
        if member.orig_filename.lower() in lower:  # torch finds records in whatever case
            raise Unusable(f"has the {where} twice")
        if member.header_offset < end:
            raise Unusable(f"has the {where} that overlaps the one before it")
        end = member.header_offset + _HEADER + member.file_size
        names.add(member.orig_filename)
        lower.add(member.orig_filename.lower())
    return names


class _Behind:
    """The storages behind the pickles of the old format, by where they begin."""

    def __init__(self, raw: _Ranges, places: Mapping[str, int]) -> None:
        self._raw, self._places = raw, places
        self._checked: set[str] = set()

    def read(self, storage: Storage, start: int, length: int) -> bytes:
        place = self._places[storage.key]
        if storage.key not in self._checked:
            if int.from_bytes(self._raw.part(place - _COUNT, _COUNT), "little") != storage.elements:
                raise Unusable(f"has another number of elements in its storage {storage.key} than its tensors say")
            self._checked.add(storage.key)
        return self._raw.part(place + start, length)


def _old_format(raw: _Ranges, size: int, admitted: Admitted) -> tuple[Any, _Behind]:
    stream = io.BufferedReader(raw, _BLOCK)
    nothing = Admitted().meaning
    if stream.peek(1)[:1] != b"\x80":
        raise Unusable("is no file that torch.save wrote")
    if load_pickle(stream, _MOST_PREAMBLE, nothing) != _MAGIC:
        raise Unusable("is a pickle that torch.save did not write")
    if load_pickle(stream, _MOST_PREAMBLE, nothing) != _VERSION:
        raise Unusable("is of an unknown version of torch's file format")
    system = load_pickle(stream, _MOST_PREAMBLE, nothing)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Unusable("has numbers in big-endian order, which are not read")
    objects = load_pickle(stream, size, admitted.meaning)
    keys = load_pickle(stream, size, nothing)
    if type(keys) is not list or not all(type(k) is str for k in keys) or len(set(keys)) < len(keys):
        raise Unusable("is damaged: it has no list of its storages")
    if set(keys) != admitted.stores.keys():
        raise Unusable("lists other storages than its tensors have")
    places: dict[str, int] = {}
    start = stream.tell()
    for key in keys:
        storage = admitted.stores[key]
        places[key] = start + _COUNT
        start += _COUNT + storage.elements * storage.width
    if start != size:
        raise Unusable(f"has {size:,} bytes, and {start:,} by its own account")
    return objects, _Behind(raw, places)


class _Ranges(io.RawIOBase):
    """A file of a source as a stream that can be positioned."""

    def __init__(self, files: Files, name: str) -> None:
        self._files, self._name = files, name
        self._size = files.sizes[name]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = self._files.read_range(self._name, self._at, count) if count else b""
        self._at += count
        return count

    def part(self, start: int, length: int) -> bytes:
        return self._files.read_range(self._name, start, length)
