"""MNIST and the data sets in its format: Fashion-MNIST and Kuzushiji-MNIST, 60,000 + 10,000 grey images of 28x28.

LeCun et al. 1998; Xiao et al. 2017 (arXiv:1708.07747); Clanuwat et al. 2018 (arXiv:1812.01718).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import Count, Images, ImageTask, Published
from zoogen.tasks.normalisation import Normalisation
from zoogen.tasks.sources import Source, parsing, read_content

_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _sources(
    folder: str, mirrors: tuple[str, ...], md5s: tuple[str, ...], content: tuple[str | None, ...] = (None,) * 4
) -> tuple[Source, ...]:
    return tuple(
        Source(f"{folder}/raw/{name}.gz", md5, tuple(f"{mirror}{name}.gz" for mirror in mirrors), content_md5)
        for name, md5, content_md5 in zip(_NAMES, md5s, content, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class IdxTask(ImageTask):
    """Four IDX files: images and labels of the training and the test part, in the order of ``_NAMES``."""

    published: ClassVar[Published] = Published(train=60_000, test=10_000, shape=(1, 28, 28), classes=10)

    val: Count = 10_000

    def read(self, root: Path) -> Mapping[str, Images]:
        arrays = []
        for source in self.sources:
            with parsing(source.path):
                arrays.append(parse_idx(read_content(source, root)))
        return {"train": (arrays[0][:, None], arrays[1]), "test": (arrays[2][:, None], arrays[3])}


def parse_idx(data: bytes) -> np.ndarray:
    """An IDX file of unsigned bytes: 0, 0, type 8, number of dimensions, big-endian sizes, values.

    Raises:
        ValueError: it is not one, or is shorter or longer than it says.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes (it starts with {data[:4].hex()})")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


@TASKS.register("mnist")
@dataclass(frozen=True, kw_only=True)
class Mnist(IdxTask):
    """Handwritten digits."""

    sources: ClassVar[tuple[Source, ...]] = _sources(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    )

    normalise: Normalisation = "mnist"


@TASKS.register("fashion-mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMnist(IdxTask):
    """Pictures of clothes."""

    sources: ClassVar[tuple[Source, ...]] = _sources(
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    )


@TASKS.register("kmnist")
@dataclass(frozen=True, kw_only=True)
class Kmnist(IdxTask):
    """Cursive Japanese characters."""

    sources: ClassVar[tuple[Source, ...]] = _sources(
        "KMNIST",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    )
