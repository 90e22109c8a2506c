"""Decoded data on disk: written once, whole or not at all, and memory-mapped by every worker of a machine.

One folder per key: ``<array>.npy`` files and ``cache.json`` with their shapes and digests. Everything in it can be made
again from the source files, so a damaged folder is replaced, never repaired.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zoogen.core.canonical import canonical_json
from zoogen.core.errors import EnvironmentFault

_FORMAT = 1
_DTYPES = {"uint8", "int64"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """Arrays by name, and a digest of the files they came from where no published one exists."""

    arrays: Mapping[str, np.ndarray]
    content: str = ""


@dataclass(frozen=True)
class Cached:
    """Memory-mapped arrays with the digest of each (dtype, shape and bytes)."""

    arrays: Mapping[str, np.ndarray]
    digests: Mapping[str, str]
    content: str


def open_or_decode(folder: Path, decode: Callable[[], Decoded]) -> Cached:
    """Open the decoded data in ``folder``, and decode first where they are missing or damaged.

    Several processes may call this at once: one decodes, the others wait for it.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    if (cached := _open(folder)) is not None:
        return cached
    with _lock(folder):
        if (cached := _open(folder)) is not None:  # another process was faster
            return cached
        if folder.exists():
            _log.warning("decoded data in %s are damaged; decoding again", folder)
        _remove_leftovers(folder)
        decoded = decode()
        with _writing(folder):
            _write(folder, decoded)
    cached = _open(folder)
    if cached is None:
        raise EnvironmentFault(f"what was just written to {folder} reads back differently; check this disk")
    return cached


def array_digest(array: np.ndarray) -> str:
    """Digest of dtype, shape and bytes (C order, little endian)."""
    contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    state = hashlib.blake2b(canonical_json([array.dtype.name, list(array.shape)]), digest_size=16)
    state.update(contiguous.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _open(folder: Path) -> Cached | None:
    """The cached arrays if all of them are there with the digests they were written with."""
    try:
        head: Any = json.loads((folder / "cache.json").read_bytes())
        if head["format"] != _FORMAT:
            return None
        arrays = {}
        for name, digest_written in head["digests"].items():
            # Copy-on-write: torch wants writable memory, and a stray write changes no other process's data.
            array = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            if array.dtype.name not in _DTYPES or array_digest(array) != digest_written:
                return None
            arrays[name] = array
        return Cached(arrays, head["digests"], head["content"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _write(folder: Path, decoded: Decoded) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    for name, array in decoded.arrays.items():
        with (temporary / f"{name}.npy").open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
            _sync(stream)
    digests = {name: array_digest(array) for name, array in decoded.arrays.items()}
    with (temporary / "cache.json").open("wb") as stream:
        stream.write(canonical_json({"format": _FORMAT, "digests": digests, "content": decoded.content}))
        _sync(stream)
    temporary.chmod(0o755)  # mkdtemp's 0700 would shut out the other users of a shared cache
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed decoder left under a temporary name; the lock is ours, so nobody writes there."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = folder.with_name(f"{folder.name}.lock").open("w")
    with stream:
        # The system drops the lock when its holder dies; the file stays, since removing it would race.
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write decoded data to {folder}: {error}; free some space, or set ZOOGEN_CACHE to another folder"
        ) from error
