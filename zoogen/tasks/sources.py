"""Published source files: their names, checksums and addresses, and the way to their checked bytes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import EnvironmentFault, IntegrityError

# What parsers of damaged bytes raise; a bug of ours raises other things too and is not hidden by this.
PARSE_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    OSError,
    OverflowError,
    SyntaxError,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Source:
    """One file as its authors publish it.

    Attributes:
        path: Place below the data root, with ``/``.
        md5: Published checksum (md5 is what the authors and torchvision give; it guards against damage).
        urls: Addresses, tried in order.
        content_md5: Checksum of the decompressed bytes of a .gz or .bz2 file. With it, the unpacked file (``path``
            without its suffix) and another packing of the same bytes are accepted too.
        members: (path below the data root, md5) of the files used from an archive, which may also lie there unpacked.
        folder: Folder below the data root that a zip archive unpacks to; no checksums are published for its files.
    """

    path: str
    md5: str
    urls: tuple[str, ...] = ()
    content_md5: str | None = None
    members: tuple[tuple[str, str], ...] = ()
    folder: str | None = None

    @property
    def unpacked(self) -> str:
        """Place of the decompressed file below the data root."""
        return self.path.rpartition(".")[0]

    def is_present(self, root: Path) -> bool:
        """Whether the file, or what it unpacks to, lies below ``root``; says nothing about its bytes."""
        return (
            (root / self.path).is_file()
            or (self.content_md5 is not None and (root / self.unpacked).is_file())
            or (bool(self.members) and all((root / path).is_file() for path, _ in self.members))
            or (self.folder is not None and (root / self.folder).is_dir())
        )


def source_digest(sources: Sequence[Source]) -> str:
    """Identity of a set of published files: digest of their sorted (name, md5)."""
    return digest(canonical_json(sorted([source.path, source.md5] for source in sources)))


def require(task: str, sources: Sequence[Source], root: Path, *, download: bool) -> None:
    """Make sure that every source lies below ``root``, by download where that is allowed.

    Raises:
        EnvironmentFault: files are missing (the message lists them) or cannot be downloaded.
        IntegrityError: a downloaded file is not the published one.
    """
    missing = [source for source in sources if not source.is_present(root)]
    if download:
        from zoogen.tasks.download import download as fetch

        for source in missing:
            fetch(source, root)
    elif missing:
        lines = [f"task {task!r}: {len(missing)} source file(s) missing below {root}"]
        for source in missing:
            lines.append(f"  {source.path}  (md5 {source.md5})")
            lines += [f"    from {url}" for url in source.urls[:1]]
            lines += [f"    or unpacked as {source.folder}/"] if source.folder else []
        lines.append("Place them there, name the folder that holds them (--data or ZOOGEN_DATA), or use --download.")
        raise EnvironmentFault("\n".join(lines))


def read_content(source: Source, root: Path) -> bytes:
    """The checked, decompressed bytes of a single file.

    Raises:
        IntegrityError: the bytes are not the published ones.
    """
    packed = root / source.path
    if not packed.is_file():
        return _checked(root / source.unpacked, source.content_md5 or "")
    data = read_bytes(packed)
    found = md5(data)
    if found != source.md5 and source.content_md5 is None:
        raise _wrong_checksum(packed, found, source.md5)
    with parsing(packed):
        content = {".gz": gzip.decompress, ".bz2": bz2.decompress}.get(packed.suffix, bytes)(data)
    # Another packing of the same bytes has another checksum; then the content decides.
    if found != source.md5 and md5(content) != source.content_md5:
        raise _wrong_checksum(packed, found, source.md5)
    return content


def read_members(source: Source, root: Path) -> dict[str, bytes]:
    """The checked bytes of ``source.members`` by path, from the unpacked files or straight from the tar archive.

    Raises:
        IntegrityError: the archive or a member is not the published one, or the archive lacks it.
    """
    if all((root / path).is_file() for path, _ in source.members):
        return {path: _checked(root / path, published) for path, published in source.members}
    archive = root / source.path
    check_file(archive, source.md5)
    wanted = dict(source.members)
    found: dict[str, bytes] = {}
    with parsing(archive), tarfile.open(archive) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if name in wanted and (stream := tar.extractfile(entry)) is not None:
                found[name] = stream.read()
    for name, published in source.members:
        if name not in found:
            raise IntegrityError(f"{archive} has no file {name}; fetch the archive again")
        if (actual := md5(found[name])) != published:
            raise _wrong_checksum(archive / name, actual, published)
    return found


@contextmanager
def parsing(path: Path | str) -> Iterator[None]:
    """Turn what a parser of ``path`` raises on damaged bytes into an IntegrityError that names the file."""
    try:
        yield
    except PARSE_ERRORS as error:
        raise IntegrityError(f"{path} is damaged: {error or type(error).__name__}; fetch it again") from error


def check_file(path: Path, published: str) -> None:
    """Refuse a file whose md5 is not ``published``; reads it in pieces.

    Raises:
        IntegrityError: it is another file; the message names both checksums.
    """
    if (found := file_md5(path)) != published:
        raise _wrong_checksum(path, found, published)


def file_md5(path: Path) -> str:
    """md5 of a file of any size, as hex."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error}") from error


def md5(data: bytes) -> str:
    """md5 of bytes, as hex."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def read_bytes(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        EnvironmentFault: it cannot be read (permissions, a broken disk).
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error}") from error


def _checked(path: Path, published: str) -> bytes:
    data = read_bytes(path)
    if (found := md5(data)) != published:
        raise _wrong_checksum(path, found, published)
    return data


def _wrong_checksum(path: Path, found: str, published: str) -> IntegrityError:
    return IntegrityError(f"{path} has md5 {found}, published is {published}; fetch it again")
