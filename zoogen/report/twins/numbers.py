"""What a report on twins shows, in numbers: medians over models, layers, correlations, where one method overtakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zoogen.report.twins.rows import TwinRows

if TYPE_CHECKING:
    import pandas as pd

BAND = (0.05, 0.95)
_BANDED = ("test_acc", "agreement", "kappa")
_POINT = ["arm", "asked", "epoch"]


@dataclass(frozen=True)
class Crossing:
    """Where the curve of one arm rises above another's, by median test accuracy over median sparsity.

    Attributes:
        over, under: Labels of the arm that overtakes and of the one that is overtaken.
        at: Sparsities from which ``over`` is above, ascending.
        low, high: The range of sparsities that both arms cover; NaN where they share none.
        starts_ahead, ends_ahead: ``over`` is above at ``low``, at ``high``.
    """

    over: str
    under: str
    at: tuple[float, ...]
    low: float
    high: float
    starts_ahead: bool
    ends_ahead: bool


def points(rows: TwinRows) -> pd.DataFrame:
    """One row per point of a curve: an arm at an asked sparsity, or at an epoch where none was asked for.

    Columns: ``arm``, ``method``, ``asked``, ``epoch``, ``last`` (of its arm), ``models``; medians of ``sparsity``,
    ``test_acc``, ``parent.test_acc``, ``acc_drop``, ``agreement``, ``kappa``, of some the 5th and 95th percentile
    (``test_acc_p05``); ``pearson`` and ``spearman`` correlation of the twins' test accuracy with their parents'.
    """
    states = rows.states
    grouped = states.groupby(_POINT, dropna=False)
    found = grouped[["sparsity", "test_acc", "parent.test_acc", "acc_drop", "agreement", "kappa"]].median()
    for name in _BANDED:
        for share in BAND:
            found[f"{name}_p{100 * share:02.0f}"] = grouped[name].quantile(share)
    found.insert(0, "models", grouped.size())
    found.insert(0, "last", grouped["last"].all())
    own = [(group["parent.test_acc"].to_numpy(), group["test_acc"].to_numpy()) for _, group in grouped]
    found["pearson"] = [pearson(a, b) for a, b in own]
    found["spearman"] = [spearman(a, b) for a, b in own]
    found = found.reset_index()
    found.insert(1, "method", found["arm"].map(dict(rows.arms)))
    return found


def layers(rows: TwinRows) -> pd.DataFrame:
    """Median sparsity of every layer at every point, layers in the order of their network.

    Columns: ``arm``, ``asked``, ``epoch``, ``layer``, ``models``, ``sparsity``.
    """
    import pandas as pd

    parts = []
    for number, names in enumerate(rows.layers):
        states = rows.states[rows.states["layout"] == number]
        if len(states):
            values = np.stack(states["layer_sparsity"].tolist())
            parts += [states[_POINT].assign(layer=name, sparsity=values[:, i]) for i, name in enumerate(names)]
    grouped = pd.concat(parts, ignore_index=True).groupby([*_POINT, "layer"], dropna=False)["sparsity"]
    found = pd.DataFrame({"models": grouped.size(), "sparsity": grouped.median()}).reset_index()
    order = {name: place for place, name in enumerate(dict.fromkeys(n for names in rows.layers for n in names))}
    return (
        found.assign(place=found["layer"].map(order))
        .sort_values([*_POINT, "place"], ignore_index=True)
        .drop(columns="place")
    )


def pairs(rows: TwinRows) -> pd.DataFrame:
    """Every twin's last state beside its parent: ids, ``arm``, ``asked``, ``sparsity`` and both test accuracies."""
    columns = [
        "arm",
        "asked",
        "model_id",
        "parent_id",
        "parent_epoch",
        "epoch",
        "sparsity",
        "parent.test_acc",
        "test_acc",
    ]
    found = rows.states[rows.states["last"]][columns]
    return found.sort_values(["arm", "asked", "parent_id"], ignore_index=True)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; NaN of fewer than three pairs or of values that are all equal."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; NaN as ``pearson``."""
    import pandas as pd

    return pearson(pd.Series(a).rank().to_numpy(), pd.Series(b).rank().to_numpy())


def crossings(found: pd.DataFrame, over: str = "variational-dropout", under: str = "magnitude") -> list[Crossing]:
    """Of every pair of arms of two methods, where one overtakes the other; between ``points`` curves are straight."""
    arms = found.drop_duplicates("arm")[["arm", "method"]].to_numpy().tolist()
    curves = {arm: _curve(found[found["arm"] == arm]) for arm, _ in arms}
    return [
        _crossing(a, b, curves[a], curves[b])
        for a, method in arms if method == over
        for b, other in arms if other == under
    ]  # fmt: skip


def _curve(own: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy over ascending sparsity; of points with equal sparsity the latest."""
    own = own.sort_values(["sparsity", "epoch"]).drop_duplicates("sparsity", keep="last")
    return own["sparsity"].to_numpy(), own["test_acc"].to_numpy()


def _crossing(
    over: str, under: str, upper: tuple[np.ndarray, np.ndarray], lower: tuple[np.ndarray, np.ndarray]
) -> Crossing:
    low, high = max(upper[0][0], lower[0][0]), min(upper[0][-1], lower[0][-1])
    if low > high:
        return Crossing(over, under, (), float("nan"), float("nan"), False, False)
    at = np.unique(np.concatenate([upper[0], lower[0], [low, high]]))
    at = at[(at >= low) & (at <= high)]
    ahead = np.interp(at, *upper) - np.interp(at, *lower)
    found = []
    behind = False
    for k in range(len(at) - 1):
        behind = ahead[k] < 0 or (behind and ahead[k] == 0)
        if behind and ahead[k + 1] > 0:
            found.append(float(at[k] - ahead[k] * (at[k + 1] - at[k]) / (ahead[k + 1] - ahead[k])))
    return Crossing(over, under, tuple(found), float(low), float(high), bool(ahead[0] > 0), bool(ahead[-1] > 0))
