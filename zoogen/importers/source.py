"""What a source of foreign models gives: a record per model, and its checkpoints one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zoogen.core.layout import Layout
from zoogen.core.registry import Registry
from zoogen.importers.containers.files import Files

if TYPE_CHECKING:
    from torch import Tensor

SOURCES = Registry("kind of source", "zoogen.importers")
"""Kinds of sources by name: frozen dataclasses with one field, ``files``."""

METRICS = ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc")
"""Metrics that keep their name; others are called ``source.result.<name>``."""


class Unusable(Exception):
    """A file of a source that is left out; says why."""


@dataclass(frozen=True)
class Network:
    """A registered architecture with all it takes to build it: the metadata said so, and the tensors fit."""

    architecture: Any
    input_shape: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class Stored:
    """A checkpoint that is listed, not read yet: its epoch, its file and the file's size in bytes."""

    epoch: int
    file: str
    size: int


@dataclass(frozen=True)
class SourceModel:
    """One model of a source.

    Attributes:
        key: Unique in the source.
        settings: By dotted key of a blueprint (``architecture.*``, ``training.*``, ``task.*``, ``seed``); what has no
            such key is called ``source.config.<name>``.
        original: The record as the source has it, as JSON text.
        layout: Of its tensors.
        checkpoints: Ascending epochs.
        network: The architecture, where it is one of ours; else None, and ``layout`` has the source's own names.
        sparse: Its checkpoints come with a mask.
        parent: Key of the model that it was made of; what that is called, where the source does not have it.
        known_as: What models made of it, in this source or another, call it; "" where nothing does.
        split: ``train``, ``val`` or ``test``, where the source says so; None: by the hash of its id.
        notes: What was left out of its record, and why.
        content: Digest of the first checkpoint, where listing reads one; "" where it reads records or headers only.
    """

    key: str
    settings: Mapping[str, Any]
    original: str
    layout: Layout
    checkpoints: tuple[Stored, ...]
    network: Network | None = None
    sparse: bool = False
    parent: str | None = None
    known_as: str = ""
    split: str | None = None
    notes: tuple[str, ...] = ()
    content: str = ""


@dataclass(frozen=True)
class Skipped:
    """A model (epoch None) or one of its checkpoints that is not imported, or a part of its record that is not.

    Attributes:
        key, epoch: Which one.
        reason: Of a kind that stands before the first colon or parenthesis; what is told behind it may differ.
        what: Is counted under this name, where it is no model and no checkpoint.
    """

    key: str
    epoch: int | None
    reason: str
    what: str = "model"


@dataclass(frozen=True)
class State:
    """The tensors of one checkpoint by the names of the model's layout; ``kept``, of sparse twins, says which elements
    of weights are left (bool, same names and shapes).
    """

    tensors: Mapping[str, Tensor]
    kept: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Measured:
    """Metrics by epoch, by our names.

    Attributes:
        by_epoch: Also of epochs without a checkpoint.
        notes: What could not be read.
        others: Of which it is not known at what epoch they were measured.
    """

    by_epoch: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    others: tuple[Mapping[str, float], ...] = ()


class Source(Protocol):
    """An entry of ``SOURCES``. Nothing but one model's record and one state is in memory at a time."""

    registered_name: ClassVar[str]

    @property
    def files(self) -> Files: ...

    @staticmethod
    def recognises(files: Files) -> bool:
        """Whether the files look like this kind."""
        ...

    def models(self) -> Iterator[SourceModel | Skipped]:
        """Every model, always in the same order; those without a readable checkpoint as ``Skipped``."""
        ...

    def measured(self, model: SourceModel) -> Measured:
        """What was measured of a model."""
        ...

    def state(self, model: SourceModel, stored: Stored) -> State:
        """Read a checkpoint.

        Raises:
            Unusable: it is damaged, holds more than tensors, or its tensors are not those of ``model.layout``.
        """
        ...
