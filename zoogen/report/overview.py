"""What a zoo holds, in numbers: for ``zoogen info``, as text and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.words import counted, in_bytes
from zoogen.dataset.twins import METHOD, origin_of
from zoogen.report.levels import levels

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset import Zoo

WIDTH = 100
_MOST_VALUES = 12
_STATUSES = ("trained", "diverged", "failed", "planned")


@dataclass(frozen=True)
class Score:
    """Final test accuracy of some models.

    Attributes:
        models: How many are planned.
        scored: How many of these have one.
        median, min, max: Of these.
    """

    models: int
    scored: int
    median: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True)
class TwinsOf:
    """What a twin zoo holds twins of.

    Attributes:
        name, version: Of the parent zoo.
        path: Where it was, seen from the twin zoo.
        methods: Number of twins by method.
        sparsity: Median over the twins with states, each at its last one; None without any.
    """

    name: str
    version: int
    path: str
    methods: dict[str, int]
    sparsity: float | None

    def __str__(self) -> str:
        methods = " and ".join(f"{name} ({counted(count, 'model')})" for name, count in self.methods.items())
        median = "" if self.sparsity is None else f"; median sparsity {self.sparsity:.3f}"
        return f"{self.name} version {self.version}, by {methods}{median}"


@dataclass(frozen=True)
class Summary:
    """A zoo in numbers.

    Attributes:
        name, version, description, path: Of the zoo.
        models: Planned models.
        by_status: Number of models: trained, diverged, failed, planned (not trained yet).
        states: Stored checkpoints.
        epochs: First and last stored epoch, and how many different ones; zeros without states.
        bytes_on_disk: Of all its files.
        weight_bytes: Of the stored float32 weights alone.
        architectures: Name, parameters and number of models of each.
        tasks: Name, sizes of the parts, outputs and number of models of each.
        split: Models on each side of the model split.
        accuracy: Of all models.
        factors: Dotted key -> value -> accuracy of the models with it; many values are put together as ranges.
        twins_of: Of a twin zoo, its parent; else None.
    """

    name: str
    version: int
    description: str
    path: str
    models: int
    by_status: dict[str, int]
    states: int
    epochs: tuple[int, int, int]
    bytes_on_disk: int
    weight_bytes: int
    architectures: tuple[dict[str, Any], ...]
    tasks: tuple[dict[str, Any], ...]
    split: dict[str, int]
    accuracy: Score
    factors: dict[str, dict[str, Score]]
    twins_of: TwinsOf | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what was not measured is null."""
        first, last, count = self.epochs
        return {**asdict(self), "epochs": {"first": first, "last": last, "count": count}}

    def __str__(self) -> str:
        """Plain text of at most 100 columns."""
        return "\n".join([*_head(self), "", *_scores(self)])


def summary(zoo: Zoo) -> Summary:
    """Count what a zoo holds; reads its tables, no weights.

    Raises:
        IntegrityError: a table or the manifest is damaged.
    """
    models, tables = zoo.models, zoo.tables
    score = models["test_acc"].to_numpy(float) if "test_acc" in models else np.full(len(models), np.nan)
    states = np.bincount(tables.model_of, minlength=len(models))
    architectures: dict[tuple[str, int], int] = {}
    weight_bytes = 0
    for name, rows in models.groupby("architecture_id", observed=True).indices.items():
        described = zoo.architecture(str(name))
        parameters = zoo.layout(described["layout"]).parameters
        weight_bytes += 4 * parameters * int(states[rows].sum())
        key = (described["name"], parameters)
        architectures[key] = architectures.get(key, 0) + len(rows)
    epochs = np.unique(tables.epochs)
    counts = models["status"].value_counts()
    return Summary(
        name=zoo.name,
        version=zoo.version,
        description=str(zoo.manifest.get("description", "")),
        path=str(zoo.path),
        models=len(models),
        by_status={status: int(counts.get(status, 0)) for status in _STATUSES},
        states=len(tables.epochs),
        epochs=(int(epochs[0]), int(epochs[-1]), len(epochs)) if len(epochs) else (0, 0, 0),
        bytes_on_disk=zoo.bytes_on_disk(),
        weight_bytes=weight_bytes,
        architectures=tuple(
            {"name": name, "parameters": parameters, "models": count}
            for (name, parameters), count in architectures.items()
        ),
        tasks=tuple(_tasks(zoo, models)),
        split={str(side): int(count) for side, count in models["split"].value_counts(sort=False).items()},
        accuracy=_score(score),
        factors={key: _by_value(models[key], score) for key in zoo.factors if key in models},
        twins_of=_twins_of(zoo, models),
    )


def _twins_of(zoo: Zoo, models: pd.DataFrame) -> TwinsOf | None:
    origin = origin_of(zoo)
    if origin is None:
        return None
    counts = {str(name): int(count) for name, count in models[METHOD].astype("str").value_counts().items()}
    known = models["sparsity"].dropna().to_numpy() if "sparsity" in models else np.empty(0)
    return TwinsOf(origin.name, origin.version, origin.path, counts, float(np.median(known)) if len(known) else None)


def _tasks(zoo: Zoo, models: pd.DataFrame) -> list[dict[str, Any]]:
    counts = models["task_id"].value_counts()
    found = []
    for name, entry in zoo.manifest["tasks"].items():
        train, val, test = entry["sizes"]
        sizes = {"train": train, "val": val, "test": test}
        count = int(counts.get(name, 0))
        found.append({"name": entry["name"], **sizes, "outputs": entry["outputs"], "models": count})
    return found


def _by_value(column: pd.Series, score: np.ndarray) -> dict[str, Score]:
    cut = levels(column, _MOST_VALUES)
    return {label: _score(score[cut.codes == code]) for code, label in enumerate(cut.labels)}


def _score(score: np.ndarray) -> Score:
    known = score[np.isfinite(score)]
    if not len(known):
        return Score(len(score), 0, None, None, None)
    return Score(len(score), len(known), float(np.median(known)), float(known.min()), float(known.max()))


def _head(found: Summary) -> list[str]:
    first, last, count = found.epochs
    statuses = ", ".join(f"{count:,} {status}" for status, count in found.by_status.items() if count)
    every = f"epochs {first} to {last}" if count == last - first + 1 else f"{count} epochs from {first} to {last}"
    disk = f"{in_bytes(found.bytes_on_disk)} on disk, of which {in_bytes(found.weight_bytes)} are float32 weights"
    lines = [f"{found.name} version {found.version}", *textwrap.wrap(found.description, WIDTH), ""]
    lines += _entry("path", found.path)
    if found.twins_of is not None:
        lines += _entry("twins of", str(found.twins_of))
    lines += _entry("models", f"{found.models:,}: {statuses or 'none'}")
    lines += _entry("model split", ", ".join(f"{count:,} {side}" for side, count in found.split.items()))
    lines += _entry("states", f"{found.states:,}; {every}" if found.states else "none yet")
    lines += _entry("size", disk)
    for entry in found.architectures:
        shown = f"{entry['name']} with {entry['parameters']:,} parameters ({counted(entry['models'], 'model')})"
        lines += _entry("architecture", shown)
    for entry in found.tasks:
        parts = f"{entry['train']:,} train, {entry['val']:,} validation, {entry['test']:,} test samples"
        models = counted(entry["models"], "model")
        lines += _entry("task", f"{entry['name']}: {parts}, {entry['outputs']:,} classes ({models})")
    return lines


def _entry(name: str, value: str) -> list[str]:
    return textwrap.wrap(value, WIDTH, initial_indent=f"{name:<14}", subsequent_indent=" " * 14) or [name]


def _scores(found: Summary) -> list[str]:
    lines = [f"{'final test accuracy':<64}{'models':>9}{'median':>9}{'min':>9}{'max':>9}"]
    lines.append(_line("all models", found.accuracy))
    for key, values in found.factors.items():
        lines.append(key)
        lines += [
            _line(f"  {textwrap.shorten(value, 60, placeholder='...')}", score) for value, score in values.items()
        ]
    return lines


def _line(label: str, score: Score) -> str:
    numbers = "".join(
        f"{value:9.3f}" if value is not None and isfinite(value) else f"{'-':>9}"
        for value in (score.median, score.min, score.max)
    )
    counted = f"{score.models:,}" if score.scored == score.models else f"{score.scored:,} of {score.models:,}"
    return f"{label:<{73 - max(9, len(counted))}}{counted:>9}{numbers}"
