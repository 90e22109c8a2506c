"""Picture of the sparsity of every layer: a panel per arm, layers as rows, asked sparsities or epochs as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoogen.report.levels import show
from zoogen.report.style import INK, SOFT, head, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _LEFT, _RIGHT = 16.0, 0.06, 0.93
_ROWS = (0.24, 0.42, 4.2)  # inches: lowest and highest row of a layer; of the rows of a panel, where that allows it
_BETWEEN, _HEAD, _FOOT = 1.25, 0.85, 0.2  # inches: around a panel, above and below all of them
_MOST_NUMBERS = 30  # columns whose cells have room for a number
_LETTER = 0.125  # inches, of a layer's name


def layers_picture(title: str, layers: pd.DataFrame) -> Figure:
    """Draw ``numbers.layers`` as heat maps."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    panels = [(str(arm), _table(own)) for arm, own in layers.groupby("arm", sort=False)]
    most = max(len(names) for _, (names, _, _) in panels)
    row = min(_ROWS[1], max(_ROWS[0], _ROWS[2] / most))
    heights = [row * len(names) for _, (names, _, _) in panels]
    figure = new_figure(_WIDTH, _HEAD + sum(heights) + _BETWEEN * len(panels) + _FOOT)
    head(figure, title, "Median over models. Layers from the input at the top to the output.")
    longest = max(len(name) for _, (names, _, _) in panels for name in names)
    left = _LEFT + _LETTER * longest / _WIDTH
    colours, scale = colormaps["YlGnBu"], Normalize(0, 1)
    total = figure.get_figheight()
    bottom = total - _HEAD
    boxes = []
    for (arm, (names, columns, values)), height in zip(panels, heights, strict=True):
        bottom -= height + 0.5 * _BETWEEN
        boxes.append(figure.add_axes((left, bottom / total, _RIGHT - left, height / total)))
        bottom -= 0.5 * _BETWEEN
        mesh = boxes[-1].pcolormesh(values, cmap=colours, norm=scale, edgecolors="white", linewidth=1.5)
        epochs = bool(layers[layers["arm"] == arm]["asked"].isna().all())
        _frame(boxes[-1], arm, names, columns, "epoch" if epochs else "sparsity that was asked for")
        _numbers(boxes[-1], values)
    top = boxes[0].get_position().y1
    tall = min(4.0, sum(heights) + _BETWEEN * (len(panels) - 1)) / total
    bar = figure.colorbar(mesh, cax=figure.add_axes((_RIGHT + 0.015, top - tall, 0.012, tall)))
    bar.ax.spines[:].set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.set_title("sparsity", fontsize=13, color=SOFT, pad=8)
    return figure


def _table(own: pd.DataFrame) -> tuple[list[str], list[str], np.ndarray]:
    """Names of rows and of columns, and values [rows, columns] of one arm."""
    key = "epoch" if own["asked"].isna().all() else "asked"
    names = list(dict.fromkeys(own["layer"]))
    wide = own.pivot_table(index="layer", columns=key, values="sparsity", aggfunc="last").loc[names]
    return [n.removesuffix(".weight") for n in names], [show(c) for c in wide.columns.tolist()], wide.to_numpy()


def _frame(axes: Axes, arm: str, names: Sequence[str], columns: Sequence[str], label: str) -> None:
    step = max(1, -(-len(columns) // 40))
    axes.set_title(arm, loc="left", fontsize=15, color=INK, pad=7)
    axes.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step], fontsize=12)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=11)
    axes.set_xlabel(label, fontsize=13)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _numbers(axes: Axes, values: np.ndarray) -> None:
    if values.shape[1] > _MOST_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            tone = "white" if value > 0.55 else INK
            text = f"{value:.2f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10, color=tone)
