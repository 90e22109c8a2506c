"""Random blueprint values: functions of (digest of the cell they belong to, key, draw index), without replacement.

Adding a grid value, or more draws, changes no existing draw; no generator state is involved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from zoogen.blueprint.records import Draw, Factor
from zoogen.core.errors import UserError

_ATTEMPTS = 1000


def draw_values(cell: bytes, factors: Sequence[Factor], draws: int) -> list[tuple[Any, ...]]:
    """``draws`` distinct joint values of the drawn ``factors`` for the grid point whose identity digests to ``cell``.

    Raises:
        UserError: the options are too few for that many distinct draws.
    """
    found: dict[tuple[Any, ...], None] = {}
    for index in range(draws):
        for attempt in range(_ATTEMPTS):
            value = tuple(_value(f, _bits(cell, f.key, index, attempt)) for f in factors)
            if value not in found:
                found[value] = None
                break
        else:
            keys = ", ".join(f.key for f in factors)
            raise UserError(
                f"cannot draw {draws} distinct values of {keys}: only {len(found)} were found\n"
                f"lower `draws` to {len(found)} or widen the range"
            )
    return list(found)


def draw_seeds(cell: bytes, count: int, below: int) -> list[int]:
    """``count`` distinct seeds in [0, below) for the cell; ``count <= below`` was checked with the blueprint."""
    found: dict[int, None] = {}
    for index in range(count):
        attempt = 0
        while (seed := _bits(cell, "seeds", index, attempt) % below) in found:
            attempt += 1
        found[seed] = None
    return list(found)


def _bits(cell: bytes, key: str, index: int, attempt: int) -> int:
    data = b"%s/%s/%d/%d" % (cell, key.encode(), index, attempt)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _value(factor: Factor, bits: int) -> Any:
    draw = factor.draw
    assert isinstance(draw, Draw)
    if draw.kind == "choice":
        return draw.bounds[bits % len(draw.bounds)]
    low, high = draw.bounds
    if draw.kind == "integers":
        return low + bits % (high - low)
    share = (bits >> 11) * 2.0**-53
    if draw.kind == "uniform":
        value = low + share * (high - low)
    else:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    # Six digits: exp and log differ in their last bit between C libraries, and ids hang on the value.
    return float(f"{value:.6g}")
