"""Which safetensors files are which model: mirrors of repositories, the hub's own cache, or files of one's own.

<owner>/<name>/model.safetensors                                 a mirror, as ``hf download --local-dir`` makes it
models--<owner>--<name>/snapshots/<revision>/model.safetensors   the hub's cache, mostly links into its ``blobs``
<folder>/<model>.safetensors                                     a file per model
.../checkpoint-500/model.safetensors, ..._epoch_5.safetensors    checkpoints of one model

A model may be cut into ``<stem>-00001-of-00003.safetensors``, ... with ``<stem>.safetensors.index.json``.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
CHECKPOINTS = "/checkpoint-*"

_CACHED = re.compile(r"(?:.*/)?models--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)/(?P<rest>.+)")
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")
# A number counts as a checkpoint's where the word before it says so: vit-b-16 and seed_1 are names.
_CHECKPOINT = re.compile(r"(?:(?P<stem>.+?)[-_.])?(?:checkpoint|ckpt|epoch|step)[-_.=]?(?P<number>\d{1,9})", re.I)
_WHOLE = "model"
_NOTED = ".cache/huggingface/download/"


@dataclass(frozen=True)
class Repository:
    """Where a model comes from.

    Attributes:
        name: ``owner/name``, or the two folders that stand in its place.
        revision: Commit, of the hub's cache; None: its path does not tell.
        root: Folder of its files, empty or ending with ``/``; None: its path does not tell.
        noted: File whose first line is the revision, where there is one.
    """

    name: str
    revision: str | None = None
    root: str | None = None
    noted: str | None = None


@dataclass(frozen=True)
class Weights:
    """One checkpoint, by the file that names it: a safetensors file, or the index of several.

    Attributes:
        path: Of that file in the source.
        key: Of its model.
        epoch: Or step, whichever its name counts; None: its name has no number.
        folder: Of its model (of a checkpoint's folder the one above), empty or ending with ``/``.
        repository: Where it comes from.
    """

    path: str
    key: str
    epoch: int | None
    folder: str
    repository: Repository


def weights_of(names: Iterable[str], above: str) -> tuple[list[Weights], list[str]]:
    """Every checkpoint; and every part of one whose index is not there.

    Args:
        names: Paths in the source.
        above: Name of the source, which may be part of what a repository is called.
    """
    known = set(names)
    found, lonely = [], []
    for name in sorted(known):
        part = _PART.fullmatch(name)
        if part is not None:
            lonely += [name] if f"{part['stem']}{INDEX}" not in known else []
        elif name.endswith((SUFFIX, INDEX)):
            found.append(_weights(name, above, known))
    return _short(found), lonely


def _weights(path: str, above: str, known: Collection[str]) -> Weights:
    place = path.removesuffix(INDEX).removesuffix(SUFFIX)
    folder, leaf = posixpath.split(place)
    model, own = (folder, folder) if leaf == _WHOLE else (place, folder)
    epoch = None
    if match := _CHECKPOINT.fullmatch(posixpath.basename(model)):
        epoch, own = int(match["number"]), posixpath.dirname(model)
        model = posixpath.join(own, match["stem"] or "").rstrip("/")
    repository = _repository(path, model, above, known)
    key = model
    if repository.revision is not None:
        inside = f"{model}/".removeprefix(repository.root or "").rstrip("/")
        key = posixpath.join(f"{repository.name}@{repository.revision}", inside).rstrip("/")
    return Weights(path, key, epoch, own and f"{own}/", repository)


def _repository(path: str, model: str, above: str, known: Collection[str]) -> Repository:
    if match := _CACHED.fullmatch(f"{above}/{path}"):
        name = match["name"].replace("--", "/", 1)
        return Repository(name, match["revision"], path.removesuffix(match["rest"]))
    folder = posixpath.dirname(path)
    while True:
        root = folder and f"{folder}/"
        noted = f"{root}{_NOTED}{path.removeprefix(root)}.metadata"
        if noted in known:
            return Repository(_last_two(above, folder), None, root, noted)
        if not folder:
            return Repository(_last_two(above, model))
        folder = posixpath.dirname(folder)


def _last_two(above: str, place: str) -> str:
    return "/".join(f"{above}/{place}".rstrip("/").split("/")[-2:])


def _short(found: list[Weights]) -> list[Weights]:
    """Keys without what is before all of them, so that an archive and its unpacked folder give the same ids."""
    plain = [w for w in found if w.repository.revision is None]
    above = {posixpath.dirname(posixpath.dirname(w.key)) for w in plain}
    shared = os.path.commonpath(above) if above and "" not in above else ""
    cut = shared and f"{shared}/"
    return [replace(w, key=w.key.removeprefix(cut) or ".") if w.repository.revision is None else w for w in found]


def by_model(found: Iterable[Weights]) -> dict[str, list[Weights]]:
    """Checkpoints by the key of their model, ascending.

    Which number a file without one has, beside files with one, is not told: it is a model of its own, and the others
    are ``<key>/checkpoint-*``.
    """
    models: dict[str, list[Weights]] = {}
    for one in found:
        models.setdefault(one.key, []).append(one)
    split: dict[str, list[Weights]] = {}
    for key, alike in models.items():
        numbered = sorted((w for w in alike if w.epoch is not None), key=lambda w: (w.epoch or 0, w.path))
        plain = [w for w in alike if w.epoch is None]
        if plain:
            split[key] = plain
        if numbered:
            split[f"{key}{CHECKPOINTS}" if plain else key] = numbered
    return split
