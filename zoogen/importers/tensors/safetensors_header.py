"""What a safetensors file holds, from its header alone; all of it is checked before a byte of tensors is read.

8 bytes: length of the header, little-endian; the header: JSON, ``{name: {dtype, shape, data_offsets}}`` and perhaps
``__metadata__`` of text to text; then the tensors, C order, little-endian, without gaps or overlaps
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from zoogen.core.errors import IntegrityError
from zoogen.importers.containers.files import Files
from zoogen.importers.source import Unusable

# Bits per element, and the name in torch where the store has that dtype.
_DTYPES: dict[str, tuple[int, str | None]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, None),
    "F8_E5M2FNUZ": (8, None),
    "F8_E8M0": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
    "C64": (64, None),
}
# The format admits 100 MB; what is published has a few, and JSON grows tenfold in memory.
_MOST_HEADER = 32 << 20
_MOST_TENSORS = 100_000
_MOST_DIMENSIONS = 32
_LONGEST_NAME = 512
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Placed:
    """A tensor in a file.

    Attributes:
        dtype: As torch calls it; None: one that is not stored.
        kind: The dtype as the header has it.
        shape: Tensor shape.
        start: Its first byte in the file.
        size: Its bytes.
    """

    dtype: str | None
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """All tensors of a file by name, in the order of their bytes; and what its writer noted."""

    tensors: Mapping[str, Placed]
    metadata: Mapping[str, str]


def read_header(files: Files, name: str) -> Header:
    """Read and check the header of one file.

    Raises:
        Unusable: this is no safetensors file, or its header is damaged or hostile.
    """
    size = files.sizes[name]
    if size < 8:
        raise Unusable(f"has {size} bytes, which is too short for a safetensors file")
    try:
        length = int.from_bytes(files.read_range(name, 0, 8), "little")
        if length > _MOST_HEADER:
            raise Unusable(f"has a header of {length:,} bytes; at most {_MOST_HEADER:,} are read")
        if length > size - 8:
            raise Unusable(f"has a header of {length:,} bytes, and {size - 8:,} bytes after its length")
        text = files.read_range(name, 8, length)
    except IntegrityError as error:
        raise Unusable(str(error)) from error
    return _parsed(text, 8 + length, size)


def _parsed(text: bytes, start: int, end: int) -> Header:
    if not text.startswith(b"{"):
        raise Unusable("has a header that is no JSON object")
    try:
        found = json.loads(text.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        told = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise Unusable(f"has a header that is not readable as JSON ({told})") from error
    metadata = found.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise Unusable(f"has a header whose {_METADATA} is not text by name")
    if not 0 < len(found) <= _MOST_TENSORS:
        raise Unusable(f"holds {len(found):,} tensors; from 1 to {_MOST_TENSORS:,} are read")
    tensors = {name: _placed(name, told, start, end) for name, told in found.items()}
    return Header(_tiling(tensors, start, end), metadata)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r:.60} stands twice")
    return found


def _placed(name: str, told: Any, start: int, end: int) -> Placed:
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise Unusable(f"has a tensor with the name {name!r:.60}")
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise Unusable(f"has {name!r} without dtype, shape and data_offsets, or with more")
    kind, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise Unusable(f"has {name!r} of the unknown dtype {kind!r:.30}")
    if not _counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise Unusable(f"has {name!r} of the shape {shape!r:.60}")
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise Unusable(f"has {name!r} at the offsets {offsets!r:.60}")
    first, last = start + offsets[0], start + offsets[1]
    if last > end:
        raise Unusable(f"has {name!r} at the offsets {offsets}, which lie beyond the end of the file")
    bits, dtype = _DTYPES[kind]
    if bits * prod(shape) != 8 * (last - first):
        raise Unusable(f"has {name!r} of {kind} {shape!r:.60} in {last - first:,} bytes")
    if prod(n for n in shape if n) >= 1 << 63:  # beside a zero, which makes it no bytes
        raise Unusable(f"has {name!r} of the shape {shape!r:.60}, whose steps are beyond 64 bits")
    return Placed(dtype, kind, tuple(shape), first, last - first)


def _counts(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0, none of which is beyond any file."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _tiling(tensors: dict[str, Placed], start: int, end: int) -> dict[str, Placed]:
    """The tensors in the order of their bytes, which must be all bytes from ``start`` to ``end``, each once."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size, item[0])))
    place = start
    for name, tensor in ordered.items():
        if tensor.start != place:
            what = "overlaps the tensor before it" if tensor.start < place else "comes after a hole"
            raise Unusable(f"has {name!r}, which {what}")
        place += tensor.size
    if place != end:
        raise Unusable(f"has {end - place:,} bytes that belong to no tensor")
    return ordered
