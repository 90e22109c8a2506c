"""Open a source by its kind, or by what its files look like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoogen.core.errors import UserError
from zoogen.importers.containers.files import open_files
from zoogen.importers.containers.repository_list import ListedFiles, is_list
from zoogen.importers.source import SOURCES, Source


@contextmanager
def open_source(path: Path, kind: str | None = None, input_shape: tuple[int, ...] | None = None) -> Iterator[Source]:
    """The source at ``path``.

    Args:
        path: Folder, archive, file or list of repositories.
        kind: None: the one kind that recognises it.
        input_shape: Of the samples it was trained on, for kinds that ask for it; None: not known.

    Raises:
        UserError: nothing is there, the kind is unknown, or none or several recognise it.
        IntegrityError: an archive that is damaged or hostile.
    """
    if kind is not None:
        SOURCES.get(kind)  # a wrong name is told before a large archive is listed
    files = ListedFiles(path) if is_list(path) else open_files(path)
    try:
        if kind is None:
            fitting = [name for name in SOURCES.names() if SOURCES.get(name).recognises(files)]  # type: ignore[attr-defined]
            if len(fitting) != 1:
                told = f"looks like {' and like '.join(fitting)}" if fitting else "looks like none of them"
                raise UserError(f"{path}: say what it is (--from KIND); known: {', '.join(SOURCES.names())}; it {told}")
            kind = fitting[0]
        asks = any(field.name == "input_shape" for field in dataclasses.fields(SOURCES.get(kind)))
        yield SOURCES.make(kind, {"files": files} | ({"input_shape": input_shape} if asks else {}))
    finally:
        files.close()
