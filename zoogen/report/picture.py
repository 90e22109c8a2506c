"""Test accuracy over epochs, one thin line per model, coloured by the setting that matters most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.errors import UserError
from zoogen.report.levels import Levels, explained, levels, titles
from zoogen.report.style import DISTINCT, GRID, INK, SOFT, STYLE, new_figure, save

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zoogen.dataset import Zoo

_FORMATS = (".png", ".svg", ".pdf")
_MOST_COLOURS, _MOST_PANELS = 6, 6
_MOST_LINES = 400  # of single models in a panel: more would be one grey area


@dataclass(frozen=True)
class Curves:
    """Accuracies in plain arrays, sorted by model and epoch.

    Attributes:
        model: int64 [states], the model of each state, counted from 0.
        epoch: int64 [states].
        accuracy: float64 [states], in [0, 1].
        diverged: bool [models].
    """

    model: np.ndarray
    epoch: np.ndarray
    accuracy: np.ndarray
    diverged: np.ndarray


def trajectories_picture(zoo: Zoo, path: Path) -> None:
    """Draw every model's test accuracy over epochs, at 1600 x 900 pixels for a PNG.

    Thick lines are medians over models. The colour is the factor that explains most of the final accuracy's variance,
    the panels are the one that adds most to it.

    Args:
        zoo: Has at least one stored state.
        path: Ends in .png, .svg or .pdf.

    Raises:
        UserError: nothing is stored yet, or the picture has another ending.
        EnvironmentFault: the file cannot be written.
    """
    from matplotlib import rc_context

    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"cannot draw {path.name!r}: pictures end in {', '.join(_FORMATS)}")
    curves, models = _curves(zoo)
    colour, panel = choose_factors(models[[f for f in zoo.factors if f in models]], _final(curves))
    with rc_context(STYLE):
        figure = new_figure(16, 9)
        _draw(figure, zoo, curves, models, colour, panel)
        save(figure, path)


def choose_factors(settings: pd.DataFrame, final: np.ndarray) -> tuple[str | None, str | None]:
    """The column that explains most of the final accuracy, and the one that adds most to it (None: there is none)."""
    known = np.isfinite(final)
    codes = {key: levels(settings[key], _MOST_COLOURS).codes[known] for key in settings.columns}
    codes = {key: own for key, own in codes.items() if len(np.unique(own)) > 1}
    if not codes:
        return None, None
    score = final[known]
    first = max(codes, key=lambda key: explained(score, codes[key]))
    with_first = {
        key: explained(score, codes[first] * (own.max() + 1) + own)
        for key, own in codes.items()
        if len(np.unique(np.stack([codes[first], own]), axis=1).T) > len(np.unique(codes[first]))
    }
    return first, max(with_first, key=lambda key: with_first[key], default=None)


def _curves(zoo: Zoo) -> tuple[Curves, pd.DataFrame]:
    tables = zoo.tables
    if not len(tables.epochs) or "test_acc" not in tables.state_names:
        imported = "; the records it was imported with name none (test_acc)"
        advice = imported if "imported" in zoo.manifest else " yet; `zoogen build` trains models"
        raise UserError(f"zoo {zoo.name!r} has no stored test accuracies to draw{advice}")
    stored = np.unique(tables.model_of)
    order = np.lexsort((tables.epochs, tables.model_of))
    models = zoo.models.take(stored).reset_index(drop=True)
    curves = Curves(
        np.searchsorted(stored, tables.model_of[order]),
        tables.epochs[order],
        tables.state_columns(["test_acc"])["test_acc"].to_numpy(float)[order],
        (models["status"] == "diverged").to_numpy(bool),
    )
    return curves, models


def _final(curves: Curves) -> np.ndarray:
    last = np.flatnonzero(np.diff(curves.model, append=-1))
    return curves.accuracy[last]


def _draw(
    figure: Figure, zoo: Zoo, curves: Curves, models: pd.DataFrame, colour: str | None, panel: str | None
) -> None:
    names = titles(zoo.factors)
    colours = (
        levels(models[colour], _MOST_COLOURS) if colour else Levels(("all models",), np.zeros(len(models), int), False)
    )
    panels = levels(models[panel], _MOST_PANELS) if panel else Levels(("",), np.zeros(len(models), int), False)
    palette = _palette(colours)
    columns = len(panels) if len(panels) <= 4 else ceil(len(panels) / 2)
    rows = ceil(len(panels) / columns)
    grid = figure.add_gridspec(rows, columns, left=0.06, right=0.985, bottom=0.085, top=0.82, wspace=0.08, hspace=0.2)
    ceiling = 1.0 if curves.accuracy[np.isfinite(curves.accuracy)].max(initial=0) > 0.5 else None
    first: Axes | None = None
    shown = 0
    for code, label in enumerate(panels.labels):
        row, column = divmod(code, columns)
        axes = figure.add_subplot(grid[row, column], sharex=first, sharey=first)
        first = first or axes
        shown += _panel(axes, curves, panels.codes == code, colours, palette)
        _frame(axes, curves, ceiling)
        _chance(axes, zoo, label=code == 0)
        if panel:
            axes.set_title(f"{names[panel]}  {label}", loc="left", fontsize=15, color=INK, pad=8)
        if column == 0:
            axes.set_ylabel("test accuracy (share correct)")
        else:
            axes.tick_params(labelleft=False)
        if code + columns >= len(panels):
            axes.set_xlabel("epoch")
        else:
            axes.tick_params(labelbottom=False)
    _head(figure, zoo, models, shown, names[colour] if colour else None, colours, palette, bool(curves.diverged.any()))


def _panel(axes: Axes, curves: Curves, here: np.ndarray, colours: Levels, palette: Sequence[str]) -> int:
    """Lines of the models of one panel; returns how many were drawn."""
    from matplotlib.collections import LineCollection

    models = np.flatnonzero(here)
    drawn = models[:: max(1, ceil(len(models) / _MOST_LINES))]
    starts = np.searchsorted(curves.model, np.arange(len(here) + 1))
    alpha = float(np.clip(20 / max(1, len(drawn)), 0.15, 0.6))
    for code, tone in enumerate(palette):
        own = drawn[colours.codes[drawn] == code]
        paths = [_points(curves, starts, m) for m in own]
        axes.add_collection(LineCollection(paths, colors=tone, linewidths=0.9, alpha=alpha, zorder=2))
        ends = [path[-1] for path, m in zip(paths, own, strict=True) if curves.diverged[m]]
        if ends:
            axes.plot(*zip(*ends, strict=True), "x", color=tone, markersize=6, markeredgewidth=1.6, zorder=6)
    for code, tone in enumerate(palette):
        members = here & (colours.codes == code)
        epochs, middle = _medians(curves, members)
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, middle, color="white", linewidth=5.5, zorder=4, solid_capstyle="round")
        axes.plot(epochs, middle, color=tone, linewidth=3, zorder=5, marker=marker, solid_capstyle="round")
    return len(drawn)


def _points(curves: Curves, starts: np.ndarray, model: int) -> np.ndarray:
    part = slice(starts[model], starts[model + 1])
    return np.stack([curves.epoch[part], curves.accuracy[part]], axis=1)


def _medians(curves: Curves, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = members[curves.model] & np.isfinite(curves.accuracy)
    epochs = np.unique(curves.epoch[inside])
    accuracy, at = curves.accuracy[inside], curves.epoch[inside]
    order = np.argsort(at, kind="stable")
    parts = np.split(accuracy[order], np.searchsorted(at[order], epochs[1:])) if len(epochs) else []
    return epochs, np.array([np.median(p) for p in parts])


def _frame(axes: Axes, curves: Curves, ceiling: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = int(curves.epoch.min()), int(curves.epoch.max())
    margin = 0.02 * max(1, high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(0, 1.0 if ceiling else None)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=1, zorder=0)
    axes.tick_params(length=0)


def _chance(axes: Axes, zoo: Zoo, label: bool) -> None:
    outputs = {entry["outputs"] for entry in zoo.manifest["tasks"].values()}
    if len(outputs) != 1:
        return
    chance = 1 / outputs.pop()
    axes.axhline(chance, color=SOFT, linewidth=1.2, linestyle=(0, (5, 4)), zorder=3)
    if label:
        axes.annotate(
            f"chance {chance:.3g}",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            color=SOFT,
            fontsize=12,
        )


def _head(
    figure: Figure,
    zoo: Zoo,
    models: pd.DataFrame,
    shown: int,
    colour: str | None,
    colours: Levels,
    palette: Sequence[str],
    crosses: bool,
) -> None:
    from matplotlib.lines import Line2D

    figure.text(0.06, 0.955, f"{zoo.name}: test accuracy of {len(models):,} models", fontsize=23, weight="bold")
    thin = "one model each" if shown == len(models) else f"a sample of {shown:,} models"
    said = f"Thin lines: {thin}. Thick lines: median." + (" Crosses: last finite state of a diverged model." * crosses)
    figure.text(0.06, 0.92, said, fontsize=14, color=SOFT)
    if colour is None:
        return
    letters = len(colour) + sum(len(label) + 6 for label in colours.labels)
    handles: list[Any] = [Line2D([], [], color=tone, linewidth=4, solid_capstyle="round") for tone in palette]
    figure.legend(
        [Line2D([], [], linewidth=0), *handles],
        [colour, *colours.labels],
        loc="upper left",
        bbox_to_anchor=(0.06 - 0.035 * min(1.0, 110 / letters), 0.905),  # its first entry has no line
        ncols=len(handles) + 1,
        frameon=False,
        fontsize=15 * min(1.0, 110 / letters),
        handlelength=1.4,
        columnspacing=1.6,
        borderaxespad=0,
    )


def _palette(cut: Levels) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if not cut.ordered:
        return list(DISTINCT[: len(cut)])
    numbers = len(cut) - (cut.labels[-1] == "none")
    scale = colormaps["viridis"](np.linspace(0.05, 0.8, max(1, numbers)))
    return [to_hex(tone) for tone in scale] + ["#8c959f"] * (len(cut) - numbers)
