"""Rows that are mostly zeros, so that they compress: what is not 0 moves to the left, and bits say where it was.

Deflate alone keeps 0.36 of the bytes of rows in which 80 % of the weights, anywhere, are 0, since it codes again and
again where they are; moved together the values take 0.20, and the bits 0.03.
"""

from __future__ import annotations

import numpy as np

VALUES, PLACES = "nonzero", "places"
"""Names of the two datasets that stand for ``weights``."""


def moved_left(rows: np.ndarray) -> np.ndarray:
    """Float32 [M, P] with the numbers that are not 0 first, in their order, then zeros."""
    filled = _filled(rows)
    found = np.zeros_like(rows)
    found[_first(filled)] = rows[filled]
    return found


def places(rows: np.ndarray) -> np.ndarray:
    """Which numbers of float32 [M, P] are not 0, as bits: uint8 [M, ceil(P / 8)]."""
    return np.packbits(_filled(rows), axis=1)


def put_back(moved: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The rows, bit for bit, from ``moved_left`` and ``places``."""
    filled = np.unpackbits(bits, axis=1, count=moved.shape[1]).view(np.bool_)
    found = np.zeros_like(moved)
    found[filled] = moved[_first(filled)]
    return found


def _filled(rows: np.ndarray) -> np.ndarray:
    return rows.view(np.uint32) != 0  # -0.0 is not 0 here: every bit comes back


def _first(filled: np.ndarray) -> np.ndarray:
    return np.arange(filled.shape[1]) < filled.sum(axis=1)[:, None]
