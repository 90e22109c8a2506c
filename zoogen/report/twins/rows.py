"""Finished twins as rows of one table: each stored state beside its parent's, and the arm that it belongs to.

An arm is a method with its settings; within it twins differ in the sparsity that was asked for. Where none was asked
for, because the method finds its own (variational dropout), the stored epochs take its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoogen.core.errors import UserError
from zoogen.dataset.twins import METHOD, Twins, origin_of
from zoogen.report.levels import show

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset import Zoo

ASKED = "training.sparsify.sparsity"
_SETTINGS = "training.sparsify."
_EPOCHS = "training.epochs"
_NEEDED = ("test_acc", "parent.test_acc", "sparsity", "layer_sparsity", "agreement", "kappa")


@dataclass(frozen=True)
class TwinRows:
    """What a report on twins is made of.

    Attributes:
        states: Of every trained twin the last state, or all of them where no sparsity was asked for. Columns are those
            of ``Zoo.with_parent`` and ``arm`` (its label), ``asked`` (sparsity, NaN: none), ``grows`` (none was asked
            for), ``last``, ``layout`` (which of ``layers``).
        arms: Label -> name of its method, in the order to show them.
        layers: Names of the prunable tensors, as ``layer_sparsity`` counts them, of every layout that occurs.
        counts: Folder's name of each twin zoo -> number of its twins by status.
    """

    states: pd.DataFrame
    arms: Mapping[str, str]
    layers: Sequence[tuple[str, ...]]
    counts: Mapping[str, Mapping[str, int]]


def read_rows(zoo: Zoo, twins: Twins) -> TwinRows:
    """The finished twins of a zoo.

    Raises:
        UserError: ``zoo`` holds twins itself, there are no twins of it, or none is finished; or two of the zoos hold
            the same ones.
        IntegrityError: a table or a manifest is damaged.
    """
    import pandas as pd

    if origin := origin_of(zoo):
        raise UserError(f"{zoo.path} holds twins itself, of zoo {origin}\ngive that zoo, and {zoo.path} as its twins")
    if not twins:
        raise UserError(
            f"no folder beside {zoo.path} holds twins of it\n"
            f"name their folders, or make some: zoogen sparsify {zoo.path} --method magnitude --sparsity 0.5,0.9"
        )
    layers: list[tuple[str, ...]] = []
    tables = [_states(twin, number, layers) for number, twin in enumerate(twins)]
    names = _folders(twins)
    counts = {names[n]: dict(Counter(twin.models["status"].tolist())) for n, twin in enumerate(twins)}
    states = pd.concat([t for t in tables if len(t)] or tables, ignore_index=True)
    if not len(states):
        planned = sum(sum(statuses.values()) for statuses in counts.values())
        raise UserError(
            f"none of the {planned:,} twins of {zoo.path} is finished: {', '.join(names)}\n"
            "the `zoogen sparsify` that made them goes on where it was"
        )
    if missing := [name for name in _NEEDED if name not in states]:
        raise UserError(
            f"the twins of {zoo.path} lack the columns {', '.join(missing)}, so there is nothing to compare"
        )
    _refuse_copies(states, names)
    states, arms = _with_arms(states, names)
    return TwinRows(states, arms, layers, counts)


def _states(twin: Zoo, number: int, layers: list[tuple[str, ...]]) -> pd.DataFrame:
    settings = [c for c in twin.tables.models.columns if c.startswith(_SETTINGS) and c != METHOD]
    chosen = twin.select("status == 'trained'")
    table = chosen.with_parent(*settings, _EPOCHS, "architecture_id")
    last = twin.tables.last_epoch[twin.tables.model_of[chosen.rows]]
    asked = table[ASKED].astype(float) if ASKED in table else float("nan")
    table = table.assign(number=number, asked=asked, last=table["epoch"].to_numpy() == last)
    table = table.assign(grows=table["asked"].isna())
    table = table[table["last"] | table["grows"]]
    place = {name: _layout(twin, str(name), layers) for name in table["architecture_id"].unique()}
    return table.assign(layout=table["architecture_id"].astype("str").map(place))


def _layout(twin: Zoo, architecture_id: str, layers: list[tuple[str, ...]]) -> int:
    """Number of an architecture's names of layers in ``layers``, which they are added to."""
    names = tuple(e.name for e in twin.layout(twin.architecture(architecture_id)["layout"]).prunable)
    if names not in layers:
        layers.append(names)
    return layers.index(names)


def _folders(twins: Twins) -> list[str]:
    """Names of the twins' folders, numbered where several are alike."""
    names = [twin.path.resolve().name for twin in twins]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _refuse_copies(states: pd.DataFrame, names: Sequence[str]) -> None:
    copies = states[states.duplicated(["model_id", "epoch"], keep=False)]
    if len(copies):
        where = [names[number] for number in copies["number"].unique()]
        raise UserError(f"the same twins lie in several folders: {', '.join(where)}\ngive one of them")


def _with_arms(states: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    keys = [c for c in states.columns if c.startswith(_SETTINGS) and c != ASKED]
    keys = ["method", *keys, _EPOCHS]
    arm = states.groupby(keys, dropna=False, observed=True, sort=False).ngroup()
    if states.assign(arm=arm).duplicated(["arm", "asked", "epoch", "parent_id"]).any():
        # Several twins of one parent that differ in something else, its checkpoint say: each zoo is an arm of its own.
        keys.append("number")
        arm = states.groupby(keys, dropna=False, observed=True, sort=False).ngroup()
    firsts = states.assign(arm=arm)[[*keys, "arm"]].drop_duplicates("arm").set_index("arm")
    labels = {number: _label(row, firsts, names) for number, row in firsts.iterrows()}
    ordered = sorted(labels.values())
    methods = {labels[number]: str(row["method"]) for number, row in firsts.iterrows()}
    return states.assign(arm=arm.map(labels)), {label: methods[label] for label in ordered}


def _label(row: pd.Series, firsts: pd.DataFrame, names: Sequence[str]) -> str:
    """The method, and the settings by which arms of this method differ."""
    alike = firsts[firsts["method"] == row["method"]]
    differing = [key for key in firsts.columns[1:] if alike[key].nunique(dropna=False) > 1]
    return ", ".join([str(row["method"]), *(_setting(key, row[key], names) for key in differing)])


def _setting(key: str, value: Any, names: Sequence[str]) -> str:
    name = key.rpartition(".")[2].replace("_", " ")
    if key == "number":
        return f"in {names[value]}"
    if key == _EPOCHS:
        return f"{show(value)} epochs"
    if value is None or value != value:
        return f"no {name}"
    return value if isinstance(value, str) else f"{name} {show(value)}"
