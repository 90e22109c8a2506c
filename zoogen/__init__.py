"""Grow, curate and serve populations of trained neural networks. ``zoogen.open(path)`` opens a zoo as a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoogen.dataset import Selection, Zoo
    from zoogen.dataset.mixture import Mixture
    from zoogen.dataset.stream import StateStream

__all__ = ["__version__", "mix", "open"]


def open(path: str | PathLike[str], *, parent: str | PathLike[str] | None = None) -> Zoo:
    """Open the zoo in the folder ``path``; reads its manifest only, tables and weights when they are asked for.

    Args:
        path: Folder of the zoo.
        parent: Of a twin zoo, the folder of the zoo its twins were made of, where that is no longer where it was.

    Raises:
        UserError: there is no zoo; or its twins were not made of the zoo at ``parent``.
        IntegrityError: its manifest is damaged or of an unknown format.
    """
    from zoogen.dataset import open_zoo

    return open_zoo(path, parent=parent)


def mix(
    sources: Mapping[Zoo | Selection | StateStream, float],
    *,
    batch: int = 256,
    target: str | None = None,
    seed: int = 0,
    batches: int | None = None,
    device: Any = "cpu",
) -> Mixture:
    """Stream the states of several zoos, each batch from one of them and of one layout.

    A ``torch.utils.data.IterableDataset`` of (source, layout_id, weights, target), the same for equal arguments, and
    resumable as ``Selection.stream`` is. A source that was gone through starts again, in another order.

    Args:
        sources: Zoos or selections, whose states all come equally often, of whatever layout, or streams, made by
            ``Selection.stream`` with settings of their own; and the share of the batches that comes from each
            (positive numbers, relative to their sum).
        batch: States per batch, at most.
        target: A column, as of ``Selection.dataset``; classes are counted over all sources.
        seed: Of the order of the sources and within them.
        batches: Per epoch; by default as many as going through every source once takes.
        device: Where the batches go, if no workers are used.

    Raises:
        UserError: nothing to mix, an empty source, or a weight that is not positive.
    """
    from zoogen.dataset.mixture import mix

    return mix(sources, batch=batch, target=target, seed=seed, batches=batches, device=device)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("zoogen")
    raise AttributeError(f"module 'zoogen' has no attribute {name!r}")
