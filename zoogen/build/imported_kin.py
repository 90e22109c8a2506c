"""Copies and relatives in a source, found before the first unit and kept for a resume; they decide the model split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoogen.importers.relatives import Comparing, Kin
from zoogen.importers.source import Source, SourceModel
from zoogen.store.durable import write_file
from zoogen.store.fence import work_folder


def find_kin(
    source: Source, models: Sequence[SourceModel], zoo: Path, listing: str, tell: Callable[[str], None]
) -> Mapping[str, Kin]:
    """By key of a model; empty for sources that do not compare their models.

    Args:
        source, models: What is imported.
        zoo: Its folder; a file in ``.work`` keeps what was found.
        listing: Digest of what the source lists, of which a kept file must be.
        tell: Is told before all tensors are read.
    """
    if not isinstance(source, Comparing):
        return {}
    place = work_folder(zoo) / "import" / "kin.json"
    kept = _read(place, listing)
    if kept is not None:
        return kept
    tell(f"comparing the tensors of {len(models):,} models")
    found = source.kin(models)
    place.parent.mkdir(parents=True, exist_ok=True)
    told = {key: [kin.digest, kin.shared, kin.family] for key, kin in found.items()}
    write_file(place, json.dumps({"listing": listing, "kin": told}).encode())
    return found


def kin_columns(models: Sequence[SourceModel], kin: Mapping[str, Kin]) -> dict[str, Any]:
    """``source.digest``, ``source.shared`` and ``source.family`` of the plan; none where nothing was compared."""
    import pandas as pd

    if not kin:
        return {}
    own = [kin[m.key] for m in models]
    return {
        "source.digest": pd.array([k.digest for k in own], dtype="str"),
        "source.shared": np.array([np.nan if k.shared is None else k.shared for k in own], np.float64),
        "source.family": pd.array([k.family for k in own], dtype="str"),
    }


def root_of(model: SourceModel, kin: Mapping[str, Kin]) -> str:
    """Key of the model on whose side of the split this one is."""
    return kin[model.key].family if model.key in kin else model.parent or model.key


def _read(place: Path, listing: str) -> dict[str, Kin] | None:
    try:
        told = json.loads(place.read_bytes())
        return {key: Kin(*kin) for key, kin in told["kin"].items()} if told["listing"] == listing else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
