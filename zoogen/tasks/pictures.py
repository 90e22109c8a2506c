"""Compressed images (JPEG, PNG, ...) in a folder or a zip archive, and their pixels."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.tasks.geometry import Geometry, as_array
from zoogen.tasks.sources import PARSE_ERRORS, Source, check_file, parsing, read_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Only these decoders: Pillow would start Ghostscript for an EPS file, whatever its suffix.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


@dataclass(frozen=True)
class Tree:
    """Files below one place: sorted names with ``/``, and how to read one."""

    place: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]

    def pictures(self, prefix: str = "") -> list[str]:
        """Names of image files that start with ``prefix``."""
        return [name for name in self.names if name.startswith(prefix) and name.lower().endswith(SUFFIXES)]


def folder_tree(folder: Path) -> Tree:
    """The files of a folder and its subfolders; links are followed."""
    names = []
    for place, _, files in os.walk(folder, followlinks=True):
        below = Path(place).relative_to(folder)
        names += [(below / file).as_posix() for file in files]
    return Tree(folder, tuple(sorted(names)), lambda name: read_bytes(folder / name))


@contextmanager
def open_tree(source: Source, root: Path) -> Iterator[Tree]:
    """The files of ``source.folder``: straight from the checked zip archive if that is there, else from the folder.

    Raises:
        IntegrityError: the archive is not the published one.
    """
    assert source.folder is not None
    archive = root / source.path
    if not archive.is_file():
        yield folder_tree(root / source.folder)
        return
    check_file(archive, source.md5)
    with parsing(archive):
        opened = zipfile.ZipFile(archive)
    with opened:
        top = source.folder.rpartition("/")[2] + "/"
        files = [name for name in opened.namelist() if name.startswith(top) and not name.endswith("/")]

        def read(name: str) -> bytes:
            with parsing(f"{archive}: {name}"):
                return opened.read(top + name)

        yield Tree(archive, tuple(sorted(name.removeprefix(top) for name in files)), read)


def decode(data: bytes, channels: int, geometry: Geometry) -> np.ndarray:
    """Pixels of one image, as RGB or grey, after static transforms: uint8 [channels, H, W].

    Raises:
        ValueError: not an image, damaged, of a format that is not read, or absurdly large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return as_array(geometry.apply(image.convert("L" if channels == 1 else "RGB")))
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(_FORMATS)}") from None
    except (*PARSE_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def decode_all(tree: Tree, names: list[str], shape: tuple[int, int, int], geometry: Geometry) -> np.ndarray:
    """Pixels of the named images: uint8 [N, *shape].

    Raises:
        IntegrityError: an image is damaged or of another size.
    """
    images = np.empty((len(names), *shape), np.uint8)
    for i, name in enumerate(names):
        data = tree.read(name)
        try:
            pixels = decode(data, shape[0], geometry)
        except ValueError as error:
            raise IntegrityError(f"{tree.place}: {name} is damaged or no image: {error}") from error
        if pixels.shape != shape:
            raise IntegrityError(f"{tree.place}: {name} has the shape {pixels.shape}, expected {shape}")
        images[i] = pixels
    return images
