"""Mappings as fields of frozen dataclasses: hashable, never changed, and plain JSON when written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from zoogen.core.errors import UserError


class FrozenDict(dict[str, Any]):
    """A ``dict`` that refuses changes and has a hash; equal to a plain dict with the same items."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a FrozenDict cannot be changed; make a new one")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)  # pickle and copy would fill an empty dict item by item


def freeze(value: Any, where: str) -> Any:
    """A JSON value with mappings as ``FrozenDict`` and lists as tuples.

    Raises:
        UserError: something in ``value`` is not JSON (an object, a key that is no text, NaN); names it below ``where``.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{where}: the key {key!r} is no text; put it in quotes")
        return FrozenDict({key: freeze(item, f"{where}.{key}") for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item, f"{where}[{i}]") for i, item in enumerate(value))
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UserError(f"{where}: {value!r} is no finite number, text, true/false, null, list or mapping")


def thaw(value: Any) -> Any:
    """The inverse of ``freeze``: plain dicts and lists, as JSON gives them."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value
