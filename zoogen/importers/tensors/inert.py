"""What pickled datasets of models may hold: tensors, plain containers, paths, and stand-ins for the known classes.

A tensor becomes the place of its numbers (``Placed``), which are read when they are asked for; a path becomes its text;
an object of a dataset's class becomes ``Inert``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoogen.importers.source import Unusable
from zoogen.importers.tensors.pickle_data import Inert, Meaning, Name, Ordered, is_key

# The published loaders pickle their own classes, whatever package they were installed in.
_CLASS = re.compile(r"(?:\w+\.){0,3}checkpoints_to_datasets\.(?:dataset_\w+\.\w*Dataset\w*|random_erasing\.\w+)")
_PATHS = re.compile(r"pathlib\.(?:_local\.)?(?:Pure)?(?:Posix|Windows)?Path")
# torch's storages -> dtype and bytes of an element.
_STORAGES = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
}
_MOST_DIMENSIONS = 16
_LONGEST_KEY = 32
_MOST_ELEMENTS = 1 << 48
_LONGEST_PATH = 4096
_MOST_ALIKE = 256

MARK = b"checkpoints_to_datasets"
"""Stands in every pickle of such a dataset, near its start."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in a file: the key of their record, dtype, bytes of an element, and how many there are."""

    key: str
    dtype: str
    width: int
    elements: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor: where its numbers begin (``offset``, in elements), and its shape and strides."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Admitted:
    """The meaning of one file's names; ``stores`` is what its tensors lie in, by key."""

    def __init__(self) -> None:
        self.stores: dict[str, Storage] = {}
        self._alike: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._calls: dict[str, Callable[[tuple[Any, ...]], Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "collections.OrderedDict": _ordered,
            "__builtin__.set": set_of,
            "builtins.set": set_of,
        }

    @property
    def meaning(self) -> Meaning:
        return Meaning(self._check, self._call, self._new, self._persistent)

    def _check(self, name: str) -> None:
        if name in self._calls or name in _STORAGES or _PATHS.fullmatch(name) or _CLASS.fullmatch(name):
            return
        raise Unusable(f"names {name:.100}, which is not among what is read")

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if _PATHS.fullmatch(name):
            return _path(arguments)
        if name not in self._calls:
            raise Unusable(f"calls {name}")
        return self._calls[name](arguments)

    def _new(self, name: str) -> Inert:
        if not _CLASS.fullmatch(name):
            raise Unusable(f"makes an object of {name}")
        return Inert(name)

    def _persistent(self, told: Any) -> Any:
        """A storage; or, in the old format, the class of a module, which stands there with its source text."""
        if type(told) is tuple and len(told) == 4 and told[0] == "module" and type(told[1]) is Name:
            return told[1]
        # The old format has a sixth part, for storages that are parts of others, which is None since torch 0.4.
        plain = type(told) is tuple and len(told) in (5, 6) and told[5:] in ((), (None,))
        if not plain or type(told[0]) is not str or told[0] != "storage":
            raise Unusable("has a persistent id that is not that of a storage")
        kind, key, _, elements = told[1:5]
        if type(kind) is not Name or kind.text not in _STORAGES:
            raise Unusable("has a storage of an unknown kind")
        digits = type(key) is str and key.isascii() and key.isdigit() and len(key) <= _LONGEST_KEY
        if not digits or str(int(key)) != key:  # 00 is another record than 0
            raise Unusable("has a storage whose key is no number")
        if type(elements) is not int or not 0 <= elements < _MOST_ELEMENTS:
            raise Unusable("has a storage of an impossible number of elements")
        dtype, width = _STORAGES[kind.text]
        storage = self.stores.setdefault(key, Storage(key, dtype, width, elements))
        if (storage.dtype, storage.elements) != (dtype, elements):
            raise Unusable(f"tells two different things of its storage {key}")
        return storage

    def _tensor(self, arguments: tuple[Any, ...]) -> Placed:
        if len(arguments) not in (6, 7):
            raise Unusable("rebuilds a tensor from other arguments than torch.save writes")
        storage, offset, shape, stride = arguments[:4]
        if type(storage) is not Storage or not _counts((offset,)) or not _counts(shape) or not _counts(stride):
            raise Unusable("rebuilds a tensor from something else than a storage, an offset, a shape and strides")
        if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
            raise Unusable("rebuilds a tensor whose shape and strides do not fit")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if 0 not in shape and last >= storage.elements:
            raise Unusable(f"has a tensor that lies beyond the end of its storage ({storage.elements:,} elements)")
        return Placed(storage, offset, self._shared(shape), self._shared(stride))

    def _shared(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """One tuple for all that are equal; of the first few only, since all could be made to have one hash."""
        if sizes not in self._alike and len(self._alike) >= _MOST_ALIKE:
            return sizes
        return self._alike.setdefault(sizes, sizes)


def _counts(values: Any) -> bool:
    return type(values) is tuple and all(type(n) is int and 0 <= n < _MOST_ELEMENTS for n in values)


def _parameter(arguments: tuple[Any, ...]) -> Placed:
    if len(arguments) != 3 or type(arguments[0]) is not Placed:
        raise Unusable("rebuilds a parameter from something else than a tensor")
    return arguments[0]


def _ordered(arguments: tuple[Any, ...]) -> Ordered:
    if arguments:
        raise Unusable("makes an OrderedDict of arguments, which torch.save does not")
    return Ordered()


def set_of(arguments: tuple[Any, ...]) -> set[Any]:
    """A set as it is pickled.

    Raises:
        Unusable: it is not made of one list of texts and numbers.
    """
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise Unusable("makes a set of something else than a list")
    if not all(map(is_key, arguments[0])):
        raise Unusable("makes a set of other things than texts and numbers up to 2^60")
    return set(arguments[0])


def _path(arguments: tuple[Any, ...]) -> str:
    if not all(type(part) is str for part in arguments):
        raise Unusable("makes a path of something else than texts")
    if sum(map(len, arguments)) + len(arguments) > _LONGEST_PATH:
        raise Unusable(f"makes a path of more than {_LONGEST_PATH:,} characters")
    first, *rest = arguments or ("",)
    return "/".join(([first.rstrip("/")] if first else []) + rest)
