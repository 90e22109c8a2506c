"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8, no download.

UCI repository, test part of Alpaydin & Kaynak 1998.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import Count, Images, ImageTask, Published
from zoogen.tasks.sources import Source, md5


@TASKS.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(ImageTask):
    """Published in one piece: ``val`` and ``test`` samples are cut from it at random."""

    # The checksum is of the pixel values 0..16 and the targets, as bytes: it does not depend on how they are packed.
    sources: ClassVar[tuple[Source, ...]] = (Source("scikit-learn/digits", "7696c07daa6d85010f8268703ab8b067"),)
    published: ClassVar[Published] = Published(train=1_797, test=0, shape=(1, 8, 8), classes=10)

    val: Count = 270
    test: Count = 270

    def fetch(self, root: Path, download: bool) -> None:
        """Nothing to do: the images are part of the installed package."""

    def read(self, root: Path) -> Mapping[str, Images]:
        from sklearn.datasets import load_digits

        found = load_digits()
        pixels = found.images.astype(np.uint8)
        (source,) = self.sources
        actual = md5(pixels.tobytes() + found.target.astype(np.uint8).tobytes())
        if actual != source.md5:
            raise IntegrityError(
                f"scikit-learn's digits have md5 {actual}, expected {source.md5}; install scikit-learn again"
            )
        # 0..16 -> 0..255, so that every image task has the same pixel range.
        images = ((pixels.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
        return {"train": (images[:, None], found.target.astype(np.int64))}
