"""Accuracies that cannot be accuracies keep the name that their source gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoogen.importers.records.settings import RESULT
from zoogen.importers.source import METRICS, Measured

_BOUNDS = {**{name: (0.0, 1.0) for name in METRICS if name.endswith("_acc")}, "ggap": (-1.0, 1.0)}


def plausible(measured: Measured) -> Measured:
    """The same, but where an accuracy is outside [0, 1] at some epoch (percent, say), all of that name are called
    ``source.result.<name>``: what they are is not guessed.
    """
    everything = [*measured.by_epoch.values(), *measured.others]
    wrong = [
        name
        for name, (low, high) in _BOUNDS.items()
        if any(value < low or value > high for told in everything if (value := told.get(name)) is not None)
    ]
    if not wrong:
        return measured

    def renamed(told: Mapping[str, float]) -> dict[str, float]:
        return {f"{RESULT}{name}" if name in wrong else name: value for name, value in told.items()}

    notes = [f"has {name} outside [{_BOUNDS[name][0]:g}, 1], so it is called {RESULT}{name}" for name in wrong]
    return replace(
        measured,
        by_epoch={epoch: renamed(told) for epoch, told in measured.by_epoch.items()},
        notes=(*measured.notes, *notes),
        others=tuple(map(renamed, measured.others)),
    )
