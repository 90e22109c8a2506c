"""Entries of the registries that exist in these tests only, and a blueprint that uses them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest
from annotated_types import Ge, Lt

from zoogen.blueprint import loads
from zoogen.blueprint.records import Blueprint
from zoogen.core.errors import UserError
from zoogen.core.registry import ARCHITECTURES, OPTIMIZERS, TASKS


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        width: Units.
        act: The function
            between layers.
    """

    width: Annotated[int, Ge(1)] = 8
    act: Literal["relu", "tanh"] = "relu"
    rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    hidden: tuple[Annotated[int, Ge(1)], ...] = ()
    title: str | None = None

    def __post_init__(self) -> None:
        if self.width == 13:
            raise ValueError("width 13 is unlucky\ntake 12")


@dataclass(frozen=True)
class Needy:
    """Has a key without a default."""

    depth: int
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Data:
    val: Annotated[int, Ge(0)] = 10
    size: int = 100

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.val >= self.size:
            raise UserError(f"task 'test-data': val: {self.val} leaves no samples\nlower val")


@dataclass(frozen=True)
class Plain:
    lr: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Heavy:
    lr: Annotated[float, Ge(0)]
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, name, cls in (
        (ARCHITECTURES, "test-net", Net),
        (ARCHITECTURES, "test-needy", Needy),
        (TASKS, "test-data", Data),
        (OPTIMIZERS, "test-plain", Plain),
        (OPTIMIZERS, "test-heavy", Heavy),
    ):
        monkeypatch.setattr(cls, "registered_name", name, raising=False)
        monkeypatch.setitem(registry._entries, name, cls)


PARTS = {
    "zoo": "tiny",
    "version": "1",
    "task": "{name: test-data}",
    "architecture": "{name: test-net}",
    "training": "{epochs: 5, batch_size: 10, optimizer: {name: test-plain, lr: 0.1}}",
    "seeds": "{range: [0, 3]}",
}


@pytest.fixture
def write():
    """Text of a small blueprint; keyword arguments replace or add top-level keys, None leaves one out."""

    def text(**changes: str | None) -> str:
        parts = {**PARTS, **changes}
        lines = []
        for key, value in parts.items():
            if value is None:
                continue
            block = "\n" in value
            lines.append(
                f"{key}:\n{textwrap.indent(textwrap.dedent(value).strip(), '  ')}" if block else f"{key}: {value}"
            )
        return "\n".join(lines) + "\n"

    return text


@pytest.fixture
def read(write):
    """The blueprint of ``write``; ``overrides`` are ``--set`` options."""

    def blueprint(overrides: tuple[str, ...] = (), **changes: str | None) -> Blueprint:
        return loads(write(**changes), overrides=overrides)

    return blueprint
