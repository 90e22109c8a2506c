"""The tensors of a safetensors file, or their digests; read in blocks, so that digests need memory for one block."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zoogen.core.errors import IntegrityError
from zoogen.importers.containers.files import Files
from zoogen.importers.source import Unusable
from zoogen.importers.tensors.safetensors_header import Header, Placed

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 16 << 20


def read_tensors(files: Files, name: str, header: Header) -> dict[str, Tensor]:
    """All tensors of a file, as its bytes are.

    Raises:
        Unusable: the file is damaged, or has a tensor of a dtype that is not stored, or booleans that are none.
    """
    import torch

    try:
        data = files.read(name)  # whole, so that the checksum of an archive is looked at
    except IntegrityError as error:
        raise Unusable(str(error)) from error
    if len(data) != files.sizes[name]:
        raise Unusable("is no longer as it was listed")
    found = {}
    for label, tensor in header.tensors.items():
        if tensor.dtype is None:
            raise Unusable(f"holds {label}, which is {tensor.kind}; such tensors are not stored")
        dtype = getattr(torch, tensor.dtype)
        bits = _bits(data, tensor, dtype.itemsize)
        if dtype == torch.bool and bool((bits > 1).any()):
            raise Unusable(f"holds {label}, which is BOOL with bytes other than 0 and 1")
        found[label] = bits.view(dtype).reshape(tensor.shape)
    return found


def _bits(data: bytes, tensor: Placed, width: int) -> Tensor:
    """The bytes of a tensor, uint8 [size]; they stay where they are, and are never written to."""
    import torch

    if not tensor.size:
        return torch.empty(0, dtype=torch.uint8)
    if tensor.start % width:
        # Writers align tensors; not every processor reads numbers that are not.
        return torch.frombuffer(bytearray(data[tensor.start : tensor.start + tensor.size]), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=torch.uint8, count=tensor.size, offset=tensor.start)


def tensor_digests(files: Files, name: str, header: Header) -> dict[str, str]:
    """BLAKE2b of every tensor's dtype, shape and bytes, by name.

    Raises:
        Unusable: the file is damaged.
    """
    hashing = {label: _begun(t) for label, t in header.tensors.items()}
    ordered, first = list(header.tensors.items()), 0
    for place, block in _blocks(files, name, _start(header)):
        view, end = memoryview(block), place + len(block)
        while first < len(ordered) and (tensor := ordered[first][1]).start < end:
            last = tensor.start + tensor.size
            hashing[ordered[first][0]].update(view[max(tensor.start - place, 0) : last - place])
            if last > end:
                break  # goes on in the next block
            first += 1
    return {label: h.hexdigest() for label, h in hashing.items()}


def _begun(tensor: Placed) -> hashlib.blake2b:
    return hashlib.blake2b(json.dumps([tensor.kind, tensor.shape]).encode(), digest_size=16)


def _start(header: Header) -> int:
    return min(tensor.start for tensor in header.tensors.values())


def _blocks(files: Files, name: str, start: int) -> Iterator[tuple[int, bytes]]:
    """The file from ``start`` on: place and bytes."""
    end = files.sizes[name]
    try:
        while start < end:
            block = files.read_range(name, start, min(_BLOCK, end - start))
            yield start, block
            start += len(block)
    except IntegrityError as error:
        raise Unusable(str(error)) from error
