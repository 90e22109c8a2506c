"""The report on twins as a Markdown page: what was compared, the table, where one method overtakes, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from zoogen.report.twins.numbers import Crossing
from zoogen.report.twins.rows import TwinRows

_HEADER = (
    "method", "sparsity", "models", "test accuracy", "drop", "agreement", "kappa", "Pearson r", "Spearman ρ",
)  # fmt: skip
_FILES = {
    "accuracy": "Test accuracy over sparsity",
    "layers": "Sparsity of the layers",
    "agreement": "Agreement with the parents over sparsity",
    "correlation": "Twins beside their parents",
}


def page(title: str, said: str, rows: TwinRows, table: Sequence[Mapping[str, Any]], found: Sequence[Crossing]) -> str:
    """Markdown; pictures and tables are linked by their names in the same folder.

    Args:
        title: Headline, without formatting.
        said: What was compared, a sentence or two.
        rows: For the counts.
        table: Rows of ``numbers.points`` at the last epoch.
        found: ``numbers.crossings``.
    """
    parts = [f"# {title}", said, _counts(rows), "## Numbers", _ABOUT, numbers(table)]
    if found:
        parts += [
            "## Where variational dropout overtakes magnitude pruning",
            _ABOUT_CROSSINGS,
            "\n".join(f"- {c}" for c in told(found)),
        ]
    for name, heading in _FILES.items():
        links = f"[SVG]({name}.svg), the numbers: [{name}.parquet]({name}.parquet)"
        parts += [f"## {heading}", f"![{heading}]({name}.png)", links]
    return "\n\n".join(parts) + "\n"


_ABOUT = (
    "Medians over models, each at its last epoch. Sparsity: share of the prunable weights that are removed. Drop: "
    "parent's minus twin's test accuracy. Agreement: share of test samples for which both predict the same class; "
    "kappa: Cohen's. r and ρ: correlation of the test accuracies of parents and twins. The numbers: "
    "[table.parquet](table.parquet)."
)

_ABOUT_CROSSINGS = "By median test accuracy over median sparsity, in the range of sparsities that both cover."


def numbers(table: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown whose columns also line up as plain text."""
    cells = [[*_HEADER], *(_cells(row) for row in table)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [_line(cells[0], widths), _line(rule, widths), *(_line(row, widths) for row in cells[1:])]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    keys = ("test_acc", "acc_drop", "agreement", "kappa", "pearson", "spearman")
    return [str(row["arm"]), f"{row['sparsity']:.3f}", f"{row['models']:,}", *(_number(row[key]) for key in keys)]


def _number(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "-"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
    return f"| {' | '.join(aligned)} |"


def told(found: Sequence[Crossing]) -> list[str]:
    """A sentence for every pair of arms."""
    return [f"{_name(c.over)} against {_name(c.under)}: {_sentence(c)}." for c in found]


def _name(arm: str) -> str:
    return f"`{arm}`"


def _sentence(found: Crossing) -> str:
    if not isfinite(found.low):
        return "no sparsity that both reach"
    at = f"at {', '.join(f'{sparsity:.2f}' for sparsity in found.at)}" if found.at else "nowhere"
    ends = ((found.low, found.starts_ahead), (found.high, found.ends_ahead))
    first, last = (f"{'above' if ahead else 'not above'} it at {sparsity:.2f}" for sparsity, ahead in ends)
    return f"{first}, overtakes it {at}, {last}"


def _counts(rows: TwinRows) -> str:
    columns = ("trained", "diverged", "failed", "planned")
    lines = [
        "| twin zoo | twins | in this report | diverged | failed | not trained yet |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, counts in rows.counts.items():
        own = " | ".join(f"{counts.get(status, 0):,}" for status in columns)
        lines.append(f"| `{name}` | {sum(counts.values()):,} | {own} |")
    return "\n".join(lines)
