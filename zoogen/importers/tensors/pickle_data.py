"""What a pickle becomes besides plain containers, numbers and texts; nothing of it can do anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LARGEST_KEY = 1 << 60


def is_key(value: Any) -> bool:
    """Whether a value can be hashed without harm: a text, None, or a number that is not so large that others have its
    hash (Python's are modulo 2^61 - 1, so that a pickle could give all its keys one).
    """
    if type(value) in (int, float):
        return -_LARGEST_KEY < value < _LARGEST_KEY
    return type(value) in (str, bool, type(None))


@dataclass(frozen=True, slots=True)
class Name:
    """A global of a pickle: its name, and nothing behind it."""

    text: str


class Inert:
    """An object of a class that is only known by name: it keeps what it was pickled with, and can do nothing."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields: dict[str, Any] = {}


class Ordered(dict[Any, Any]):
    """An ``OrderedDict``; what was pickled beside its items is left out."""

    __slots__ = ()


@dataclass(frozen=True)
class Meaning:
    """What a pickle may say. Each function raises ``Unusable`` for what is not admitted.

    Attributes:
        check: Whether a name may occur at all.
        call: The value of a name called with arguments.
        new: The object of a class without arguments.
        persistent: The value of a persistent id.
    """

    check: Callable[[str], None]
    call: Callable[[str, tuple[Any, ...]], Any]
    new: Callable[[str], Inert]
    persistent: Callable[[Any], Any]
