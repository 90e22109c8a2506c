"""What can go wrong, by who has to act; the command line turns each class into its exit code (design, section 8)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZoogenError(Exception):
    """A failure whose message says what, where and how to fix it; printed without a traceback."""

    exit_code = 1


class UserError(ZoogenError):
    """The user's mistake: a wrong value, name, path or combination."""

    exit_code = 2


class Incomplete(ZoogenError):
    """Stopped before the end; what is on disk is valid and the same command goes on."""

    exit_code = 3


class IntegrityError(ZoogenError):
    """Stored bytes are not what was sealed, or a file is hostile or of an unknown format."""

    exit_code = 4


class EnvironmentFault(ZoogenError):
    """The machine lacks something: disk, memory, a permission, the network, a library."""

    exit_code = 5


def suggest(wrong: str, known: Iterable[str]) -> str:
    """``known: a, b. Did you mean 'a'?`` for an unknown name; the second sentence only when one is close."""
    names = sorted(known)
    text = f"known: {', '.join(names)}" if names else "known: none"
    close = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.6)
    return f"{text}. Did you mean {close[0]!r}?" if close else text
