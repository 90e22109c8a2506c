"""``plan.parquet`` of an imported zoo: a row per model, its settings by dotted key, and the record it came with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.blueprint.records import ModelSplit
from zoogen.build.imported_kin import Root, kin_columns
from zoogen.core.canonical import canonical_json, digest
from zoogen.core.registry import ARCHITECTURES
from zoogen.dataset.modules import WITHOUT_CODE
from zoogen.importers.records.settings import UNKNOWN_SEED
from zoogen.importers.relatives import Kin
from zoogen.importers.source import SourceModel
from zoogen.plan.table import model_split

if TYPE_CHECKING:
    import pandas as pd

VERSION = 3
"""Raised when the same source would give other models, settings or weights."""

_SETTINGS = ("architecture.", "training.", "task.", "source.config.")
_MOST_COLUMNS = 10_000


def import_plan(
    models: Sequence[SourceModel],
    ids: Mapping[str, str],
    roots: Mapping[str, Root],
    cohort_of: Mapping[str, str],
    task_id: str | None,
    kin: Mapping[str, Kin],
) -> pd.DataFrame:
    """One row per model.

    Args:
        models: In the order of the source.
        ids: Model id of every key.
        roots: What every key goes back to.
        cohort_of: model_id -> cohort, of those that are stored.
        task_id: Of the task that they were trained on; None: not known.
        kin: Relatives, by key, where the source compares its models; else empty.

    Returns:
        ``model_id``, ``split`` (the source's own, or by the hash of what it goes back to), ``cohort_id``,
        ``architecture_id``, ``task_id``, ``seed`` (-1: not recorded), ``source.key``, ``source.parent``,
        ``source.record`` (JSON), where some have a parent or were compared ``source.root``, where they were compared
        ``source.digest``, ``source.shared`` and ``source.family``, then every setting that ``setting_columns`` names.
    """
    import pandas as pd

    own = [ids[m.key] for m in models]
    hashed = model_split(np.array([roots[m.key].split_key for m in models], dtype="S32"), ModelSplit())
    sides = [m.split or side for m, side in zip(models, hashed, strict=True)]
    columns: dict[str, Any] = {
        "model_id": pd.array(own, dtype="str"),
        "split": pd.Categorical(sides, categories=["train", "val", "test"]),
        "cohort_id": pd.array([cohort_of.get(i) for i in own], dtype="str"),
        "architecture_id": pd.array([described_id(m) for m in models], dtype="str"),
        "task_id": pd.array([task_id] * len(models), dtype="str"),
        "seed": np.array([m.settings.get("seed", UNKNOWN_SEED) for m in models], np.int64),
        "source.key": pd.array([m.key for m in models], dtype="str"),
        "source.parent": pd.array([m.parent for m in models], dtype="str"),
        "source.record": pd.array([m.original for m in models], dtype="str"),
        **(
            {"source.root": pd.array([roots[m.key].id for m in models], dtype="str")}
            if kin or any(m.parent for m in models)
            else {}
        ),
        **kin_columns(models, kin),
    }
    names, _ = setting_columns(models)
    columns |= {name: _column([_setting(m, name) for m in models]) for name in names}
    return pd.DataFrame(columns)


def _setting(model: SourceModel, name: str) -> Any:
    """A setting; what a network is built with stands in its row also where only other models have recorded it."""
    value, argument = model.settings.get(name), name.removeprefix("architecture.")
    if value is None and model.network is not None and argument in model.network.architecture.per_model:
        return getattr(model.network.architecture, argument)
    return value


def setting_columns(models: Sequence[SourceModel]) -> tuple[list[str], int]:
    """Settings that have a column, sorted; and how many have none since ten thousand others are of more models. Those
    stand in the records only.
    """
    counts = Counter(name for m in models for name in m.settings if name.startswith(_SETTINGS))
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return sorted(ranked[:_MOST_COLUMNS]), max(0, len(ranked) - _MOST_COLUMNS)


def described(model: SourceModel) -> dict[str, Any]:
    """An architecture as ``zoo.json`` keeps it; the name of one that is none of ours says so."""
    if model.network is None:
        kind = model.settings.get("architecture.name", "a network")
        return {
            "name": f"{kind}{WITHOUT_CODE}",
            "input_shape": [],
            "outputs": 0,
            "layout": model.layout.layout_id,
        }
    architecture = model.network.architecture
    # What may differ within an entry stands in the models' own columns.
    defaults = {name: getattr(type(architecture), name) for name in sorted(architecture.per_model)}
    return {
        **ARCHITECTURES.describe(replace(architecture, **defaults)),
        "input_shape": list(model.network.input_shape),
        "outputs": model.network.outputs,
        "layout": model.layout.layout_id,
    }


def described_id(model: SourceModel) -> str:
    """The plan's column ``architecture_id``."""
    return digest(canonical_json(described(model)))


def import_id(kind: str, model: SourceModel) -> str:
    """The model id: digest of the kind of source, the key in it, settings, architecture, layout, record and content.

    Other models under the same names have other ids: their first checkpoint differs, or what was measured of them.
    """
    told = {"imported": kind, "version": VERSION, "key": model.key, "settings": dict(model.settings)}
    told |= {"record": digest(model.original.encode()), "content": model.content}
    return digest(canonical_json({**told, "architecture": described(model)}))


def import_factors(table: pd.DataFrame) -> list[str]:
    """Settings that differ between models, those apart that differ between any two (paths, say)."""
    found = []
    for name in table.columns:
        if name.startswith(_SETTINGS):
            count = table[name].nunique(dropna=False)
            if 1 < count < max(3, len(table)):
                found.append(name)
    return found


def _column(values: Sequence[Any]) -> Any:
    """Numbers and booleans where all present values are, text else; None is missing."""
    import pandas as pd

    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    if kinds == {int}:
        return pd.array(values, dtype="Int64")
    if kinds <= {int, float}:
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return pd.Categorical([None if v is None else str(v) for v in values])
