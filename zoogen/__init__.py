"""Grow, curate and serve populations of trained neural networks. ``zoogen.open(path)`` opens a zoo as a dataset."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoogen.dataset import Zoo

__all__ = ["__version__", "open"]


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


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("zoogen")
    raise AttributeError(f"module 'zoogen' has no attribute {name!r}")
