"""What all image tasks share: their blueprint keys, the facts that follow from them, the way from files to data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le, Lt

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.contracts import PartName
from zoogen.core.errors import IntegrityError, UserError
from zoogen.tasks import places
from zoogen.tasks.augmentation import Augmentation
from zoogen.tasks.cache import Decoded, open_or_decode
from zoogen.tasks.geometry import Geometry
from zoogen.tasks.image_data import ImageData
from zoogen.tasks.normalisation import Normalisation, statistics
from zoogen.tasks.sources import Source, require, source_digest
from zoogen.tasks.splits import cut_pool, cut_validation

Seed = Annotated[int, Ge(0), Lt(2**63)]
Count = Annotated[int, Ge(0)]
Pixels = Annotated[int, Ge(1), Le(1024)]
Images = tuple[np.ndarray, np.ndarray]
"""uint8 [N, C, H, W] and int64 [N], as published."""


@dataclass(frozen=True)
class Published:
    """What the published files hold: images in the training and the test part, shape [C, H, W] of one, classes.

    ``test`` is 0 for data published in one piece; their task has a field ``test`` that cuts the test part from it.
    """

    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Image classification; a subclass declares what is published and reads it.

    Attributes:
        split_seed: Seed of the random cut of the validation part (torch's ``random_split``).
        val: Samples of the validation part, cut from the published training part; 0: none.
        size: Shorter side in pixels to resize images to (bilinear); None: as published.
        crop: Side of the central square kept after resizing; None: all.
        normalise: Mean and standard deviation, by name, that pixel values in [0, 1] are normalised with.
        random_crop: Augmentation: zero padding in pixels before a random crop to the old size; 0: off.
        horizontal_flip: Augmentation: mirror with probability 1/2.
        rotation: Augmentation: rotate by a random angle of up to this many degrees; 0: off.
    """

    registered_name: ClassVar[str]
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[Source, ...]]
    published: ClassVar[Published]

    split_seed: Seed = 42
    val: Count = 0
    size: Pixels | None = None
    crop: Pixels | None = None
    normalise: Normalisation = "half"
    random_crop: Annotated[int, Ge(0), Le(1024)] = 0
    horizontal_flip: bool = False
    rotation: Annotated[float, Ge(0), Le(180)] = 0.0

    def __post_init__(self) -> None:
        if self.facts.test and not self.val and self.split_seed != 42:
            raise self._problem(f"split_seed: {self.split_seed} has no effect without a validation part (val: 0)")
        side = self.size or self.facts.shape[-1]
        if self.crop is not None and self.crop > side:
            raise self._problem(f"crop: {self.crop} is larger than the image side of {side} pixels")
        train = self.sizes[0]
        if train < 1:
            test = f" and test: {self.sizes[2]}" if not self.facts.test else ""
            raise self._problem(
                f"val: {self.val}{test} leave no training samples of the {self.facts.train} published ones"
            )
        try:
            statistics(self.normalise, self.input_shape[0])
        except ValueError as error:
            raise self._problem(f"{error}; 'half' and 'none' fit any") from None

    @property
    def facts(self) -> Published:
        """What the files hold, known without them."""
        return self.published

    @property
    def geometry(self) -> Geometry:
        """Transforms done once, when the files are decoded."""
        return Geometry(size=self.size, crop=self.crop)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels = 1 if self.geometry.greyscale else self.facts.shape[0]
        side = self.crop or self.size or self.facts.shape[-1]
        return (channels, side, side)

    @property
    def outputs(self) -> int:
        return self.facts.classes

    @property
    def sizes(self) -> tuple[int, int, int]:
        test = self.facts.test or getattr(self, "test", 0)
        pool = self.facts.train - (0 if self.facts.test else test)
        return (pool - self.val, self.val, test)

    @property
    def source_digest(self) -> str:
        return source_digest(self.sources)

    def load(self, data_root: Path | None, cache: Path, *, download: bool = False) -> ImageData:
        """See :class:`zoogen.core.contracts.Task`; without ``data_root``, :func:`zoogen.tasks.places.data_root`."""
        root = places.data_root(data_root)
        folder = cache / "tasks" / f"{self.registered_name}-{digest(canonical_json(self._cache_key(root)))}"
        cached = open_or_decode(folder, lambda: self._decode(root, download))
        mean, std = statistics(self.normalise, self.input_shape[0])
        augmentation = Augmentation(self.random_crop, self.horizontal_flip, self.rotation)
        return ImageData(cached, self.split(), self.outputs, mean, std, augmentation)

    def split(self) -> dict[PartName, np.ndarray]:
        """int64 indices of each part into the published files; needs no data at hand."""
        if self.facts.test:
            return cut_validation(self.facts.train, self.val, self.facts.test, self.split_seed)
        return cut_pool(self.facts.train, self.val, self.sizes[2], self.split_seed)

    def fetch(self, root: Path, download: bool) -> None:
        """Make sure that the source files lie below ``root``.

        Raises:
            EnvironmentFault: files are missing and cannot be downloaded; the message says what to place where.
        """
        require(self.registered_name, self.sources, root, download=download)

    def read(self, root: Path) -> Mapping[str, Images]:
        """Images and targets of ``train`` and (unless published in one piece) ``test``, in the order of the files.

        Raises:
            IntegrityError: a file is damaged or not the published one.
        """
        raise NotImplementedError

    def content(self, root: Path) -> str:
        """Digest of the files where none is published; empty otherwise."""
        return ""

    def _cache_key(self, root: Path) -> dict[str, object]:
        """Everything that the decoded arrays depend on; split, normalisation and augmentation come later."""
        g = self.geometry
        return {
            "task": self.registered_name,
            "version": self.version,
            "source": self.source_digest,
            "geometry": [g.greyscale, g.size, g.crop],
        }

    def _decode(self, root: Path, download: bool) -> Decoded:
        self.fetch(root, download)
        arrays = {}
        for part, (images, targets) in self.read(root).items():
            self._check(part, images, targets)
            arrays[f"{part}_inputs"] = np.ascontiguousarray(self.geometry.apply_all(images))
            arrays[f"{part}_targets"] = np.ascontiguousarray(targets, dtype=np.int64)
        return Decoded(arrays, self.content(root))

    def _check(self, part: str, images: np.ndarray, targets: np.ndarray) -> None:
        count = self.facts.train if part == "train" else self.facts.test
        wanted = (count, *self.facts.shape)
        if images.shape != wanted or images.dtype != np.uint8 or targets.shape != (count,):
            raise IntegrityError(
                f"task {self.registered_name!r}: the {part} files hold images {images.shape} of {images.dtype} and "
                f"targets {targets.shape}, published are uint8 images {wanted}; fetch them again"
            )
        if targets.min() < 0 or targets.max() >= self.facts.classes:
            raise IntegrityError(
                f"task {self.registered_name!r}: the {part} files have targets {targets.min()} to {targets.max()}, "
                f"published are 0 to {self.facts.classes - 1}; fetch them again"
            )

    def _problem(self, message: str) -> UserError:
        return UserError(f"task {self.registered_name!r}: {message}")


@dataclass(frozen=True, kw_only=True)
class ColourImageTask(ImageTask):
    """Images published in colour; ``greyscale`` makes them one channel of luma before everything else."""

    greyscale: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.greyscale, self.size, self.crop)
