"""The plan as a table: one row per cell with its id, every setting as a column, its seed and its model split."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.blueprint.records import ModelSplit
from zoogen.plan.cells import Group

if TYPE_CHECKING:
    import pandas as pd


def settings(group: Group) -> dict[str, Any]:
    """All settings of a group by dotted key, defaults included; the varying ones at their first value."""
    found: dict[str, Any] = {}
    for section in ("architecture", "task"):
        entry = getattr(group, section)
        found[f"{section}.name"] = entry.registered_name
        found |= {f"{section}.{f.name}": getattr(entry, f.name) for f in dataclasses.fields(entry)}
    for field in dataclasses.fields(group.training):
        value = getattr(group.training, field.name)
        if field.name in ("optimizer", "schedule", "sparsify"):
            if value is None:
                continue
            found[f"training.{field.name}.name"] = value.registered_name
            found |= {f"training.{field.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            found[f"training.{field.name}"] = value
    return found | {f"seeds.{stream}": seed for stream, seed in group.apart.items()}


def model_split(ids: np.ndarray, shares: ModelSplit) -> np.ndarray:
    """``train``, ``val`` or ``test`` per root ancestor id (S32 hex): extension moves none.

    Ids are digests already; their last 60 bits serve as the uniform hash.
    """
    tails = ids.view("S1").reshape(len(ids), 32)[:, 17:]
    weights = 16.0 ** -np.arange(1, 16)
    digits = np.frombuffer(tails.tobytes(), np.uint8).reshape(len(ids), 15)
    place = (np.where(digits >= 97, digits - 87, digits - 48) * weights).sum(axis=1)
    return np.where(place < shares.train, "train", np.where(place < shares.train + shares.val, "val", "test"))


def cell_table(groups: Sequence[Group], shares: ModelSplit) -> pd.DataFrame:
    """One row per cell: ``model_id``, ``split``, ``seed``, then every setting that some cell has, by dotted key."""
    import pandas as pd

    ids = np.concatenate([g.ids for g in groups])
    roots = np.concatenate([g.roots for g in groups])
    columns: dict[str, Any] = {
        "model_id": pd.array(ids.astype("U32"), dtype="str"),
        "split": pd.Categorical(_sides(groups, roots, shares), categories=["train", "val", "test"]),
        "group": np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups]),
        "seed": np.concatenate([g.seeds for g in groups]),
    }
    if any(g.parents for g in groups):
        parents = [own[0] for g in groups for own in g.parents]
        columns["parent_id"] = pd.array([p.model_id for p in parents], dtype="str")
        columns["parent_epoch"] = np.array([p.epoch for p in parents], dtype=np.int32)
    fixed = [settings(g) for g in groups]
    names = dict.fromkeys(key for f in fixed for key in f) | dict.fromkeys(v.key for g in groups for v in g.varying)
    for name in names:
        columns[name] = _column(name, groups, fixed)
    return pd.DataFrame(columns)


def _sides(groups: Sequence[Group], roots: np.ndarray, shares: ModelSplit) -> np.ndarray:
    parts, start = [], 0
    hashed = model_split(roots, shares)
    for group in groups:
        parts.append(hashed[start : start + len(group)] if group.sides is None else group.sides)
        start += len(group)
    return np.concatenate(parts)


def _column(name: str, groups: Sequence[Group], fixed: Sequence[dict[str, Any]]) -> Any:
    """One setting over all cells: numbers as float64/int64, booleans, the rest categorical; absent is missing."""
    import pandas as pd

    table: dict[tuple[type, Any], int] = {}
    parts = []
    for group, constants in zip(groups, fixed, strict=True):
        varying = next((v for v in group.varying if v.key == name), None)
        own = varying.values if varying else (constants.get(name),)
        places = [table.setdefault((type(p), p), len(table)) for p in map(_plain, own)]
        codes = np.array(places, dtype=np.int32)
        parts.append(codes[varying.codes] if varying else np.full(len(group), codes[0], dtype=np.int32))
    codes = np.concatenate(parts)
    values = [value for _, value in table]
    present = [v for v in values if v is not None]
    if present and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present):
        kind = np.int64 if all(isinstance(v, int) for v in values) else np.float64
        return np.array([np.nan if v is None else v for v in values], dtype=kind)[codes]
    if present and all(isinstance(v, bool) for v in present):
        return np.array(values, dtype=bool)[codes] if present == values else pd.array(values, dtype="boolean")[codes]
    texts = [None if v is None else str(v) for v in values]
    known = [t for t in dict.fromkeys(texts) if t is not None]
    place = {t: i for i, t in enumerate(known)}
    lookup = np.array([-1 if t is None else place[t] for t in texts], dtype=np.int32)
    return pd.Categorical.from_codes(lookup[codes], categories=pd.Index(known, dtype="str"))


def _plain(value: Any) -> Any:
    """A value with a hash: lists and mappings as JSON text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return json.dumps(value, default=lambda v: dict(v) if hasattr(v, "items") else list(v))
