"""Selections of several layouts or architectures: which there are, and what to say where only one will do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoogen.core.errors import UserError

if TYPE_CHECKING:
    from zoogen.dataset.zoo import Zoo


def layouts_of(zoo: Zoo, models: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Layout ids in order of appearance, and the position in them of each model (rows of ``Zoo.models``).

    Raises:
        IntegrityError: the manifest lacks an architecture.
    """
    import pandas as pd

    codes, names = pd.factorize(zoo.tables.models["architecture_id"].take(models))
    layout_ids = [zoo.architecture(name)["layout"] for name in names.tolist()]
    own = list(dict.fromkeys(layout_ids))
    return own, np.array([own.index(i) for i in layout_ids], np.int64)[codes] if own else np.empty(0, np.int64)


def only_layout(zoo: Zoo, models: np.ndarray) -> str:
    """The id of the layout that all of these models have.

    Raises:
        UserError: they have several, or there are no models.
    """
    layouts, _ = layouts_of(zoo, models)
    if len(layouts) == 1:
        return layouts[0]
    if not layouts:
        raise UserError(
            "this selection is empty, so it has no weights\n"
            "len(selection) says how many states it has; zoo.checkpoints lists those that are stored"
        )
    names = zoo.tables.models["architecture_id"].take(models).unique().tolist()
    raise UserError(
        f"these states are of {len(layouts)} different layouts, which no one matrix holds:\n"
        + "\n".join(sorted({f"  {_described(zoo, name)}" for name in names}))
        + "\n"
        + _advice(zoo, models, "by_layout")
    )


def only_architecture(zoo: Zoo, models: np.ndarray) -> str:
    """The id of the architecture that all of these models have; networks of one layout may compute different things.

    Raises:
        UserError: they have several, or there are no models.
    """
    names = zoo.tables.models["architecture_id"].take(models).unique().tolist()
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise UserError("this selection is empty, so it has no architecture")
    raise UserError(
        f"these states are of {len(names)} different architectures, which no one function computes:\n"
        + "\n".join(f"  {name} {_described(zoo, name)}" for name in names)
        + "\n"
        + _advice(zoo, models, "by_architecture")
    )


def _described(zoo: Zoo, architecture_id: str) -> str:
    entry = zoo.architecture(architecture_id)
    rest = {k: v for k, v in entry.items() if k not in ("name", "input_shape", "outputs", "layout")}
    arguments = ", ".join(f"{k}={v}" for k, v in rest.items())
    return f"{entry['name']}({arguments}): {zoo.layout(entry['layout']).parameters:,} parameters"


def _advice(zoo: Zoo, rows: np.ndarray, method: str) -> str:
    models = zoo.tables.models.take(rows)
    differing = [
        key for key in models.columns
        if key.startswith(("architecture.", "task.")) and models.groupby("architecture_id")[key].nunique().max() < 2
        and models[key].nunique() > 1 and models[key].notna().all()
    ]  # fmt: skip
    key = "architecture.name" if "architecture.name" in differing else (differing or ["architecture_id"])[0]
    value = models[key].iloc[0]
    shown = repr(value.item() if hasattr(value, "item") else value)
    return f'take them one by one with .{method}(), or narrow the selection, e.g. .select("{key} == {shown}")'
