"""Is a sealed shard what was sealed? Every file, every digest, and that its tables and its weights tell the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoogen.core.errors import IntegrityError
from zoogen.store.durable import sha256
from zoogen.store.shard_info import (
    CHECKPOINTS_FILE,
    MODELS_FILE,
    OPTIMIZER_FILE,
    SHARD_FILE,
    WEIGHTS_FILE,
    ShardInfo,
    read_shard_info,
)
from zoogen.store.stack_file import StackFile
from zoogen.store.tables import read_parquet

CHECKPOINT_COLUMNS = {"model_id": pa.string(), "epoch": pa.int32(), "shard_id": pa.string(), "row": pa.int32()}
MODEL_COLUMNS = {
    "model_id": pa.string(),
    "status": pa.string(),
    "diverged_epoch": pa.int32(),
    "last_finite_epoch": pa.int32(),
}


def problems_of(folder: Path, *, deep: bool = True) -> list[tuple[str, str]]:
    """What is wrong with a shard, as (file, problem); empty when it is intact.

    Args:
        folder: The shard's folder.
        deep: Also read every byte and compare digests, and the tables with the weights.
    """
    try:
        info = read_shard_info(folder)
    except IntegrityError as error:
        return [(SHARD_FILE, str(error))]
    names = {path.name for path in folder.iterdir()}
    found = [(name, "does not belong to the shard") for name in sorted(names - {SHARD_FILE, *info.files})]
    for name, file in info.files.items():
        path = folder / name
        if not path.is_file():
            found.append((name, "is missing"))
        elif path.stat().st_size != file.size:
            found.append((name, f"has {path.stat().st_size} bytes, sealed were {file.size}"))
        elif deep and sha256(path) != file.sha256:
            found.append((name, "is damaged: its SHA-256 is not the sealed one"))
    if deep and not found:
        found += _contradictions(folder, info)
    return found


def read_shard_checkpoints(folder: Path, info: ShardInfo) -> pa.Table:
    """``checkpoints.parquet`` of a shard: one row per state, in the order of ``weights``.

    Raises:
        IntegrityError: damaged, or not a table of this shard.
    """
    path = folder / CHECKPOINTS_FILE
    try:
        table = read_parquet(path, CHECKPOINT_COLUMNS)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing") from error
    rows = np.arange(info.states)
    if table.num_rows != info.states or not np.array_equal(table["row"].to_numpy(), rows):
        raise IntegrityError(f"{path}: its rows are not the {info.states} states of the shard")
    if info.states and pc.unique(table["shard_id"]).to_pylist() != [info.shard_id]:
        raise IntegrityError(f"{path}: names another shard")
    return table


def read_shard_models(folder: Path, info: ShardInfo) -> pa.Table:
    """``models.parquet`` of a shard: one row per model of the cohort.

    Raises:
        IntegrityError: damaged, or not a table of this shard.
    """
    path = folder / MODELS_FILE
    try:
        table = read_parquet(path, MODEL_COLUMNS, nullable=("diverged_epoch", "last_finite_epoch"))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing") from error
    if table.num_rows != info.models or len(pc.unique(table["model_id"])) != info.models:
        raise IntegrityError(f"{path}: its rows are not the {info.models} models of the shard")
    return table


def _contradictions(folder: Path, info: ShardInfo) -> list[tuple[str, str]]:
    """Do weights, optimizer states and tables name the same (model, epoch)?"""
    found = []
    try:
        checkpoints = read_shard_checkpoints(folder, info)
        models = read_shard_models(folder, info)
        keys = list(zip(checkpoints["model_id"].to_pylist(), checkpoints["epoch"].to_pylist(), strict=True))
        if not {m for m, _ in keys} <= set(models["model_id"].to_pylist()):
            found.append((CHECKPOINTS_FILE, "names models that the shard does not have"))
        if len(set(keys)) < len(keys) or {e for _, e in keys} != set(info.epochs):
            found.append((CHECKPOINTS_FILE, "a (model, epoch) stands twice, or epochs are not those of the shard"))
        for name in (n for n in (WEIGHTS_FILE, OPTIMIZER_FILE) if n in info.files):
            with StackFile(folder / name, info.datasets[name]) as file:
                ids = [m.decode() for m in file.read("model_id").tolist()]
                stored = list(zip(ids, file.read("epoch").tolist(), strict=True))
            if stored != keys if name == WEIGHTS_FILE else not set(stored) <= set(keys):
                found.append((name, "its rows are not those of checkpoints.parquet"))
    except (IntegrityError, KeyError, UnicodeDecodeError) as error:
        found.append((SHARD_FILE, f"its files do not fit it: {error}"))
    return found
