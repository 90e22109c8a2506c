"""What pickles of checkpoints may name and call; looked at before torch reads them.

torch runs no foreign code when told so, but it still calls what makes gigabytes of a few bytes: ``bytearray(n)``, a
storage of n elements, a copy of a long list. Nothing that holds tensors, numbers and texts has use for these.
"""

from __future__ import annotations

import io
import re
from typing import Any

from zoogen.importers.source import Unusable
from zoogen.importers.tensors.inert import set_of
from zoogen.importers.tensors.pickle_data import Inert, Meaning, Name, Ordered, is_key
from zoogen.importers.tensors.pickle_machine import load_pickle

_REBUILDS = frozenset(
    f"torch._utils._rebuild_{what}"
    for what in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor")
) | {"torch._utils._rebuild_meta_tensor_no_storage"}
_SMALL = frozenset(("torch.Size", "torch.device", "torch.serialization._get_layout", "__builtin__.complex"))
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_CONTAINERS = frozenset(("collections.OrderedDict", "collections.Counter", "__builtin__.set", "builtins.set"))
_CALLED = _REBUILDS | _SMALL | _CONTAINERS | {_WITH_ATTRIBUTES}
# Arguments of calls: kinds of storages and of numbers, and what a tensor with attributes is.
_NAMED = re.compile(
    r"torch\.(?:storage\.)?\w+Storage|torch\.(?:b?float|complex|u?int|bool)\w*"
    r"|torch\.Tensor|torch\.nn\.parameter\.Parameter"
)
_OLD_PICKLES = 5  # magic number, version, system, objects, keys of storages


def check_checkpoint(data: bytes) -> None:
    """Read the pickles of a file without making tensors.

    Raises:
        Unusable: they are damaged, or torch would make more of them than the file has bytes for.
    """
    import torch

    names = _Names(len(data))
    if data.startswith(b"PK\x03\x04"):
        # The reader that torch.load takes: of two readers of zips, each can be shown another pickle.
        pickle = torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")
        load_pickle(io.BytesIO(pickle), len(pickle), names.meaning, len(pickle))
        return
    stream = io.BytesIO(data)
    for _ in range(_OLD_PICKLES):
        load_pickle(stream, len(data), names.meaning, len(data))


class _Names:
    """The meaning of one file's names: a call makes nothing but an empty container, or None."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._elements: dict[str, int] = {}

    @property
    def meaning(self) -> Meaning:
        return Meaning(_check, _call, _new, self._persistent)

    def _persistent(self, told: Any) -> None:
        """A storage; there cannot be more elements in all of them than the file has bytes."""
        plain = type(told) is tuple and len(told) in (5, 6) and type(told[0]) is str and told[0] == "storage"
        if not plain or type(told[2]) is not str or type(told[4]) is not int or told[4] < 0:
            raise Unusable("has a persistent id that is not that of a storage")
        known = self._elements.get(told[2], 0)
        self._elements[told[2]] = max(known, told[4])
        self._size -= self._elements[told[2]] - known
        if self._size < 0:
            raise Unusable("tells of more elements than the file has bytes for")


def _check(name: str) -> None:
    if name not in _CALLED and not _NAMED.fullmatch(name):
        raise Unusable(f"names {name:.100}, which is not among what is read")


def _new(name: str) -> Inert:
    raise Unusable(f"makes an object of {name}")


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    if name not in _CALLED:
        raise Unusable(f"calls {name}")
    if name == _WITH_ATTRIBUTES:
        called = arguments[0] if arguments else None
        if type(called) is not Name or called.text not in _REBUILDS:
            raise Unusable("rebuilds a tensor by something else than what rebuilds tensors")
    if name.endswith(".set"):
        return set_of(arguments)
    if name == "collections.Counter" and [type(one) for one in arguments] != [dict]:
        raise Unusable("makes a Counter of something else than a mapping")
    return _ordered(arguments) if name == "collections.OrderedDict" else None


def _ordered(arguments: tuple[Any, ...]) -> Ordered:
    """Python 2 gives one its items as a list of pairs."""
    if arguments and (len(arguments) > 1 or type(arguments[0]) is not list or not all(map(_is_item, arguments[0]))):
        raise Unusable("makes an OrderedDict of something else than items")
    return Ordered()


def _is_item(pair: Any) -> bool:
    return type(pair) is list and len(pair) == 2 and type(pair[0]) in (str, int) and is_key(pair[0])
