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


_MOST_KNOWN = 24


def suggest(wrong: str, known: Iterable[str]) -> str:
    """``known: a, b. Did you mean 'a'?`` for an unknown name; the second sentence only when one is close.

    A dotted name is close where its end is (``lr`` is the end of ``training.optimizer.lr``). Of very many names those
    most alike are told.
    """
    names = sorted(known)
    if not names:
        return "known: none"
    whole = {name.rpartition(".")[2]: name for name in reversed(names)} | {name: name for name in names}
    close = difflib.get_close_matches(str(wrong), whole, n=1, cutoff=0.6)
    told = names
    if len(names) > _MOST_KNOWN:
        alike = difflib.get_close_matches(str(wrong), whole, n=2 * _MOST_KNOWN, cutoff=0.0)
        told = list(dict.fromkeys(whole[name] for name in alike))[: _MOST_KNOWN // 2]
    others = f" and {len(names) - len(told)} others" if len(told) < len(names) else ""
    text = f"known: {', '.join(told)}{others}"
    return f"{text}. Did you mean {close[0]!r}?" if close else text
