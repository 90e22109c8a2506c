"""The files of a source, a folder or an archive, by their path inside it; nothing is ever unpacked to disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from zoogen.core.errors import IntegrityError, UserError

_LONGEST_NAME = 4096
_SINGLE = (".pt", ".pth", ".safetensors")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_SHOWN = 5
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """Beyond these an archive is taken for a bomb.

    Attributes:
        members: Files and folders.
        ratio: Bytes inflated over bytes stored, of a member and of the whole.
        slack: Bytes inflated that need no such ratio.
    """

    members: int = 10_000_000
    ratio: int = 200
    slack: int = 16 << 20


class Files(Protocol):
    """Files by name, in the order in which they are read fastest."""

    name: str  # of the folder or archive, for people
    place: str  # the last names of a folder's path, or an archive's name, for layouts that are told by them

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file, by path with forward slashes."""
        ...

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """The whole file.

        Raises:
            IntegrityError: it is damaged, larger than ``at_most``, or too large for the memory of this machine.
        """
        ...

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from byte ``start`` on; in a zip, once the checksum of all of it is compared.

        Raises:
            IntegrityError: it is damaged, or ends before them.
        """
        ...

    def close(self) -> None: ...


def open_files(path: Path, limits: Limits | None = None) -> Files:
    """The files of a folder, a zip or a tar (plain, gzip, bzip2, xz); every name is checked before anything is read.
    A ``.pt``, ``.pth`` or ``.safetensors`` is one file, though some of them are zips inside.

    Raises:
        UserError: there is nothing at ``path``, it is empty, or it is none of these.
        IntegrityError: a member would leave the folder, is a link or a device, stands twice, or inflates beyond all
            measure; or a zip has no end.
    """
    from zoogen.importers.containers.archives import ZIP_BEGINS, TarFiles, ZipFiles, cut_off, is_tar, is_zip

    limits = limits or Limits()
    if path.is_dir():
        return FolderFiles(path, limits)
    if not path.is_file():
        raise UserError(f"there is no folder or archive {path}\ngive the folder, zip or tar of a published zoo")
    if path.suffix in _SINGLE:
        return SingleFile(path)
    if is_tar(path):  # first: a tar whose last file is a zip, as torch's are, ends like one
        return TarFiles(path, limits)
    if is_zip(path):
        return ZipFiles(path, limits)
    with path.open("rb") as file:
        begins = file.read(len(ZIP_BEGINS))
    if begins == ZIP_BEGINS:
        raise cut_off(path)
    if not begins:
        raise UserError(f"{path} is empty\nget the file from its source")
    raise UserError(f"{path} is neither a folder nor a zip or tar archive that can be read")


def archives_in(path: Path, files: Files) -> list[str]:
    """Zips and tars that lie in a folder, sorted: nothing in them is read."""
    return sorted(name for name in files.sizes if name.lower().endswith(_ARCHIVES)) if path.is_dir() else []


def named_archives(path: Path, names: Sequence[str]) -> str:
    """What to do with archives in a folder that holds nothing else."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"it holds {', '.join(names[:_SHOWN])}{more}; give that: zoogen import {path / names[0]}"


class FolderFiles:
    """The regular files below a folder, by name.

    Links within it are no files of their own: ``links`` says by which name what they lead to is read.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.name = path.resolve().name
        self.place = "/".join(path.resolve().parts[-3:]).lstrip("/")
        self._path = path
        self.sizes: dict[str, int] = {}
        self.links: dict[str, str] = {}
        root = path.resolve()
        # Plain strings, and no more questions to the system than needed: there may be 100,000 folders of one file each.
        waiting = [(str(path), "")]
        while waiting:
            folder, inside = waiting.pop()
            below = []
            for entry in _listed(folder):
                relative = checked_path(inside + entry.name, str(path))
                if entry.is_symlink():
                    self.links[relative] = _target(Path(entry.path), root, relative)
                elif entry.is_file(follow_symlinks=False):
                    self.sizes[relative] = entry.stat(follow_symlinks=False).st_size
                elif entry.is_dir(follow_symlinks=False):
                    below.append((entry.path, f"{relative}/"))
                else:
                    raise refused(str(path), relative, "is no regular file")
                if len(self.sizes) > limits.members:
                    raise IntegrityError(f"{path}: more than {limits.members:,} files")
            waiting += reversed(below)

    def read(self, name: str, at_most: int | None = None) -> bytes:
        check_size(self.name, name, self.sizes[name], at_most)
        return _read(self._path / name)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        check_range(self.name, name, self.sizes[name], start, length)
        return _read(self._path / name, start, length)

    def close(self) -> None: ...


class SingleFile:
    """One file that is a source by itself."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.place = path.name.partition(".")[0]
        self._path = path
        self.sizes = {checked_path(path.name, str(path)): path.stat().st_size}

    def read(self, name: str, at_most: int | None = None) -> bytes:
        check_size(self.name, name, self.sizes[name], at_most)
        return _read(self._path)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        check_range(self.name, name, self.sizes[name], start, length)
        return _read(self._path, start, length)

    def close(self) -> None: ...


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise IntegrityError(f"{folder}: not readable ({error.strerror})") from error


def _read(path: Path, start: int = 0, length: int | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise IntegrityError(f"{path}: not readable ({error.strerror})") from error
    except MemoryError as error:
        raise IntegrityError(f"{path}: does not fit into the memory of this machine") from error
    if length is not None and len(data) != length:
        raise IntegrityError(f"{path}: was cut off while it was read")
    return data


def _target(link: Path, root: Path, relative: str) -> str:
    """The name of what a link within ``root`` leads to."""
    try:
        found = link.resolve()
    except (OSError, RuntimeError):  # a circle of links
        raise refused(str(root), relative, "is a link that leads nowhere") from None
    if not found.is_relative_to(root):
        raise refused(str(root), relative, "is a link that leads out of the folder")
    return found.relative_to(root).as_posix()


def checked_path(name: str, archive: str) -> str:
    """A member's name as a relative path without ``.``.

    Raises:
        IntegrityError: it is absolute, leaves the folder, or has control characters or backslashes.
    """
    if _CONTROL.search(name):
        raise refused(archive, name, "has control characters in its name")
    if "\\" in name:
        raise refused(archive, name, "has a backslash in its name")
    if name.startswith("/") or name[1:2] == ":":
        raise refused(archive, name, "has an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise refused(archive, name, "leads out of its folder ('..')")
    if len(name) > _LONGEST_NAME:
        raise refused(archive, f"{name[:40]}...", f"has a name of {len(name):,} characters")
    return "/".join(parts)


def refused(archive: str, member: str, why: str) -> IntegrityError:
    """The error for a member that no honest archive has."""
    return IntegrityError(f"{archive}: member {member!r} {why}; nothing of it is read\nget the archive from its source")


def check_size(archive: str, member: str, size: int, at_most: int | None) -> None:
    """Refuse a file of a kind that is never that large; without ``at_most`` one that does not fit into memory twice, as
    bytes and as what they say.

    Raises:
        IntegrityError: it is larger.
    """
    if at_most is not None and size > at_most:
        raise IntegrityError(f"{archive}: {member} has {size:,} bytes, expected at most {at_most:,}")
    if size > _memory() // 2:
        raise IntegrityError(f"{archive}: {member} has {size:,} bytes, more than half of the memory of this machine")


@cache
def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_range(archive: str, member: str, size: int, start: int, length: int) -> None:
    """Refuse a range that is not within the file.

    Raises:
        IntegrityError: it begins before the file, or ends after it.
    """
    if start < 0 or length < 0 or start + length > size:
        raise IntegrityError(f"{archive}: {member} has {size:,} bytes; {length:,} from {start:,} on are not there")
