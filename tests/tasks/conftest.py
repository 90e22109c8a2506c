"""Small files in the exact format of each data set, and tasks whose declared facts are theirs."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoogen.core.registry import TASKS
from zoogen.tasks.image_task import Published
from zoogen.tasks.sources import md5


class Fake:
    """One small data set: its files below ``root``, and the pixels and targets that were put into them."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.images: dict[str, np.ndarray] = {}  # uint8 [N, C, H, W]
        self.targets: dict[str, np.ndarray] = {}


def write_idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def python2_pickle(data: np.ndarray, labels: list[int], key: str) -> bytes:
    """A CIFAR batch, opcode by opcode as Python 2 wrote it (protocol 2, byte strings)."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + number(-1) * 2
    dtype += b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
    array += number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(key.encode()) + listed + text(b"data") + array + b"u."


def png(pixels: np.ndarray) -> bytes:
    """A lossless image file from uint8 [C, H, W]."""
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _idx(fake: Fake) -> dict[str, bytes]:
    folder = TASKS.get(fake.name).sources[0].path.split("/")[0]
    return {
        f"{folder}/raw/{file}-{kind}-ubyte.gz": gzip.compress(write_idx(array))
        for part, file in (("train", "train"), ("test", "t10k"))
        for kind, array in (
            ("images-idx3", fake.images[part][:, 0]),
            ("labels-idx1", fake.targets[part].astype(np.uint8)),
        )
    }


def _usps(fake: Fake) -> dict[str, bytes]:
    files = {}
    for part, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        lines = []
        for image, target in zip(fake.images[part], fake.targets[part], strict=True):
            # The middle of the value range that is cut off to this pixel.
            values = (image.reshape(-1) + 0.5) / 255 * 2 - 1
            pairs = " ".join(f"{i}:{value:.4f}" for i, value in enumerate(values, 1))
            lines.append(f"{target + 1} {pairs}\n")
        files[name] = bz2.compress("".join(lines).encode())
    return files


def _svhn(fake: Fake) -> dict[str, bytes]:
    from scipy.io import savemat

    files = {}
    for part in ("train", "test"):
        stream = io.BytesIO()
        labels = np.where(fake.targets[part] == 0, 10, fake.targets[part]).astype(np.uint8)
        savemat(stream, {"X": fake.images[part].transpose(2, 3, 1, 0), "y": labels[:, None]}, do_compression=True)
        files[f"{part}_32x32.mat"] = stream.getvalue()
    return files


def _cifar(fake: Fake) -> dict[str, bytes]:
    (source,) = TASKS.get(fake.name).sources
    key = "labels" if fake.name == "cifar10" else "fine_labels"
    *train, test = [path for path, _ in source.members]
    files = {}
    for path, rows in zip(train, np.array_split(np.arange(len(fake.targets["train"])), len(train)), strict=True):
        images = fake.images["train"][rows].reshape(len(rows), -1)
        files[path] = python2_pickle(images, fake.targets["train"][rows].tolist(), key)
    files[test] = python2_pickle(fake.images["test"].reshape(-1, 3072), fake.targets["test"].tolist(), key)
    return files


def _stl10(fake: Fake) -> dict[str, bytes]:
    files = {}
    for part in ("train", "test"):
        files[f"stl10_binary/{part}_X.bin"] = fake.images[part].transpose(0, 1, 3, 2).tobytes()
        files[f"stl10_binary/{part}_y.bin"] = (fake.targets[part] + 1).astype(np.uint8).tobytes()
    return files


def _eurosat(fake: Fake) -> dict[str, bytes]:
    names = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop"]
    names += ["Residential", "River", "SeaLake"]
    # Sorted by class, as the files of a folder are.
    fake.targets["train"].sort()
    pairs = zip(fake.images["train"], fake.targets["train"], strict=True)
    return {f"2750/{names[t]}/{names[t]}_{i:03}.jpg": png(image) for i, (image, t) in enumerate(pairs)}


def _tiny_imagenet(fake: Fake) -> dict[str, bytes]:
    fake.targets["train"].sort()
    files = {}
    for i, (image, t) in enumerate(zip(fake.images["train"], fake.targets["train"], strict=True)):
        files[f"tiny-imagenet-200/train/n{t:08}/images/n{t:08}_{i:03}.JPEG"] = png(image)
    rows = []
    for i, (image, t) in enumerate(zip(fake.images["test"], fake.targets["test"], strict=True)):
        files[f"tiny-imagenet-200/val/images/val_{i}.JPEG"] = png(image)
        rows.append(f"val_{i}.JPEG\tn{t:08}\t0\t32\t44\t62\n")
    files["tiny-imagenet-200/val/val_annotations.txt"] = "".join(rows).encode()
    return files


# name -> (writer of the files, images in train and test, form of the download)
FORMATS: dict[str, tuple[Callable[[Fake], dict[str, bytes]], int, int]] = {
    "mnist": (_idx, 30, 12),
    "fashion-mnist": (_idx, 30, 12),
    "kmnist": (_idx, 30, 12),
    "usps": (_usps, 24, 11),
    "svhn": (_svhn, 25, 13),
    "cifar10": (_cifar, 25, 11),
    "cifar100": (_cifar, 110, 100),
    "stl10": (_stl10, 14, 11),
    "eurosat": (_eurosat, 40, 0),
    "tiny-imagenet": (_tiny_imagenet, 20, 12),
}


@pytest.fixture
def make_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    """``make_fake(name, unpacked=False)`` writes the files and declares their counts and checksums on the task.

    Only what is declared is replaced: every check of the product stays on.
    """

    def make(name: str, *, unpacked: bool = False) -> Fake:
        cls = TASKS.get(name)
        write, n_train, n_test = FORMATS[name]
        fake = Fake(name, tmp_path / "data")
        classes = 5 if name == "tiny-imagenet" else cls.published.classes
        rng = np.random.default_rng(7)
        for part, n in (("train", n_train), ("test", n_test)):
            if n:
                fake.images[part] = rng.integers(0, 256, (n, *cls.published.shape), dtype=np.uint8)
                fake.targets[part] = np.resize(rng.permutation(classes), n).astype(np.int64)
        files = write(fake)
        (first, *_) = cls.sources
        if first.members or first.folder:
            packed = _tar(files) if first.members else _zip(files)
            members = tuple((path, md5(files[path])) for path, _ in first.members)
            sources = (replace(first, md5=md5(packed), members=members),)
            prefix = "eurosat/" if name == "eurosat" else ""
            on_disk = {f"{prefix}{path}": data for path, data in files.items()} if unpacked else {first.path: packed}
        else:
            sources = tuple(replace(source, md5=md5(files[source.path]), content_md5=None) for source in cls.sources)
            on_disk = files
        for path, data in on_disk.items():
            (fake.root / path).parent.mkdir(parents=True, exist_ok=True)
            (fake.root / path).write_bytes(data)
        monkeypatch.setattr(cls, "sources", sources)
        monkeypatch.setattr(cls, "published", Published(n_train, n_test, cls.published.shape, classes))
        return fake

    return make
