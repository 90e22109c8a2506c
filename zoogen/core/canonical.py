"""Canonical JSON and digests: the same value gives the same bytes on every machine, so ids can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` as UTF-8 JSON with sorted keys, no spaces and shortest round-trip floats.

    Integers and floats stay apart (``1`` and ``1.0`` differ), so a caller types its numbers first.

    Raises:
        ValueError: a float is NaN or infinite (JSON has no word for it).
        TypeError: a value has no JSON form.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
    ).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form: {value!r}")


def digest(data: bytes, *, size: int = 16) -> str:
    """BLAKE2b of ``data`` as hex; 16 bytes (32 hex digits) identify models, cohorts and shards."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()
