"""Picture of twins beside their parents: a point per twin, a panel per arm, correlations in its legend."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.report.levels import show
from zoogen.report.style import DISTINCT, GRID, INK, SOFT, head, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2
_PANEL, _HEAD, _FOOT = 5.6, 1.45, 0.75  # inches


def scatter_picture(title: str, pairs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Draw ``numbers.pairs``; ``table`` has the correlations (``numbers.points`` at the last epoch)."""
    arms = list(dict.fromkeys(pairs["arm"]))
    columns = min(_COLUMNS, len(arms))
    rows = ceil(len(arms) / columns)
    height = _HEAD + rows * _PANEL + _FOOT
    figure = new_figure(16, height)
    head(figure, title, "A point per twin at its last epoch. Dashed: as good as its parent. r: Pearson, ρ: Spearman.")
    grid = figure.add_gridspec(
        rows, columns, left=0.065, right=0.86, bottom=_FOOT / height, top=1 - _HEAD / height, wspace=0.5, hspace=0.2
    )
    first: Axes | None = None
    for number, arm in enumerate(arms):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(grid[row, column], sharex=first, sharey=first)
        first = first or axes
        _panel(axes, pairs[pairs["arm"] == arm], table[table["arm"] == arm])
        axes.set_title(arm, loc="left", fontsize=15, color=INK, pad=8)
        if column == 0:
            axes.set_ylabel("twin's test accuracy")
        else:
            axes.tick_params(labelleft=False)
        if number + columns >= len(arms):
            axes.set_xlabel("parent's test accuracy")
    assert first is not None
    low = max(first.get_xlim()[0], first.get_ylim()[0])
    high = min(first.get_xlim()[1], first.get_ylim()[1])
    for axes in figure.axes:
        if low < high:
            axes.plot([low, high], [low, high], color=SOFT, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
    return figure


def _panel(axes: Axes, own: pd.DataFrame, points: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    points = points.sort_values("asked")
    handles: list[Any] = [Line2D([], [], linewidth=0)]
    labels = [f"{'':<4}{'r':>6}{'ρ':>6}"]
    for tone, point in zip(_tones(points["asked"].tolist()), points.to_dict("records"), strict=True):
        grows = point["asked"] != point["asked"]
        group = own[own["asked"].isna()] if grows else own[own["asked"] == point["asked"]]
        style: dict[str, Any] = {"color": tone, "linewidth": 0, "marker": "o", "markeredgewidth": 0}
        size = float(np.clip(60 / max(1, len(group)) ** 0.5, 3, 6))
        # As pixels in an SVG: thousands of points would be megabytes of text.
        axes.plot(group["parent.test_acc"], group["test_acc"], markersize=size, alpha=0.65, rasterized=True, **style)
        handles.append(Line2D([], [], markersize=8, **style))
        name = f"{point['sparsity']:.2f}" if grows else show(point["asked"])
        labels.append(f"{name:<4}{_number(point['pearson'])}{_number(point['spearman'])}")
    axes.legend(
        handles,
        labels,
        title="sparsity",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.02),
        frameon=False,
        prop={"family": "DejaVu Sans Mono", "size": 12},
        handletextpad=0.1,
        labelspacing=0.45,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(color=GRID, linewidth=1, zorder=0)
    axes.tick_params(length=0)


def _tones(asked: Sequence[float]) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if len(asked) == 1:
        return [DISTINCT[0]]
    return [to_hex(tone) for tone in colormaps["viridis"](np.linspace(0, 0.9, len(asked)))]


def _number(value: float) -> str:
    return f"{value:6.2f}" if np.isfinite(value) else f"{'-':>6}"
