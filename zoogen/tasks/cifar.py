"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import ColourImageTask, Count, Images, Published
from zoogen.tasks.normalisation import Normalisation
from zoogen.tasks.pickled_batch import read_batch
from zoogen.tasks.sources import Source, parsing, read_members


@dataclass(frozen=True, kw_only=True)
class CifarTask(ColourImageTask):
    """Pickled batches of rows of 3,072 bytes; the last batch is the test part."""

    labels: ClassVar[str]

    def read(self, root: Path) -> Mapping[str, Images]:
        (source,) = self.sources
        parts = []
        for path, data in read_members(source, root).items():
            with parsing(path):
                batch = read_batch(data)
                parts.append((batch["data"].reshape(-1, 3, 32, 32), np.array(batch[self.labels], np.int64)))
        *train, test = parts
        return {"train": (np.concatenate([p[0] for p in train]), np.concatenate([p[1] for p in train])), "test": test}


@TASKS.register("cifar10")
@dataclass(frozen=True, kw_only=True)
class Cifar10(CifarTask):
    """Ten classes of animals and vehicles."""

    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            members=(
                ("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f"),
                ("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                ("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                ("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a"),
                ("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
                ("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e"),
            ),
        ),
    )
    published: ClassVar[Published] = Published(train=50_000, test=10_000, shape=(3, 32, 32), classes=10)
    labels: ClassVar[str] = "labels"

    val: Count = 8_000


@TASKS.register("cifar100")
@dataclass(frozen=True, kw_only=True)
class Cifar100(CifarTask):
    """A hundred fine classes."""

    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            members=(
                ("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d"),
                ("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ),
        ),
    )
    published: ClassVar[Published] = Published(train=50_000, test=10_000, shape=(3, 32, 32), classes=100)
    labels: ClassVar[str] = "fine_labels"

    val: Count = 10_000
    normalise: Normalisation = "cifar100"
