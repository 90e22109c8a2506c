"""Where source files are looked for and where decoded data are kept."""

from __future__ import annotations

import os
from pathlib import Path


def data_root(option: Path | None = None) -> Path:
    """Folder of the source files: ``option``, else ``$ZOOGEN_DATA``, else ``data`` below :func:`cache_root`.

    Files lie below it as torchvision's data sets lay them out (``MNIST/raw``, ``cifar-10-batches-py``, ...).
    """
    if option is not None:
        return Path(option).expanduser()
    named = os.environ.get("ZOOGEN_DATA")
    return Path(named).expanduser() if named else cache_root() / "data"


def cache_root() -> Path:
    """Folder of what can be made again: ``$ZOOGEN_CACHE``, else ``zoogen`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    named = os.environ.get("ZOOGEN_CACHE")
    if named:
        return Path(named).expanduser()
    # The XDG specification: an empty or relative value counts as not set.
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".cache") / "zoogen"
