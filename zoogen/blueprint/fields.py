"""The fields of a dataclass as blueprint keys: type, default and meaning; the type in words for messages and docs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types as at
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


@dataclasses.dataclass(frozen=True, eq=False)
class FieldSpec:
    """One key: its annotation is its check, ``default`` is ``MISSING`` where the key must be given."""

    name: str
    annotation: Any
    default: Any = MISSING
    doc: str = ""

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    @cached_property
    def words(self) -> str:
        return words(self.annotation)

    @cached_property
    def options(self) -> tuple[Any, ...]:
        """The values of a ``Literal`` (or union of them); empty for any other type."""
        return literal_options(self.annotation)


@cache
def fields_of(cls: type) -> Mapping[str, FieldSpec]:
    """The keys that a dataclass takes, in its order; meanings come from the ``Attributes`` of its docstring."""
    hints = get_type_hints(cls, include_extras=True)
    docs = attribute_docs(cls)
    found = {}
    for field in dataclasses.fields(cls):
        if not field.init or not field.metadata.get("blueprint", True):
            continue
        default = MISSING if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[field.name] = FieldSpec(field.name, hints[field.name], default, docs.get(field.name, ""))
    return found


def attribute_docs(cls: type) -> dict[str, str]:
    """Field name -> text, from Google-style ``Attributes:`` sections, the nearest base class first."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, found, section = text.partition("Attributes:\n")
        if not found:
            continue
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?= {4}\S)", "\n" + section):
            names, colon, meaning = entry.strip().partition(":")
            if colon:
                for name in names.split(","):
                    docs[name.strip()] = " ".join(meaning.split())
    return docs


def summary(cls: type) -> str:
    """The docstring without its ``Attributes`` section; empty where the dataclass has none of its own."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    if text.startswith(f"{cls.__name__}("):  # what dataclasses write where there is no docstring
        return ""
    return re.sub(r"\n*Attributes:\n(?:(?: +.*)?(?:\n|$))*", "\n\n", text).strip()


def literal_options(annotation: Any) -> tuple[Any, ...]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return args
    if origin is Annotated:
        return literal_options(args[0])
    if origin in (Union, types.UnionType):
        parts = [literal_options(arg) for arg in args]
        return tuple(option for part in parts for option in part) if all(parts) else ()
    return ()


def words(annotation: Any) -> str:
    """The type for readers: ``a whole number >= 1``, ``one of relu, tanh``."""
    options = literal_options(annotation)
    if options:
        return ("one of " if len(options) > 1 else "") + ", ".join(map(str, options))
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join(filter(None, [words(args[0]), _limits(_flat(args[1:]))]))
    if origin in (Union, types.UnionType):
        return " or ".join(words(arg) for arg in args)
    if origin in (tuple, list, set, frozenset):
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            return "a list of " + ", ".join(words(arg) for arg in args)
        return f"a list (each {words(args[0])})" if args else "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return simple.get(
        annotation, "any value" if annotation is Any else getattr(annotation, "__name__", str(annotation))
    )


def _flat(metadata: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found += _flat(item.metadata)
        elif isinstance(item, at.GroupedMetadata):
            found += _flat(item)
        else:
            found.append(item)
    return found


def _limits(metadata: list[Any]) -> str:
    parts = []
    for item in metadata:
        for kind, sign, value in (
            (at.Ge, ">=", "ge"),
            (at.Gt, ">", "gt"),
            (at.Le, "<=", "le"),
            (at.Lt, "<", "lt"),
        ):
            if isinstance(item, kind):
                parts.append(f"{sign} {getattr(item, value)}")
        if isinstance(item, at.MinLen) and item.min_length:
            parts.append(f"of length >= {item.min_length}")
        if isinstance(item, at.MaxLen):
            parts.append(f"of length <= {item.max_length}")
        if isinstance(item, at.MultipleOf):
            parts.append(f"a multiple of {item.multiple_of}")
        if getattr(item, "pattern", None):
            parts.append(f"of the form {item.pattern}")
    return " and ".join(parts)
