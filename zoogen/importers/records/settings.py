"""Foreign records as settings under our keys; what has no key of ours keeps its own name below ``source.``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zoogen.core.registry import OPTIMIZERS

CONFIG, RESULT = "source.config.", "source.result."
UNKNOWN_SEED = -1
SHORT_NAMES = {
    "lr": "training.optimizer.lr",
    "weight_decay": "training.optimizer.weight_decay",
    "momentum": "training.optimizer.momentum",
    "optimizer": "training.optimizer.name",
    "batch_size": "training.batch_size",
    "epochs": "training.epochs",
    "activation": "architecture.activation",
    "dropout": "architecture.dropout",
    "init": "architecture.init",
}
"""What people call settings in tables of their own, and our keys."""
_OPTIMIZER = "training.optimizer."
_SECTIONS = ("architecture.", "training.", "task.")
_MOST_SETTINGS = 1_000
_LONGEST_TEXT = 10_000


def plain(value: Any) -> Any:
    """A value as a column can keep it: finite number, bool, text or None; lists and mappings as JSON text.

    Integers beyond 64 bits and floats that are not finite become text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()


def settings_of(record: Mapping[str, Any], names: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The record's values by our keys, sorted; None is left out. Of different values for one key the one that the
    record has under that very key is taken, else none.

    Args:
        record: As given; the first thousand keys are looked at.
        names: Their name -> our key, for those that have one; names that are dotted keys already stay.
        notes: Is told which keys have different values.
    """
    told: dict[str, dict[str, Any]] = {}
    for name in list(record)[:_MOST_SETTINGS]:
        value = plain(record[name])
        if value is not None:
            told.setdefault(names.get(name) or own_key(name), {})[name] = value
    found: dict[str, Any] = {}
    for key, values in told.items():
        first = next(iter(values.values()))
        if key in values or all(value == first for value in values.values()):
            found[key] = values.get(key, first)
        if any(value != first for value in values.values()):
            taken = "that of its own name" if key in values else "none of them"
            notes.append(f"has different values for {key}; {taken} is taken")
    seed = found.get("seed")
    if seed is not None and type(seed) is not int:
        found[f"{CONFIG}seed"] = found.pop("seed")
    return dict(sorted(found.items()))


def own_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which the optimizer has its own arguments only; others that are recorded beside it (momentum beside
    Adam) stand below ``source.config.optimizer.``
    """
    name = settings.get(f"{_OPTIMIZER}name")
    if name not in OPTIMIZERS.names():
        return dict(settings)
    own = {f"{_OPTIMIZER}{field.name}" for field in fields(OPTIMIZERS.get(str(name)))} | {f"{_OPTIMIZER}name"}
    found = {}
    for key, value in settings.items():
        foreign = key.startswith(_OPTIMIZER) and key not in own
        found[f"{CONFIG}optimizer.{key.removeprefix(_OPTIMIZER)}" if foreign else key] = value
    return dict(sorted(found.items()))


def own_key(name: str) -> str:
    """A setting's key: its own name where that is a dotted key, else below ``source.config.``"""
    if name == "seed" or (name.startswith(_SECTIONS) and re.fullmatch(r"[a-z][a-z0-9_.]*[a-z0-9]", name)):
        return name
    return CONFIG + column(name)


def column(name: str) -> str:
    """A name as part of a column's: ``optim::lr`` -> ``optim.lr``; letters, digits, dots, hyphens and ``_`` only."""
    dotted = name.replace("::", ".").replace("/", ".")
    return re.sub(r"[^0-9A-Za-z_.-]", "_", dotted)[:128]
