"""Tiny ImageNet: 200 classes, 100,000 colour images of 64x64; its 10,000 validation images are the test part.

The published test images have no labels (Stanford CS231n, 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.core.registry import TASKS
from zoogen.tasks.geometry import Geometry
from zoogen.tasks.image_task import ColourImageTask, Images, Published
from zoogen.tasks.normalisation import Normalisation
from zoogen.tasks.pictures import Tree, decode_all, open_tree
from zoogen.tasks.sources import Source, parsing


@TASKS.register("tiny-imagenet")
@dataclass(frozen=True, kw_only=True)
class TinyImageNet(ColourImageTask):
    """Classes in the order of their sorted WordNet ids."""

    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            folder="tiny-imagenet-200",
        ),
    )
    published: ClassVar[Published] = Published(train=100_000, test=10_000, shape=(3, 64, 64), classes=200)

    normalise: Normalisation = "imagenet"

    def read(self, root: Path) -> Mapping[str, Images]:
        (source,) = self.sources
        with open_tree(source, root) as tree:
            train = tree.pictures("train/")  # train/<class>/images/<name>.JPEG
            classes = sorted({name.split("/")[1] for name in train})
            rank = {name: i for i, name in enumerate(classes)}
            test = _annotations(tree)
            found = (len(train), len(test), len(classes))
            wanted = (self.published.train, self.published.test, self.published.classes)
            if found != wanted or not set(test.values()) <= rank.keys():
                raise IntegrityError(
                    f"{tree.place} holds {found[0]} training and {found[1]} validation images of {found[2]} classes, "
                    f"published are {wanted[0]} and {wanted[1]} of {wanted[2]}; unpack {source.path} again"
                )
            targets = np.array([rank[name.split("/")[1]] for name in train], np.int64)
            test_targets = np.array([rank[name] for name in test.values()], np.int64)
            return {
                "train": (decode_all(tree, train, self.published.shape, Geometry()), targets),
                "test": (decode_all(tree, list(test), self.published.shape, Geometry()), test_targets),
            }


def _annotations(tree: Tree) -> dict[str, str]:
    """Class by image name of the validation part, in the order of ``val_annotations.txt``."""
    path = "val/val_annotations.txt"
    if path not in tree.names:
        raise IntegrityError(f"{tree.place} has no {path}; unpack the archive again")
    with parsing(f"{tree.place}/{path}"):
        rows = [line.split() for line in tree.read(path).decode().splitlines() if line.strip()]
        return {f"val/images/{row[0]}": row[1] for row in rows}
