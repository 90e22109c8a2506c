"""``<zoo>/programs/``: which program trains each kind of models, settled before the first of them is trained.

A file gets its name by a link, which fails where the name is taken: of several workers that choose at the same time the
first one's choice counts for all.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoogen.core.errors import IntegrityError
from zoogen.core.program import Program
from zoogen.store import FORMAT_VERSION
from zoogen.store.durable import TEMPORARY, checked_name, disk_faults, read_json, sync

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Pinned:
    """What a zoo keeps about one kind of models.

    Attributes:
        program: What trains them.
        kind: The kind, in words for a reader (``core.program.describe_kind``).
        wish: The options it was chosen under.
        provisional: It was not measured: it may be chosen anew while none of these models is in training.
    """

    program: Program
    kind: Mapping[str, Any]
    wish: Mapping[str, Any]
    provisional: bool


def pinned_file(zoo: Path, name: str) -> Path:
    """Where the program of a kind lies."""
    return zoo / "programs" / f"{checked_name('program', name)}.json"


def read_pinned(zoo: Path, name: str) -> Pinned | None:
    """The program of a kind, None where none is settled.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = pinned_file(zoo, name)
    try:
        told = read_json(path, at_most=_MOST_BYTES)
        if told["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {told['format_version']}")
        pinned = Pinned(Program.from_json(told["program"]), told["kind"], told["wish"], told["provisional"])
        if not isinstance(pinned.wish, dict) or not isinstance(pinned.provisional, bool):
            raise ValueError("wish or provisional has a wrong type")
    except FileNotFoundError:
        return None
    except (IntegrityError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error})\nput it back as it was; or, while no cohort is half trained, delete it: the "
            "program of these models is then chosen anew"
        ) from error
    return pinned


def pin(zoo: Path, name: str, pinned: Pinned) -> Pinned:
    """Settle the program of a kind; returns the settled one, which is another's where that came first.

    Raises:
        EnvironmentFault: the disk is full or may not be written.
        IntegrityError: the other's file is damaged.
    """
    path = pinned_file(zoo, name)
    told = {
        "format_version": FORMAT_VERSION,
        "program": pinned.program.to_json(),
        "kind": dict(pinned.kind),
        "wish": dict(pinned.wish),
        "provisional": pinned.provisional,
    }
    data = json.dumps(told, indent=1, allow_nan=False).encode() + b"\n"
    temporary = path.with_name(f"{TEMPORARY}{name}-{secrets.token_hex(4)}")
    with disk_faults(str(path), zoo, len(data)):
        path.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    return read_pinned(zoo, name) or pinned


def _link(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError:
        if not path.exists():  # a file system without links; here the later of two at the same moment counts
            temporary.replace(path)


def unpin(zoo: Path, name: str) -> None:
    """Forget the program of a kind; for a kind none of whose models is in training."""
    pinned_file(zoo, name).unlink(missing_ok=True)
