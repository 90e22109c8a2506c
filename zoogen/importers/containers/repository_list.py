"""A list of Hugging Face repositories beside which they lie: only what it names is looked at. Nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.containers.files import Files, FolderFiles, Limits, refused
from zoogen.importers.records.repositories import Weights

_MOST_LIST = 4 << 20
_MOST_REF = 1 << 10
_COMMIT = re.compile(r"[0-9a-f]{7,40}")  # a shorter one is its beginning
_LINE = re.compile(r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """``owner/name`` or ``owner/name@revision``."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def places(self) -> tuple[str, str]:
        """Folders where it may lie beside the list: as a mirror, and as in the hub's cache."""
        return self.name, f"models--{self.name.replace('/', '--')}"

    @property
    def fetch(self) -> str:
        """The command that brings what an import reads of it."""
        revision = f" --revision {self.revision}" if self.revision is not None else ""
        wanted = " ".join(f'--include "{pattern}"' for pattern in ("*.safetensors", "*.json", "README.md"))
        return f"hf download {self.name}{revision} {wanted} --local-dir {self.name}"


def is_list(path: Path) -> bool:
    """Whether this may be a list of repositories: a text file."""
    return path.suffix == ".txt" and path.is_file()


def read_list(path: Path) -> list[Listed]:
    """The repositories of a list, one a line; empty lines and what follows ``#`` are left aside.

    Raises:
        UserError: a line names no repository, or none does.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_LIST + 1)
    found: dict[Listed, None] = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        told = line.partition("#")[0].strip()
        if not told:
            continue
        match = _LINE.fullmatch(told)
        if match is None or ".." in told or len(data) > _MOST_LIST:
            raise UserError(
                f"{path}: line {number} names no repository: {told!r:.80}\nwrite owner/name or owner/name@revision"
            )
        found[Listed(match["name"], match["revision"])] = None
    if not found:
        raise UserError(f"{path} names no repository\nwrite owner/name or owner/name@revision, one a line")
    return list(found)


class ListedFiles:
    """The files of the listed repositories, by their path in the folder of the list."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.listed = read_list(path)
        self.name = path.resolve().parent.name
        self.place = self.name
        self.sizes: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self._folders: dict[str, FolderFiles] = {}
        folder = path.resolve().parent
        for place in dict.fromkeys(place for one in self.listed for place in one.places):
            if not (folder / place).is_dir():
                continue
            if not (folder / place).resolve().is_relative_to(folder):
                raise refused(str(folder), place, "is a link that leads out of the folder")
            files = self._folders[place] = FolderFiles(folder / place, limits or Limits())
            self.sizes |= {f"{place}/{name}": size for name, size in files.sizes.items()}
            self.links |= {f"{place}/{name}": f"{place}/{target}" for name, target in files.links.items()}

    def read(self, name: str, at_most: int | None = None) -> bytes:
        files, own = self._within(name)
        return files.read(own, at_most)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        files, own = self._within(name)
        return files.read_range(own, start, length)

    def close(self) -> None: ...

    def _within(self, name: str) -> tuple[Files, str]:
        place = next(p for p in self._folders if name.startswith(f"{p}/"))
        return self._folders[place], name.removeprefix(f"{place}/")


def select(one: Listed, found: Sequence[Weights], files: Files) -> tuple[list[Weights], str]:
    """The checkpoints of a listed repository and what is to be said of them; or why there are none.

    Without a revision: that of ``refs/main`` in the hub's cache, or the only one that is there.
    """
    mirror, cache = (f"{place}/" for place in one.places)
    if mirrored := [w for w in found if w.path.startswith(mirror)]:
        return _of_mirror(one, mirrored, revision_of(mirrored[0], files))
    cached = [w for w in found if w.path.startswith(cache)]
    there = sorted({w.repository.revision or "" for w in cached})
    wanted = _resolved(files, f"{cache}refs/{one.revision or 'main'}") or one.revision
    if wanted is None and len(there) > 1:
        return [], f"lies beside the list in several revisions ({', '.join(there[:3])}, ...), of which it names none"
    chosen = [w for w in cached if wanted in (None, w.repository.revision)]
    if chosen:
        return chosen, ""
    return (
        [],
        f"lies beside the list in another revision ({', '.join(there[:3])})" if cached else "is not beside the list",
    )


def _of_mirror(one: Listed, mirrored: list[Weights], commit: str | None) -> tuple[list[Weights], str]:
    """A mirror is one revision, of which its commit is noted, and not the branch or tag it was fetched by."""
    if one.revision is None:
        return mirrored, ""
    if commit is None:
        return [], "lies beside the list, and its revision is not known"
    if not _COMMIT.fullmatch(one.revision):
        return mirrored, f"is taken as it lies there, its branch or tag is not checked (commit {commit} is noted)"
    if commit.startswith(one.revision):
        return mirrored, ""
    return [], f"lies beside the list in another revision ({commit})"


def revision_of(weights: Weights, files: Files) -> str | None:
    """The commit: of the hub's cache in the path, of a mirror in what ``hf download`` notes."""
    repository = weights.repository
    if repository.revision is not None or repository.noted is None:
        return repository.revision
    return _resolved(files, repository.noted)


def _resolved(files: Files, name: str) -> str | None:
    """The commit that stands in the first line of a small file."""
    if name not in files.sizes:
        return None
    try:
        line = files.read(name, _MOST_REF).decode(errors="replace").partition("\n")[0].strip()
    except IntegrityError:
        return None
    return line if re.fullmatch(r"[0-9a-f]{7,64}", line) else None
