"""The files of a source, a folder or an archive, by their path inside it; nothing is ever unpacked to disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zoogen.core.errors import IntegrityError, UserError

_LONGEST_NAME = 4096


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

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file, by path with forward slashes."""
        ...

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """The whole file.

        Raises:
            IntegrityError: it is damaged, or larger than ``at_most``.
        """
        ...

    def close(self) -> None: ...


def open_files(path: Path, limits: Limits | None = None) -> Files:
    """The files of a folder, a zip or a tar (plain, gzip, bzip2, xz); every name is checked before anything is read.

    Raises:
        UserError: there is nothing at ``path``, or it is neither folder nor archive.
        IntegrityError: a member would leave the folder, is a link or a device, stands twice, or inflates beyond all
            measure.
    """
    from zoogen.importers.archives import TarFiles, ZipFiles, is_tar, is_zip

    limits = limits or Limits()
    if path.is_dir():
        return FolderFiles(path, limits)
    if not path.is_file():
        raise UserError(f"there is no folder or archive {path}\ngive the folder, zip or tar of a published zoo")
    if is_zip(path):
        return ZipFiles(path, limits)
    if is_tar(path):
        return TarFiles(path, limits)
    raise UserError(f"{path} is neither a folder nor a zip or tar archive that can be read")


class FolderFiles:
    """The regular files below a folder, by name. Links within it are left out: what they lead to is there anyway."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.name = path.resolve().name
        self._path = path
        self.sizes: dict[str, int] = {}
        root = path.resolve()
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted([*names, *folders]):
                place = Path(folder, name)
                relative = checked_path(place.relative_to(path).as_posix(), str(path))
                kind = place.lstat()
                if stat.S_ISLNK(kind.st_mode):
                    if not place.resolve().is_relative_to(root):
                        raise refused(str(path), relative, "is a link that leads out of the folder")
                elif stat.S_ISREG(kind.st_mode):
                    self.sizes[relative] = kind.st_size
                elif not stat.S_ISDIR(kind.st_mode):
                    raise refused(str(path), relative, "is no regular file")
                if len(self.sizes) > limits.members:
                    raise IntegrityError(f"{path}: more than {limits.members:,} files")

    def read(self, name: str, at_most: int | None = None) -> bytes:
        if at_most is not None and self.sizes[name] > at_most:
            raise too_large(self.name, name, self.sizes[name], at_most)
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise IntegrityError(f"{self._path / name}: not readable ({error.strerror})") from error

    def close(self) -> None: ...


def checked_path(name: str, archive: str) -> str:
    """A member's name as a relative path without ``.``.

    Raises:
        IntegrityError: it is absolute, leaves the folder, or has control characters or backslashes.
    """
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name):
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


def too_large(archive: str, member: str, size: int, at_most: int) -> IntegrityError:
    """The error for a file of a kind that is never that large."""
    return IntegrityError(f"{archive}: {member} has {size:,} bytes, expected at most {at_most:,}")
