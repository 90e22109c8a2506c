"""Names a blueprint may use: frozen dataclasses whose fields are the blueprint's keys and whose types are their check.

Rooms fill the registries (``@ARCHITECTURES.register("mlp")``); other packages add to them through the entry-point
groups ``zoogen.architectures``, ``zoogen.tasks`` and so on, which are looked at only when a name is not known yet.
Names with a prefix (``power-grids/snbs``) live in ``zoogen.extras.<prefix>``, imported when first asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, TypeVar

from zoogen.core.errors import UserError, suggest
from zoogen.core.frozen import thaw

T = TypeVar("T", bound=type)


class Registry:
    """Registered dataclasses of one kind, by name."""

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self._room = room
        self._entries: dict[str, type] = {}
        self._filled = False

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: enter a frozen dataclass under ``name``.

        Once a zoo is published with it, a change of behaviour or of a default gets a new name (``mlp-2``).

        Raises:
            ValueError: ``name`` is taken.
            TypeError: the class is not a frozen dataclass.
        """

        def enter(cls: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._entries[name]} and {cls}")
            if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise TypeError(f"{self.kind} {name!r} needs @dataclass(frozen=True) on {cls}")
            cls.registered_name = name  # type: ignore[attr-defined]
            self._entries[name] = cls
            return cls

        return enter

    def names(self) -> list[str]:
        """Every registered name, sorted; the names of other packages' entry points included."""
        self._fill()
        return sorted({*self._entries, *(e.name for e in self._of_others)})

    def get(self, name: str) -> type:
        """The class registered under ``name``.

        Raises:
            UserError: the name is unknown; the message lists what is known.
        """
        self._fill()
        if name not in self._entries:
            self._import_for(name)
        try:
            return self._entries[name]
        except KeyError:
            raise UserError(f"unknown {self.kind} {name!r}\n{suggest(name, self.names())}") from None

    def make(self, name: str, arguments: dict[str, Any]) -> Any:
        """An instance from already validated arguments (the blueprint checks types and ranges)."""
        return self.get(name)(**arguments)

    def describe(self, entry: Any) -> dict[str, Any]:
        """``{"name": ..., **arguments that differ from their frozen default}``, JSON-able.

        Defaults are left out so that a field added later does not change the ids of models that never set it.
        """
        described: dict[str, Any] = {"name": entry.registered_name}
        for field in dataclasses.fields(entry):
            value = getattr(entry, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if value != default or type(value) is not type(default):
                described[field.name] = thaw(value)
        return described

    def restore(self, described: Mapping[str, Any]) -> Any:
        """The entry that ``describe`` wrote down, e.g. read back from ``zoo.json``.

        Raises:
            UserError: this zoogen does not know the name or one of its arguments.
        """
        arguments = dict(described)
        cls = self.get(arguments.pop("name"))
        known = {field.name for field in dataclasses.fields(cls)}
        for key in arguments:
            if key not in known:
                raise UserError(f"{self.kind} {described['name']!r} has no argument {key!r}\n{suggest(key, known)}")
        return cls(**{key: _tuples(value) for key, value in arguments.items()})

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True
            try:
                importlib.import_module(self._room)
            except BaseException:
                self._filled = False  # otherwise the next question would be answered from an empty registry
                raise

    def _import_for(self, name: str) -> None:
        prefix, slash, _ = name.partition("/")
        if slash and prefix.replace("-", "_").isidentifier():
            extra = f"zoogen.extras.{prefix.replace('-', '_')}"
            if find_spec("zoogen.extras") and find_spec(extra):
                importlib.import_module(extra)
        for entry in self._of_others:
            if entry.name == name:
                entry.load()

    @cached_property
    def _of_others(self) -> tuple[EntryPoint, ...]:
        """Entry points of installed packages; looking for them reads every package's metadata."""
        return tuple(entry_points(group=self._room))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


ARCHITECTURES = Registry("architecture", "zoogen.architectures")
TASKS = Registry("task", "zoogen.tasks")
OPTIMIZERS = Registry("optimizer", "zoogen.train.optimizers")
SCHEDULES = Registry("schedule", "zoogen.train.schedules")
SPARSIFIERS = Registry("sparsification method", "zoogen.train.sparsify.methods")
