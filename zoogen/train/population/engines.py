"""The engines by name: what makes one for a kind of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from zoogen.core.contracts import TaskData
from zoogen.core.records import Job
from zoogen.train.population.engine import Engine, Unsupported


@dataclass(frozen=True)
class Wanted:
    """What an engine is made of.

    Attributes:
        example: One of the models.
        data: The task, loaded.
        device: Where.
        cache: Folder of what can be made again.
        threads: Cores.
        variants: What to choose inside the engine; what is not named is its own choice.
        models: At once, to choose for.
    """

    example: Job
    data: TaskData
    device: torch.device
    cache: Path
    threads: int
    variants: Mapping[str, str]
    models: int


def _native(wanted: Wanted) -> Engine:
    if wanted.variants:
        raise Unsupported(f"it has no choice of {', '.join(sorted(wanted.variants))}")
    from zoogen.train.population.native.engine import NativeEngine

    return NativeEngine(wanted.example, wanted.data, wanted.device, cache=wanted.cache, threads=wanted.threads)


def _stacked(wanted: Wanted) -> Engine:
    from zoogen.train.population.stacked.engine import StackedEngine

    return StackedEngine(
        wanted.example,
        wanted.data,
        wanted.device,
        variants=wanted.variants,
        cache=wanted.cache,
        models=wanted.models,
    )


ENGINES: dict[str, Callable[[Wanted], Engine]] = {"native": _native, "stacked": _stacked}
"""In the order they are tried; each raises ``Unsupported`` for what it cannot train."""


def make_engine(name: str, wanted: Wanted) -> Engine:
    """The engine of this name.

    Raises:
        Unsupported: it cannot train these models here, or this zoogen has no such engine.
    """
    if name not in ENGINES:
        raise Unsupported(f"this zoogen has no engine {name!r}")
    return ENGINES[name](wanted)
