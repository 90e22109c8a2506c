"""What an import left out, in a few lines: reasons of one kind are counted together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zoogen.core.words import counted
from zoogen.importers.source import Skipped

_APART = 3
"""Up to so many different reasons of one kind have a line each."""

_LONGEST = 200
_BEGIN, _END = 8, 28
_PATH = re.compile(r"'[^']{40,}'|\S{40,}")


def summed_up(skipped: Sequence[Skipped]) -> list[str]:
    """A line for each reason, with how many there are.

    Of many that differ in files, lines and shapes the first is told; what differs in parentheses only is left out.
    """
    kinds: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in skipped:
        what = one.what if one.epoch is None else "checkpoint"
        said = one.reason.partition(" (")[0]
        kinds.setdefault((what, said.partition(":")[0]), {}).setdefault(said, []).append(one.reason)
    lines = []
    for (what, _), alike in kinds.items():
        if len(alike) <= _APART:
            for said, reasons in alike.items():
                lines.append(f"{counted(len(reasons), what)}: {_short(said if len(set(reasons)) > 1 else reasons[0])}")
        else:
            all_of_them, first = sum(map(len, alike.values())), next(iter(alike.values()))[0]
            lines.append(f"{counted(all_of_them, what)}: {_short(first)}; this is the first of them")
    return lines


def _short(reason: str) -> str:
    """The first line of a reason; where that is long, with its paths cut, and only then itself."""
    first, *rest = reason.splitlines() or [""]
    if len(first) > _LONGEST:
        first = _PATH.sub(lambda found: f"{found[0][:_BEGIN]}...{found[0][-_END:]}", first)
    return first if len(first) <= _LONGEST and not rest else f"{first[: _LONGEST - 4].rstrip()} ..."
