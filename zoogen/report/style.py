"""How pictures look and how they are saved: colours, fonts, files that are equal whenever the numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoogen.core.errors import EnvironmentFault

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours that stand apart for every kind of colour vision, the pale yellow left out.
DISTINCT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, SOFT, GRID = "#24292f", "#6e7781", "#e4e8ec"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 14,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 15,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.hashsalt": "zoogen",
    "text.parse_math": False,  # names are shown as they are
}
_LETTERS = 118  # of a legend's line, at font size 15 on 16 inches


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches of 100 pixels; draw and save it within ``rc_context(STYLE)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's ending, without the date.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    try:
        figure.savefig(path, metadata=metadata)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}") from error


def head(figure: Figure, title: str, said: str) -> None:
    """Title and one line below it, at the top left."""
    height = figure.get_figheight()
    figure.text(0.06, 1 - 0.4 / height, title, fontsize=23, weight="bold", va="baseline")
    figure.text(0.06, 1 - 0.72 / height, said, fontsize=14, color=SOFT, va="baseline")


def legend_below_head(figure: Figure, labels: Sequence[str], handles: Sequence[Any]) -> float:
    """A legend in as many lines as it takes below the head; returns where it ends, as a share of the height."""
    height = figure.get_figheight()
    widest = max(len(label) for label in labels) + 8
    columns = max(1, min(len(labels), _LETTERS // widest))
    figure.legend(
        list(handles),
        list(labels),
        loc="upper left",
        bbox_to_anchor=(0.06, 1 - 0.91 / height),
        ncols=columns,
        frameon=False,
        fontsize=15,
        handlelength=2.2,
        columnspacing=1.6,
        borderaxespad=0,
        borderpad=0,
    )
    return 1 - (0.91 + 0.3 * ceil(len(labels) / columns)) / height
