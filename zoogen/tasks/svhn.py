"""SVHN, cropped digits: 73,257 + 26,032 colour images of 32x32 (Netzer et al. 2011); the extra set is not used."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import ColourImageTask, Count, Images, Published
from zoogen.tasks.sources import Source, parsing, read_content

_URL = "http://ufldl.stanford.edu/housenumbers/"


@TASKS.register("svhn")
@dataclass(frozen=True, kw_only=True)
class Svhn(ColourImageTask):
    """House numbers."""

    sources: ClassVar[tuple[Source, ...]] = (
        Source("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", (f"{_URL}train_32x32.mat",)),
        Source("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", (f"{_URL}test_32x32.mat",)),
    )
    published: ClassVar[Published] = Published(train=73_257, test=26_032, shape=(3, 32, 32), classes=10)

    val: Count = 13_257

    def read(self, root: Path) -> Mapping[str, Images]:
        parts = {}
        for part, source in zip(("train", "test"), self.sources, strict=True):
            with parsing(source.path):
                parts[part] = _parse(read_content(source, root))
        return parts


def _parse(data: bytes) -> Images:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(io.BytesIO(data), variable_names=["X", "y"])
    except (MatReadError, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    # X is [H, W, C, N]; the label of a zero is 10.
    return found["X"].transpose(3, 2, 0, 1), found["y"].reshape(-1).astype(np.int64) % 10
