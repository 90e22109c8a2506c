"""The report on the sparse twins of a zoo: pictures, the numbers behind them, and a page that holds both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoogen.core.errors import EnvironmentFault
from zoogen.report.style import STYLE, save
from zoogen.report.twins.numbers import Crossing, crossings, layers, pairs, points
from zoogen.report.twins.page import numbers, page, told
from zoogen.report.twins.rows import TwinRows, read_rows

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset import Twins, Zoo

_ABOUT_POINT = ["arm", "method", "asked", "epoch", "last", "models", "sparsity"]


@dataclass(frozen=True)
class TwinsReport:
    """What a zoo's twins show; made by ``twins_report``.

    Attributes:
        name, version: Of the parent zoo.
        rows: The twins.
        points: See ``numbers.points``.
        crossings: See ``numbers.crossings``.
    """

    name: str
    version: int
    rows: TwinRows
    points: pd.DataFrame
    crossings: tuple[Crossing, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The points at the last epoch of their arm."""
        return self.points[self.points["last"]].drop(columns="last").reset_index(drop=True)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what was not measured is null."""
        return {
            "zoo": self.name,
            "version": self.version,
            "twins": {name: dict(counts) for name, counts in self.rows.counts.items()},
            "parents": self._parents(),
            "table": [_plain(row) for row in self._records()],
            "crossings": [_plain(asdict(c)) for c in self.crossings],
        }

    def __str__(self) -> str:
        """Plain text: the table, and what is left out of it."""
        return "\n".join([numbers(self._records()), "", *told(self.crossings), self._said()])

    def write(self, folder: Path) -> Path:
        """Write pictures (PNG, SVG), tables (Parquet) and ``report.md`` into a folder; returns the page.

        Files of an earlier report are replaced; equal twins give equal files.

        Raises:
            EnvironmentFault: the folder cannot be made or written.
        """
        from matplotlib import rc_context

        tables = self._tables()
        with rc_context(STYLE):
            figures = self._figures(tables)
            text = page(f"{self.name}: sparse twins", self._said(), self.rows, self._records(), self.crossings)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for name, table in tables.items():
                    table.to_parquet(folder / f"{name}.parquet", index=False)
                for name, figure in figures.items():
                    for ending in (".png", ".svg"):
                        save(figure, folder / f"{name}{ending}")
                (folder / "report.md").write_text(text, encoding="utf-8")
            except OSError as error:
                raise EnvironmentFault(f"cannot write the report to {folder}: {error.strerror}") from error
        return folder / "report.md"

    def _tables(self) -> dict[str, pd.DataFrame]:
        scores = [c for c in self.points.columns if c not in _ABOUT_POINT]
        agreed = [c for c in scores if c.startswith(("agreement", "kappa"))]
        related = [c for c in scores if c in ("pearson", "spearman")]
        return {
            "accuracy": self.points[[*_ABOUT_POINT, *(c for c in scores if c not in (*agreed, *related))]],
            "agreement": self.points[[*_ABOUT_POINT, *agreed]],
            "layers": layers(self.rows),
            "correlation": pairs(self.rows),
            "table": self.table,
        }

    def _figures(self, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
        from zoogen.report.twins.curves import curves_picture
        from zoogen.report.twins.layers import layers_picture
        from zoogen.report.twins.scatter import scatter_picture

        agreed = {"agreement": "agreement (share of equal predictions)", "kappa": "Cohen's kappa"}
        title = f"{self.name}: test accuracy of sparse twins"
        return {
            "accuracy": curves_picture(
                title, self.points, {"test_acc": "test accuracy (share correct)"}, self._parents()
            ),
            "agreement": curves_picture(f"{self.name}: agreement of twins with their parents", self.points, agreed),
            "layers": layers_picture(f"{self.name}: sparsity of the twins' layers", tables["layers"]),
            "correlation": scatter_picture(
                f"{self.name}: twins beside their parents", tables["correlation"], self.table
            ),
        }

    def _records(self) -> list[dict[str, Any]]:
        return [{str(key): value for key, value in row.items()} for row in self.table.to_dict("records")]

    def _parents(self) -> float:
        """Median test accuracy of the checkpoints that twins in the report started from, each counted once."""
        started = self.rows.states.drop_duplicates(["parent_id", "parent_epoch"])
        return float(started["parent.test_acc"].median())

    def _said(self) -> str:
        counts = self.rows.counts.values()
        here, planned = sum(c.get("trained", 0) for c in counts), sum(sum(c.values()) for c in counts)
        parents = self.rows.states["parent_id"].nunique()
        whose = f"{parents:,} models of zoo {self.name} version {self.version}"
        twins = f"All {planned:,} twins" if here == planned else f"{here:,} of {planned:,} twins"
        rest = "" if here == planned else "; the others are not finished, or diverged, and are left out"
        return f"{twins} of {whose}, whose median test accuracy is {self._parents():.3f}{rest}."


def twins_report(zoo: Zoo, twins: Twins) -> TwinsReport:
    """Compare twins with their parents and with each other; reads tables, no weights.

    Args:
        zoo: The parent.
        twins: ``zoo.twins(...)``.

    Raises:
        UserError: ``zoo`` holds twins itself, there are none of it, or none is finished.
        IntegrityError: a table or a manifest is damaged.
    """
    rows = read_rows(zoo, twins)
    found = points(rows)
    return TwinsReport(zoo.name, zoo.version, rows, found, tuple(crossings(found)))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers of Python, NaN as None."""
    found = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in found.items()}
