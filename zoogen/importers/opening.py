"""Open a source by its kind, or by what its files look like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoogen.core.errors import UserError
from zoogen.importers.containers.files import Files, archives_in, named_archives, open_files
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
        UserError: nothing is there, it is a zoo already, the kind is unknown, or none or several recognise it.
        IntegrityError: an archive that is damaged or hostile.
    """
    if kind is not None:
        SOURCES.get(kind)  # a wrong name is told before a large archive is listed
    files = ListedFiles(path) if is_list(path) else open_files(path)
    try:
        if zoo := _zoo_in(files):
            where = path if path.is_dir() else f"it, once unpacked ({zoo})"
            raise UserError(f"{path} is a zoo already: there is nothing to import\nopen {where} with zoogen.open")
        if kind is None:
            fitting = [name for name in SOURCES.names() if SOURCES.get(name).recognises(files)]  # type: ignore[attr-defined]
            if len(fitting) != 1:
                told = f"looks like {' and like '.join(fitting)}" if fitting else "looks like none of them"
                if not fitting and (archives := archives_in(path, files)):
                    raise UserError(f"{path} holds no model that can be imported\n{named_archives(path, archives)}")
                raise UserError(f"{path}: say what it is (--from KIND); known: {', '.join(SOURCES.names())}; it {told}")
            kind = fitting[0]
        asks = any(field.name == "input_shape" for field in dataclasses.fields(SOURCES.get(kind)))
        yield SOURCES.make(kind, {"files": files} | ({"input_shape": input_shape} if asks else {}))
    finally:
        files.close()


def _zoo_in(files: Files) -> str | None:
    """Where in a folder or archive a zoo of ours lies, at its top or in its only folder; None: there is none."""
    tops = {name.partition("/")[0] for name in files.sizes}
    for root in ("", f"{next(iter(tops))}/" if len(tops) == 1 else ""):
        if f"{root}zoo.json" in files.sizes and any(name.startswith(f"{root}shards/") for name in files.sizes):
            return root or "."
    return None
