"""Columns of a weight matrix by what they are: tensor names and roles, and how to read them in few pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from zoogen.core.errors import UserError, suggest
from zoogen.core.layout import Layout, TensorRole

# Columns that are not wanted are read along when they lie in so small a gap: one read costs more than 64 kB.
_GAP = 1 << 14


def positions(layout: Layout, wanted: str | Sequence[str] | None) -> np.ndarray | None:
    """int64 positions in a float32 row of the tensors asked for, in the order of the layout; None: all of the row.

    Args:
        layout: Of the row.
        wanted: Names of tensors, roles of tensors (``weight``, ``norm_scale``, ...), or a mix.

    Raises:
        UserError: a word is neither name nor role of a float32 tensor of this layout.
    """
    if wanted is None:
        return None
    words = [wanted] if isinstance(wanted, str) else list(wanted)
    entries = [e for e in layout.entries if e.dtype == "float32"]
    names = {e.name for e in entries} | layout.aliases.keys()
    for word in words:
        if word not in names and word not in get_args(TensorRole):
            raise UserError(
                f"no tensor or role {word!r} here\n{suggest(str(word), {*names, *(e.role for e in entries)})}"
            )
    asked = {layout.aliases.get(word, word) for word in words}
    found = [np.arange(e.offset, e.offset + e.size) for e in entries if e.name in asked or e.role in asked]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def pieces(found: np.ndarray | None) -> list[tuple[slice | None, np.ndarray | None]]:
    """What to read for some positions: (columns to read, positions within them), None for all."""
    if found is None:
        return [(None, None)]
    if not len(found):
        return []
    parts = np.split(found, np.flatnonzero(np.diff(found) > _GAP) + 1)
    return [(slice(int(p[0]), int(p[-1]) + 1), None if len(p) == p[-1] - p[0] + 1 else p - p[0]) for p in parts]
