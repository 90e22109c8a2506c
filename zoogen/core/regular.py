"""Files of others: opened only where they are files, and read only so far.

A pipe or a device in a file's place, or a link to one, would be waited for, or be read without end.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from zoogen.core.errors import IntegrityError

_NO_FILE = {
    errno.ELOOP: "is a circle of links",
    errno.ENXIO: "is not a regular file",
    errno.ENOTDIR: "lies in no folder",
}


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened for reading, or what a link leads to where that is one.

    Raises:
        IntegrityError: it is a folder, a pipe, a device or a socket.
        FileNotFoundError: not there.
    """
    try:
        # Without O_NONBLOCK the open of a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise IntegrityError(f"{path}: {_NO_FILE[error.errno]}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise IntegrityError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, at_most: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        IntegrityError: not a regular file, or larger than ``at_most`` bytes.
        FileNotFoundError: not there.
    """
    with open_regular(path) as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise IntegrityError(f"{path}: more than the {at_most:,} bytes that are read")
    return data
