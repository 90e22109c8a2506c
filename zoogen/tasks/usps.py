"""USPS: 7,291 + 2,007 handwritten digits from envelopes, grey images of 16x16 (Hull 1994), as LibSVM text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import Count, Images, ImageTask, Published
from zoogen.tasks.normalisation import Normalisation
from zoogen.tasks.sources import Source, parsing, read_content

_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"


@TASKS.register("usps")
@dataclass(frozen=True, kw_only=True)
class Usps(ImageTask):
    """Handwritten digits."""

    # The content checksums are of LibSVM text made from the data files of The Elements of Statistical Learning. Either
    # is accepted; the data's fingerprint is of the pixels, so it tells whether they differ.
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "usps.bz2",
            "ec16c51db3855ca6c91edd34d0e9b197",
            (f"{_URL}usps.bz2",),
            content_md5="f240ae7d79008b4ff3d7f81ad7ad5b84",
        ),
        Source(
            "usps.t.bz2",
            "8ea070ee2aca1ac39742fdd1ef5ed118",
            (f"{_URL}usps.t.bz2",),
            content_md5="46e6a1849790aab24e53a030ce313f8b",
        ),
    )
    published: ClassVar[Published] = Published(train=7_291, test=2_007, shape=(1, 16, 16), classes=10)

    val: Count = 1_291
    normalise: Normalisation = "mnist"

    def read(self, root: Path) -> Mapping[str, Images]:
        parts = {}
        for part, source in zip(("train", "test"), self.sources, strict=True):
            with parsing(source.path):
                parts[part] = parse_libsvm(read_content(source, root).decode("ascii"))
        return parts


def parse_libsvm(text: str) -> Images:
    """Lines ``label 1:value ... 256:value``, labels 1..10, values -1..1 -> pixels 0..255 and targets 0..9.

    Raises:
        ValueError: a line has another form.
    """
    rows = [line.split() for line in text.splitlines()]
    targets = np.array([int(row[0]) for row in rows], np.int64) - 1
    values = np.array([[pair.partition(":")[2] for pair in row[1:]] for row in rows], np.float32)
    # In float32 and cut off, not rounded: the pixels of torchvision's USPS.
    pixels = ((values + 1) / 2 * 255).astype(np.uint8)
    return pixels.reshape(-1, 1, 16, 16), targets
