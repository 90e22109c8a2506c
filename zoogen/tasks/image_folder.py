"""Any images in class folders: ``<folder>/train/<class>/...`` and ``<folder>/test/<class>/...`` below the data root."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import EnvironmentFault, IntegrityError, UserError
from zoogen.core.registry import TASKS
from zoogen.tasks.geometry import Geometry
from zoogen.tasks.image_task import Images, ImageTask, Pixels, Published
from zoogen.tasks.pictures import Tree, decode_all, folder_tree
from zoogen.tasks.sources import Source


@TASKS.register("image-folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageTask):
    """Images of any size; each is resized (shorter side ``size``) and cut to its central square.

    Attributes:
        folder: Folder below the data root that holds ``train`` and ``test``.
        channels: 3 for RGB, 1 for grey.
        classes: Number of class folders, in the order of their sorted names.
        train: Images below ``train``, validation part included.
        test: Images below ``test``.
        digest: Optional digest of the files' contents; data with another one are refused.
    """

    sources: ClassVar[tuple[Source, ...]] = ()

    folder: str
    channels: Literal[1, 3] = 3
    size: Pixels = field()  # a plain annotation would inherit the default
    classes: Annotated[int, Ge(2)]
    train: Annotated[int, Ge(1)]
    test: Annotated[int, Ge(1)]
    digest: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.folder)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise self._problem(f"folder: {self.folder!r} must name a folder below the data root, without '..'")
        super().__post_init__()

    @property
    def facts(self) -> Published:
        side = self.crop or self.size
        return Published(self.train, self.test, (self.channels, side, side), self.classes)

    @property
    def geometry(self) -> Geometry:
        return Geometry()  # images differ in size, so ``read`` transforms each as it is decoded

    @property
    def source_digest(self) -> str:
        """The declared content digest, or a digest of the declared facts."""
        facts = {"folder": self.folder, "classes": self.classes, "train": self.train, "test": self.test}
        return self.digest or digest(canonical_json(facts))

    def fetch(self, root: Path, download: bool) -> None:
        """Compare what lies in the folder with what is declared.

        Raises:
            EnvironmentFault: the folder or a part of it is missing.
            UserError: the declared counts are wrong; the message gives the right ones.
        """
        for part in ("train", "test"):
            if not (root / self.folder / part).is_dir():
                raise EnvironmentFault(
                    f"task 'image-folder': no folder {root / self.folder / part}\n"
                    f"Place the images at {self.folder}/{{train,test}}/<class>/ below the data root {root}, "
                    "or name the right data root (--data or ZOOGEN_DATA)."
                )
        tree = folder_tree(root / self.folder)
        found = {part: tree.pictures(f"{part}/") for part in ("train", "test")}
        if loose := [name for names in found.values() for name in names if not _class_of(name)]:
            raise UserError(f"{tree.place}: {loose[0]} lies in no class folder; move it into one")
        classes = {part: {_class_of(name) for name in names} for part, names in found.items()}
        if unknown := sorted(classes["test"] - classes["train"]):
            raise UserError(f"{tree.place}: class {unknown[0]!r} has test images, but no training images")
        right = {"classes": len(classes["train"]), "train": len(found["train"]), "test": len(found["test"])}
        if wrong := {name: count for name, count in right.items() if count != getattr(self, name)}:
            declared = ", ".join(f"{name}: {getattr(self, name)}" for name in wrong)
            counted = ", ".join(f"{name}: {count}" for name, count in wrong.items())
            raise UserError(f"task 'image-folder': declared is {declared}; {tree.place} holds {counted}: write that")

    def read(self, root: Path) -> Mapping[str, Images]:
        tree = folder_tree(root / self.folder)
        classes = sorted({_class_of(name) for name in tree.pictures("train/")})
        rank = {name: i for i, name in enumerate(classes)}
        geometry = Geometry(size=self.size, crop=self.crop or self.size)
        parts = {}
        for part in ("train", "test"):
            names = tree.pictures(f"{part}/")
            targets = np.array([rank[_class_of(name)] for name in names], np.int64)
            parts[part] = (decode_all(tree, names, self.facts.shape, geometry), targets)
        return parts

    def content(self, root: Path) -> str:
        """Digest of the files, compared with the declared one.

        Raises:
            IntegrityError: another one is declared.
        """
        found = content_digest(folder_tree(root / self.folder))
        if self.digest is not None and found != self.digest:
            raise IntegrityError(
                f"{root / self.folder} has the digest {found}, declared is {self.digest}; "
                "restore the files or declare the digest that is meant"
            )
        return found

    def _cache_key(self, root: Path) -> dict[str, object]:
        place = root / self.folder
        try:
            # Not the contents, which would be read on every start: a changed file has another size or time.
            stats = [(name, (place / name).stat()) for name in folder_tree(place).pictures()]
        except OSError as error:
            raise EnvironmentFault(f"cannot read the images of {place}: {error}") from error
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        picture = [self.channels, self.size, self.crop]
        return {**super()._cache_key(root), "picture": picture, "files": digest(canonical_json(files))}


def content_digest(tree: Tree) -> str:
    """Digest of the images of a folder: sorted relative paths, sizes and SHA-256 of their bytes."""
    rows = []
    for name in tree.pictures():
        data = tree.read(name)
        rows.append([name, len(data), hashlib.sha256(data).hexdigest()])
    return digest(canonical_json(rows))


def _class_of(name: str) -> str:
    """``<class>`` of ``<part>/<class>/.../<image>``."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 else ""
