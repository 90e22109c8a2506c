"""``shard.json``: what a sealed shard is; every file with size and digest, every dataset with dtype and shape."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError
from zoogen.core.regular import read_regular
from zoogen.store import FORMAT_VERSION
from zoogen.store.compact import PLACES, VALUES
from zoogen.store.durable import checked_name, parse_json

SHARD_FILE = "shard.json"
WEIGHTS_FILE = "weights.h5"
OPTIMIZER_FILE = "optimizer.h5"
MODELS_FILE = "models.parquet"
CHECKPOINTS_FILE = "checkpoints.parquet"
REQUIRED_FILES = frozenset({WEIGHTS_FILE, MODELS_FILE, CHECKPOINTS_FILE})

# How torch dtypes lie on disk. NumPy has no bfloat16 or float8: their bits are kept as unsigned integers.
DISK_DTYPES = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("float64", "float32", "float16")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("int64", "int32", "int16", "int8")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("uint64", "uint32", "uint16", "uint8")},
    "bool": np.dtype("uint8"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3fn": np.dtype("uint8"),
    "float8_e5m2": np.dtype("uint8"),
}

_MOST_BYTES = 16 << 20

Dataset = tuple[np.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 (hex) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo:
    """A sealed shard.

    Attributes:
        shard_id, cohort_id, layout_id: As planned.
        first, last: Its segment of epochs, inclusive.
        epochs: Epochs it has rows of, ascending.
        models: Models of its cohort.
        states: Rows of ``weights``.
        parameters: Columns of ``weights``.
        diverged: Models of the cohort that diverged up to ``last``.
        files: By name; ``shard.json`` itself is not among them.
        datasets: dtype and shape of every HDF5 dataset, by file and name.
        software: Versions of the libraries that wrote it.
    """

    shard_id: str
    cohort_id: str
    layout_id: str
    first: int
    last: int
    epochs: tuple[int, ...]
    models: int
    states: int
    parameters: int
    diverged: int
    files: Mapping[str, FileInfo]
    datasets: Mapping[str, Mapping[str, Dataset]]
    software: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Digest of the contents: equal for shards whose files are equal byte for byte."""
        return digest(canonical_json({name: file.sha256 for name, file in self.files.items()}))

    @property
    def size(self) -> int:
        """Bytes of all files but the optimizer states, which count apart."""
        return sum(file.size for name, file in self.files.items() if name != OPTIMIZER_FILE)

    def to_bytes(self) -> bytes:
        """The text of ``shard.json``: canonical, with a digest of its own."""
        body = {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            "epochs": list(self.epochs),
            "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()},
            "datasets": {
                file: {
                    name: {"dtype": _dtype_name(dtype), "shape": list(shape)} for name, (dtype, shape) in sets.items()
                }
                for file, sets in self.datasets.items()
            },
            "software": dict(self.software),
        }
        return _dump({**body, "digest": digest(canonical_json(body))})


_PLAIN = (
    "shard_id",
    "cohort_id",
    "layout_id",
    "first",
    "last",
    "models",
    "states",
    "parameters",
    "diverged",
)


def read_shard_info(folder: Path) -> ShardInfo:
    """Parse ``folder/shard.json`` and check it against itself: digest, format version, types, plausible numbers.

    Raises:
        IntegrityError: any of it is wrong, the file is missing, or the shard or a file of it is a link.
    """
    path = folder / SHARD_FILE
    _refuse_link(folder)
    _refuse_link(path)
    try:
        raw = read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error})") from error
    data = parse_json(path, raw)
    if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
        found = data.get("format_version") if isinstance(data, dict) else None
        raise IntegrityError(f"{path}: format version {found}, this zoogen reads {FORMAT_VERSION}")
    told = data.pop("digest", None)
    try:
        intact = told == digest(canonical_json(data)) and raw == _dump({**data, "digest": told})
        if not intact:
            raise IntegrityError(f"{path}: its text does not match its own digest")
        info = _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"{path}: not a shard description ({error!r})") from error
    if info.shard_id != folder.name:
        raise IntegrityError(f"{path}: describes shard {info.shard_id!r}")
    for name in info.files:
        _refuse_link(folder / name)
    return info


def _refuse_link(path: Path) -> None:
    """What a link leads to can change under its digest, and need not be of the zoo at all."""
    if path.is_symlink():
        raise IntegrityError(f"{path}: is a link; a shard and its files lie in the zoo\ncopy it to this place")


def _parse(data: Mapping[str, Any]) -> ShardInfo:
    for name in ("shard_id", "cohort_id", "layout_id"):
        checked_name(name, data[name])
    numbers = [data[name] for name in ("last", "models", "states", "parameters", "diverged")]
    if any(type(n) is not int or not 0 <= n < 1 << 48 for n in numbers) or type(data["first"]) is not int:
        raise ValueError("numbers out of range")
    files = {checked_file(name): FileInfo(int(f["size"]), str(f["sha256"])) for name, f in data["files"].items()}
    datasets = {
        checked_file(file): {name: (_dtype(d["dtype"]), _shape(d["shape"])) for name, d in sets.items()}
        for file, sets in data["datasets"].items()
    }
    if not set(files) >= REQUIRED_FILES or not {WEIGHTS_FILE} <= set(datasets) <= set(files):
        raise ValueError(f"files {sorted(files)}")
    size = (data["states"], data["parameters"])
    _check_weights(datasets[WEIGHTS_FILE], *size)
    if any(shape[0] != data["states"] for _, shape in datasets[WEIGHTS_FILE].values()):
        raise ValueError("a dataset has another number of states")
    plain = {name: data[name] for name in _PLAIN}
    return ShardInfo(
        **plain, epochs=tuple(map(int, data["epochs"])), files=files, datasets=datasets, software=dict(data["software"])
    )


def _check_weights(datasets: Mapping[str, tuple[np.dtype, tuple[int, ...]]], states: int, parameters: int) -> None:
    numbers = (DISK_DTYPES["float32"], (states, parameters))
    bits = (DISK_DTYPES["uint8"], (states, -(-parameters // 8)))
    if VALUES not in datasets and datasets.get("weights") != numbers:
        raise ValueError("weights are not float32 [states, parameters]")
    if VALUES in datasets and (datasets[VALUES], datasets.get(PLACES)) != (numbers, bits):
        raise ValueError("sparse weights are not float32 [states, parameters] with a bit for each")


def checked_file(name: str) -> str:
    """A file name of a shard: one of those this version writes.

    Raises:
        ValueError: another one.
    """
    if name not in REQUIRED_FILES | {OPTIMIZER_FILE}:
        raise ValueError(f"a shard has no file {name!r}")
    return name


@cache
def software() -> dict[str, str]:
    """Versions of what shapes a shard's bytes."""
    found = {"python": platform.python_version()}
    for name in ("zoogen", "h5py", "numpy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _dump(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _dtype_name(dtype: np.dtype) -> str:
    return f"S{dtype.itemsize}" if dtype.kind == "S" else dtype.name


def _dtype(name: str) -> np.dtype:
    if name in DISK_DTYPES and DISK_DTYPES[name].name == name:
        return DISK_DTYPES[name]
    if name[:1] == "S" and name[1:].isdigit() and 1 <= int(name[1:]) <= 128:
        return np.dtype(f"S{int(name[1:])}")
    raise ValueError(f"unknown dtype {name!r}")


def _shape(sizes: list[int]) -> tuple[int, ...]:
    if (
        len(sizes) not in (1, 2)
        or any(type(n) is not int or not 0 <= n < 1 << 48 for n in sizes)
        or prod(sizes) >= 1 << 60
    ):
        raise ValueError(f"shape {sizes}")
    return tuple(sizes)
