"""STL-10, its labelled part: 5,000 + 8,000 colour images of 96x96 (Coates et al. 2011)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import ColourImageTask, Count, Images, Published
from zoogen.tasks.sources import Source, parsing, read_members


@TASKS.register("stl10")
@dataclass(frozen=True, kw_only=True)
class Stl10(ColourImageTask):
    """Ten classes of animals and vehicles, taken from ImageNet."""

    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "stl10_binary.tar.gz",
            "91f7769df0f17e558f3565bffb0c7dfb",
            ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
            members=(
                ("stl10_binary/train_X.bin", "918c2871b30a85fa023e0c44e0bee87f"),
                ("stl10_binary/train_y.bin", "5a34089d4802c674881badbb80307741"),
                ("stl10_binary/test_X.bin", "7f263ba9f9e0b06b93213547f721ac82"),
                ("stl10_binary/test_y.bin", "36f9794fa4beb8a2c72628de14fa638e"),
            ),
        ),
    )
    published: ClassVar[Published] = Published(train=5_000, test=8_000, shape=(3, 96, 96), classes=10)

    val: Count = 800

    def read(self, root: Path) -> Mapping[str, Images]:
        (source,) = self.sources
        train_x, train_y, test_x, test_y = read_members(source, root).values()
        with parsing(source.path):
            return {"train": (_images(train_x), _targets(train_y)), "test": (_images(test_x), _targets(test_y))}


def _images(data: bytes) -> np.ndarray:
    # Column by column within a channel.
    return np.frombuffer(data, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)


def _targets(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).astype(np.int64) - 1  # labels are 1..10
