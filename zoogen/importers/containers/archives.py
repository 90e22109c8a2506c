"""Zip and tar read in place: the list of members is checked as a whole before the first of them is opened."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.containers.files import Limits, check_range, check_size, checked_path, refused

_MOST_AT_ONCE = 16 << 20
_CHUNK = 1 << 20
_MOST_INFLATED = 256 << 20
ZIP_BEGINS = b"PK\x03\x04"
_LOCAL_HEADER = 30
_READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_AGAIN, _AGAIN_AT_LEAST = 64, 4 << 30  # a compressed tar is inflated so many times, or up to so many bytes
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(OSError, EOFError, NotImplementedError, ValueError, OverflowError),
)
# What tarfile raises besides for headers that make no sense, and for one hidden in another a thousand times.
_TAR_DAMAGE = (*_DAMAGE, KeyError, IndexError, RecursionError)


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def cut_off(path: Path) -> IntegrityError:
    """The error for a zip without its end, where the list of its members stands."""
    return IntegrityError(
        f"{path}: begins as a zip, but its end is missing: the download is incomplete\nget the archive from its source"
    )


def is_zip(path: Path) -> bool:
    return zipfile.is_zipfile(path)


def is_tar(path: Path) -> bool:
    try:
        with _stream(path) as stream:
            return len(tarfile.TarInfo.frombuf(stream.read(512), "utf-8", "surrogateescape").name) > 0
    except _DAMAGE:
        return False


class ZipFiles:
    """The members of a zip, in stored order."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.name = path.name
        self.place = path.name.partition(".")[0]
        self._path = path
        self.sizes: dict[str, int] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._inflated = "", b""  # the last compressed member of which a part was read
        self._sound: set[str] = set()  # stored members of which a part was read
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise IntegrityError(f"{path}: not readable as zip ({error})") from error
        try:
            self._check(limits)
        except BaseException:
            self._zip.close()
            raise

    def _check(self, limits: Limits) -> None:
        where, archive = str(self._path), self._path.stat().st_size
        members = sorted(self._zip.infolist(), key=lambda m: m.header_offset)
        check_count(where, len(members), limits)
        if members and self._is_inside(members[0].header_offset):
            raise cut_off(self._path)
        inflated = end = 0
        for member in members:
            # zipfile cuts a name at a NUL; the archive's own name tells.
            name = checked_path(member.orig_filename, where)
            mode = stat.S_IFMT(member.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise refused(where, name, "is a link" if mode == stat.S_IFLNK else "is no regular file")
            if member.flag_bits & 1:
                raise refused(where, name, "is encrypted")
            if member.header_offset < end:
                raise refused(where, name, "overlaps the member before it")
            end = member.header_offset + member.compress_size
            if end > archive:
                raise refused(where, name, "lies beyond the end of the archive")
            if member.compress_type not in _READ_METHODS:
                raise refused(
                    where, name, f"is compressed by method {member.compress_type}; 0 and 8 (deflate) are read"
                )
            if member.file_size > limits.ratio * member.compress_size + limits.slack:
                raise _bomb(where, name, member.file_size, member.compress_size)
            inflated += member.file_size
            if inflated > limits.ratio * archive + limits.slack:
                raise _bomb(where, name, inflated, archive)
            if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
                raise refused(where, name, "is stored as it is, yet has two sizes")
            if not member.is_dir():
                if name in self.sizes:
                    raise refused(where, name, "stands twice in the archive")
                self.sizes[name] = member.file_size
                self._members[name] = member

    def _is_inside(self, first: int) -> bool:
        """Whether the end that was found is that of a zip inside, whose first member begins at byte ``first``."""
        if not 0 < first < self._path.stat().st_size:
            return False
        with self._path.open("rb") as file:
            begins = file.read(len(ZIP_BEGINS))
            file.seek(first)
            return begins == file.read(len(ZIP_BEGINS)) == ZIP_BEGINS

    def read(self, name: str, at_most: int | None = None) -> bytes:
        check_size(self.name, name, self.sizes[name], at_most)
        try:
            data = self._zip.read(self._members[name])
        except (*_DAMAGE, RuntimeError, MemoryError) as error:
            raise _damaged(self._path, name, error) from error
        if len(data) != self.sizes[name]:
            raise _damaged(self._path, name, f"it has {len(data):,} bytes, not {self.sizes[name]:,}")
        return data

    def read_range(self, name: str, start: int, length: int) -> bytes:
        check_range(self.name, name, self.sizes[name], start, length)
        member = self._members[name]
        try:
            if member.compress_type == zipfile.ZIP_STORED:
                if name not in self._sound:  # parts of it have no checksum of their own
                    self._check_sum(member)
                    self._sound.add(name)
                return self._stored(member, start, length)
        except _DAMAGE as error:
            raise _damaged(self._path, name, error) from error
        if member.file_size > _MOST_INFLATED:
            raise IntegrityError(
                f"{self._path}: {name} is compressed, and too large ({member.file_size:,} bytes) to read parts of it\n"
                f"unpack it, and give the file or its folder"
            )
        if self._inflated[0] != name:
            self._inflated = name, self.read(name)
        return self._inflated[1][start : start + length]

    def _check_sum(self, member: zipfile.ZipInfo) -> None:
        total = 0
        for at in range(0, member.file_size, _CHUNK):
            total = zlib.crc32(self._stored(member, at, min(_CHUNK, member.file_size - at)), total)
        if total != member.CRC:
            raise zipfile.BadZipFile("its checksum (CRC) is another")

    def _stored(self, member: zipfile.ZipInfo, start: int, length: int) -> bytes:
        """From the archive itself: zipfile would read all that is before it."""
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
            if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile("no header")
            name, extra = struct.unpack("<HH", header[26:])
            file.seek(name + extra + start, os.SEEK_CUR)
            data = file.read(length)
        if len(data) < length:
            raise zipfile.BadZipFile("it ends too soon")
        return data

    def close(self) -> None:
        self._zip.close()


class TarFiles:
    """The members of a tar, in stored order; one that is compressed is read forwards fast and backwards slowly."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.name = path.name
        self.place = path.name.partition(".")[0]
        self._path = path
        self.sizes: dict[str, int] = {}
        self._members: dict[str, tarfile.TarInfo] = {}
        size = path.stat().st_size
        self._stream = _Bounded(path, limits.ratio * size + limits.slack)
        try:
            self._tar = tarfile.TarFile(fileobj=self._stream, mode="r", tarinfo=_Header)
            self._check(limits)
            self._check_end()
        except _TAR_DAMAGE as error:
            self._stream.close()
            last = next(reversed(self._members), None)
            what = "is not readable as tar" if last is None else f"is damaged or cut off after member {last!r}"
            raise IntegrityError(f"{path}: {what} ({error})\nget the archive from its source") from error
        except BaseException:
            self._stream.close()
            raise

    def _check(self, limits: Limits) -> None:
        where = str(self._path)
        for count, member in enumerate(self._tar, start=1):
            check_count(where, count, limits)
            name = checked_path(member.name, where)
            if member.size < 0 or not member.pax_headers.get("size", "0").isdecimal():
                raise refused(where, name, "has a size that is no number of bytes")
            if member.issym() or member.islnk():
                raise refused(where, name, "is a link")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise refused(where, name, "is no regular file")
            if name in self.sizes:
                raise refused(where, name, "stands twice in the archive")
            if member.offset_data + member.size > self._stream.most:
                raise _bomb(where, name, member.size, self._path.stat().st_size)
            if self._tar.offset != member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE:
                raise refused(where, name, "has two sizes")
            self.sizes[name] = member.size
            self._members[name] = member

    def _check_end(self) -> None:
        """Behind the last member stand two blocks of zeros, and nothing but zeros: POSIX asks for them, and every
        writer of tar writes them. To read on to the end compares the checksum of what is compressed, too."""
        block = self._stream.read(tarfile.BLOCKSIZE)  # the first of the two ended the list
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the end mark is not whole")
        while block:
            if block.count(0) < len(block):
                raise tarfile.ReadError("there is more behind the end mark")
            block = self._stream.read(_CHUNK)
        if self._stream.most_again is not None:
            self._stream.most_again = max(_AGAIN * self._stream.tell(), _AGAIN_AT_LEAST)

    def read(self, name: str, at_most: int | None = None) -> bytes:
        check_size(self.name, name, self.sizes[name], at_most)
        return self.read_range(name, 0, self.sizes[name])

    def read_range(self, name: str, start: int, length: int) -> bytes:
        check_range(self.name, name, self.sizes[name], start, length)
        parts: list[bytes] = []
        left = length
        try:
            self._stream.seek(self._members[name].offset_data + start)
            while left and (part := self._stream.read(min(left, _CHUNK))):
                parts.append(part)
                left -= len(part)
        except (*_TAR_DAMAGE, MemoryError) as error:
            raise _damaged(self._path, name, error) from error
        if left:
            raise _damaged(self._path, name, "the archive ends within it")
        return b"".join(parts)

    def close(self) -> None:
        self._tar.close()
        self._stream.close()


class _Header(tarfile.TarInfo):
    """Only a block of zeros ends the list: tarfile takes a damaged header, or none at all, for the end as well."""

    __slots__ = ()

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(str(error)) from error


class _Bounded(io.RawIOBase):
    """A stream that is never read further than ``most`` bytes, nor much at once: a header cannot ask for all memory.

    ``most_again`` bounds the bytes that are inflated anew to go back; None: it is not compressed.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._inner = _stream(path)
        self._where = str(path)
        self._again = 0
        self.most = most
        self.most_again: int | None = None if isinstance(self._inner, io.BufferedReader) else most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._inner.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset > self.most:
            raise IntegrityError(f"{self._where}: inflates to more than {self.most:,} bytes; it is not read on")
        if self.most_again is not None and whence == io.SEEK_SET and offset < self._inner.tell():
            self._again += offset
            if self._again > self.most_again:
                raise UserError(
                    f"{self._where}: is compressed, and its files lie in another order than they are read in: "
                    "it would be inflated from its beginning again and again\nunpack it, and give its folder"
                )
        return self._inner.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise IntegrityError(f"{self._where}: a header asks for {size:,} bytes; it is not read on")
        if self._inner.tell() + size > self.most + _CHUNK:
            raise IntegrityError(f"{self._where}: inflates to more than {self.most:,} bytes; it is not read on")
        return self._inner.read(size)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _stream(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    return next((o for magic, o in _OPENERS.items() if start.startswith(magic)), _plain)(path)


def check_count(where: str, count: int, limits: Limits) -> None:
    """Refuse an archive of more members than any zoo has."""
    if count > limits.members:
        raise IntegrityError(f"{where}: more than {limits.members:,} members; nothing of it is read")


def _bomb(where: str, name: str, inflated: int, stored: int) -> IntegrityError:
    return refused(where, name, f"is a decompression bomb: {inflated:,} bytes out of {stored:,}")


def _damaged(path: Path, name: str, why: object) -> IntegrityError:
    if isinstance(why, MemoryError):
        return IntegrityError(f"{path}: {name} does not fit into the memory of this machine")
    return IntegrityError(f"{path}: {name} is damaged ({why})\nget the archive from its source")
