"""Pictures of scores over sparsity: a line per arm, medians over models, with the band of 5 to 95 % of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoogen.report.style import DISTINCT, GRID, INK, SOFT, head, legend_below_head, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def curves_picture(title: str, points: pd.DataFrame, scores: Mapping[str, str], parents: float | None = None) -> Figure:
    """Draw scores over sparsity, a panel each.

    Args:
        title: Headline.
        points: ``numbers.points``.
        scores: Column of ``points`` -> label of its axis.
        parents: The parents' median score, drawn as a line; None: no line.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(16, 9)
    said = "Lines: median over models. Bands: 5 to 95 % of them. Dots: a sparsity that was asked for"
    head(figure, title, said + (", or an epoch." if points["asked"].isna().any() else "."))
    arms = list(dict.fromkeys(points["arm"]))
    looks = {arm: _look(number) for number, arm in enumerate(arms)}
    handles = [Line2D([], [], linewidth=3.5, **look) for look in looks.values()]
    top = legend_below_head(figure, arms, handles)
    grid = figure.add_gridspec(1, len(scores), left=0.065, right=0.985, bottom=0.085, top=top - 0.025, wspace=0.13)
    for column, (score, label) in enumerate(scores.items()):
        axes = figure.add_subplot(grid[0, column])
        for arm, look in looks.items():
            own = points[points["arm"] == arm].sort_values(["asked", "epoch"])
            _draw(axes, own, score, look, band=0.13 if len(arms) <= 4 else 0.07)
        _frame(axes, label)
        if parents is not None:
            _parents(axes, parents)
    return figure


def _look(number: int) -> dict[str, Any]:
    """Colour and, once the colours are used up, dashes of an arm."""
    return {
        "color": DISTINCT[number % len(DISTINCT)],
        "linestyle": _DASHES[number // len(DISTINCT) % len(_DASHES)],
    }


def _draw(axes: Axes, own: pd.DataFrame, score: str, look: Mapping[str, Any], band: float) -> None:
    # A trajectory may turn back for an epoch; the band, which would overlap itself there, goes on from where it was.
    outermost = own[own["sparsity"] >= own["sparsity"].cummax()]
    sparsity, low, high = (outermost[name].to_numpy() for name in ("sparsity", f"{score}_p05", f"{score}_p95"))
    if len(outermost) == 1:
        axes.vlines(sparsity, low, high, color=look["color"], linewidth=8, alpha=0.25)
    axes.fill_between(sparsity, low, high, color=look["color"], alpha=band, linewidth=0, zorder=2)
    epochs = bool(own["asked"].isna().all())
    size = 4 if epochs else 7
    axes.plot(
        own["sparsity"].to_numpy(), own[score].to_numpy(), linewidth=2.6, marker="o", markersize=size, zorder=4, **look
    )
    if epochs:
        _last_epoch(axes, own.iloc[-1], score, look["color"])


def _last_epoch(axes: Axes, last: pd.Series, score: str, tone: str) -> None:
    left = last["sparsity"] > 0.85
    axes.annotate(
        f"epoch {last['epoch']}",
        (last["sparsity"], last[score]),
        xytext=(-5 if left else 7, -17),
        textcoords="offset points",
        ha="right" if left else "left",
        color=tone,
        fontsize=12,
        zorder=6,
        path_effects=_halo(),
    )


def _halo() -> list[Any]:
    """What keeps text readable on lines and bands."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _frame(axes: Axes, label: str) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.margins(y=0.04)
    axes.set_xlabel("sparsity (share of prunable weights removed)")
    axes.set_ylabel(label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=1, zorder=0)
    axes.tick_params(length=0)


def _parents(axes: Axes, value: float) -> None:
    axes.axhline(value, color=INK, linewidth=1.4, linestyle=(0, (5, 4)), zorder=3)
    axes.annotate(
        f"parents' median {value:.3f}",
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 6),
        textcoords="offset points",
        ha="right",
        color=SOFT,
        fontsize=13,
        zorder=6,
        path_effects=_halo(),
    )
