"""EuroSAT, RGB: 27,000 satellite images of 64x64 in ten classes of land use (Helber et al. 2019, arXiv:1709.00029)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.core.registry import TASKS
from zoogen.tasks.geometry import Geometry
from zoogen.tasks.image_task import ColourImageTask, Count, Images, Published
from zoogen.tasks.pictures import decode_all, open_tree
from zoogen.tasks.sources import Source

_URL = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"


@TASKS.register("eurosat")
@dataclass(frozen=True, kw_only=True)
class EuroSat(ColourImageTask):
    """Published in one piece: ``val`` and ``test`` samples are cut from it at random."""

    sources: ClassVar[tuple[Source, ...]] = (
        Source("eurosat/EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", (_URL,), folder="eurosat/2750"),
    )
    published: ClassVar[Published] = Published(train=27_000, test=0, shape=(3, 64, 64), classes=10)

    val: Count = 5_400
    test: Count = 5_400

    def read(self, root: Path) -> Mapping[str, Images]:
        (source,) = self.sources
        with open_tree(source, root) as tree:
            names = tree.pictures()
            classes = sorted({name.partition("/")[0] for name in names})
            if (len(names), len(classes)) != (self.published.train, self.published.classes):
                raise IntegrityError(
                    f"{tree.place} holds {len(names)} images of {len(classes)} classes, published are "
                    f"{self.published.train} of {self.published.classes}; unpack {source.path} again"
                )
            targets = np.array([classes.index(name.partition("/")[0]) for name in names], np.int64)
            return {"train": (decode_all(tree, names, self.published.shape, Geometry()), targets)}
