"""Who may write into a zoo: one builder at a time (a lock), and none that was replaced (a token).

A worker can outlive its killed driver by seconds. Each build draws a new token; writers compare theirs with the one in
``.work/token`` before they start and before they rename, so what a stale worker still holds never gets a name.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoogen.core.errors import Incomplete, UserError
from zoogen.core.regular import read_regular
from zoogen.store.durable import write_file


def work_folder(zoo: Path) -> Path:
    """``<zoo>/.work``: what only an unfinished build needs."""
    return zoo / ".work"


def new_token(zoo: Path) -> str:
    """Draw the token of this build and make it the only valid one; call it while holding the lock.

    Workers may write with ``<token>`` or ``<token>-<suffix>`` (one suffix per attempt at a cohort).
    """
    token = secrets.token_hex(8)
    work_folder(zoo).mkdir(parents=True, exist_ok=True)
    write_file(work_folder(zoo) / "token", token.encode())
    return token


def build_of(token: str) -> str:
    """The build's part of a worker's token."""
    return token.partition("-")[0]


def check_token(zoo: Path, token: str) -> None:
    """Stop a writer whose build was replaced by a newer one.

    Raises:
        Incomplete: the token is not the one in ``.work/token``.
    """
    try:
        current = read_regular(work_folder(zoo) / "token", 4096).decode(errors="replace")
    except FileNotFoundError:
        current = ""
    if build_of(token) != current:
        raise Incomplete(f"fenced: a newer build writes to {zoo}, so this worker of an older one (token {token}) stops")


@contextmanager
def build_lock(zoo: Path) -> Iterator[None]:
    """Hold the zoo for one builder; the system frees the lock when its process ends, however it ends.

    Raises:
        UserError: another process builds this zoo; the message names it.
    """
    work_folder(zoo).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work_folder(zoo) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{zoo} is being built by {_owner(os.read(descriptor, 4096))}. "
                f"Wait for it, stop it, or build into another folder"
            ) from None
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": time.strftime("%Y-%m-%d %H:%M:%S%z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(data: bytes) -> str:
    try:
        owner = json.loads(data)
        return f"process {owner['pid']} on {owner['host']} since {owner['start']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def builder_of(zoo: Path) -> str | None:
    """Who holds the zoo's lock now, in words; None when nobody does."""
    try:
        descriptor = os.open(work_folder(zoo) / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(os.read(descriptor, 4096))
    finally:
        os.close(descriptor)
    return None
