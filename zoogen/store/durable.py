"""Files that exist whole or not at all: temporary name, sync, rename; and what to say when the disk says no."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoogen.core.errors import EnvironmentFault, IntegrityError
from zoogen.core.regular import open_regular, read_regular
from zoogen.core.words import in_bytes

TEMPORARY = ".tmp-"

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_+-]{0,127}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LEAVE = {errno.EACCES, errno.EPERM, errno.EROFS}


def checked_name(kind: str, name: str) -> str:
    """``name``, if it can stand as one part of a path (letters, digits, ``_+-``): no dots, no slashes, no surprises.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{kind} {name!r} cannot name a file: use up to 128 letters, digits, '_', '+' and '-'")
    return name


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step that survives a power cut.

    Raises:
        EnvironmentFault: the disk is full or may not be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with disk_faults(str(path), path.parent, len(data)):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def publish(temporary: Path, path: Path) -> None:
    """Give a complete, synced file its name; whoever opens ``path`` sees the old file or the new one."""
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Ask the disk to keep a file or a folder (its list of names)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; there the rename itself is synchronous.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, at_most: int) -> Any:
    """Parse a JSON file of at most ``at_most`` bytes.

    Raises:
        IntegrityError: not a regular file, too large, not UTF-8, not JSON or nested without end.
        FileNotFoundError: not there.
    """
    return parse_json(path, read_regular(path, at_most))


def parse_json(path: Path, data: bytes) -> Any:
    """The value in the bytes of a JSON file; ``path`` is for the message.

    Raises:
        IntegrityError: not UTF-8, not JSON or nested without end.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not readable as JSON ({error})") from error


@contextmanager
def disk_faults(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Turn errors of the disk into an ``EnvironmentFault`` that says what to do; other errors pass unchanged.

    Args:
        what: What is being written, for the message.
        folder: Where; its free space is reported.
        needed: Bytes being written, roughly.
    """
    try:
        yield
    except OSError as error:
        code = _errno_of(error)
        if code in _NO_ROOM:
            raise EnvironmentFault(
                f"no room to write {what}: it needs {in_bytes(needed)}, {_free(folder)}. What is on disk is valid: "
                f"make room and run the same command again, it resumes"
            ) from error
        if code in _NO_LEAVE:
            raise EnvironmentFault(
                f"may not write {what} ({os.strerror(code)}): check the owner and the permissions of {folder}"
            ) from error
        raise


def _errno_of(error: OSError) -> int | None:
    # HDF5 reports the cause of a failed write in its text only.
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if told else error.errno


def _free(folder: Path) -> str:
    try:
        return f"{in_bytes(shutil.disk_usage(folder).free)} are free in {folder}"
    except OSError:
        return f"in {folder}"
