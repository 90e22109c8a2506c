"""Copies, relatives and lineage in a source, found before the first unit; they decide the model split."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoogen.core.canonical import digest
from zoogen.core.errors import IntegrityError
from zoogen.importers.relatives import Comparing, Kin
from zoogen.importers.source import Source, SourceModel
from zoogen.store.durable import read_json, write_file
from zoogen.store.fence import work_folder

_MOST_BYTES = 1 << 28


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
    kept = _read(place, listing, {m.key for m in models})
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


class Root(NamedTuple):
    """What a model goes back to.

    Attributes:
        id: Of that model; of one that is not among the models, the digest of what it is called.
        split_key: What is hashed for the model split.
    """

    id: str
    split_key: str


def roots_of(models: Sequence[SourceModel], ids: Mapping[str, str], kin: Mapping[str, Kin]) -> dict[str, Root]:
    """The root of every model, by key: the first of its family, or the one it goes back to.

    Where others know models by a name, it alone decides the side of the split. So twins and fine-tuned models that were
    published apart from their parents are on the side of these.
    """
    above = {m.key: kin[m.key].family if m.key in kin else m.parent for m in models}
    known_as = {m.key: m.known_as for m in models}
    found = {}
    for key in above:
        root = _oldest(key, above)
        root_id = ids.get(root) or digest(root.encode())
        name = known_as.get(root) or (root.rpartition("/")[2] if known_as[key] and root not in known_as else "")
        found[key] = Root(root_id, digest(name.encode()) if name else root_id)
    return found


def _oldest(key: str, above: Mapping[str, str | None]) -> str:
    line = [key]
    while (up := above.get(line[-1])) is not None:
        if up in line:  # its own family's first, or models that name each other
            return min(line[line.index(up) :])
        line.append(up)
    return line[-1]


def _read(place: Path, listing: str, keys: Collection[str]) -> dict[str, Kin] | None:
    """What an earlier run found; None where it found nothing, or the folder is another's and tells something else."""
    try:
        told = read_json(place, at_most=_MOST_BYTES)
        found = {key: Kin(*kin) for key, kin in told["kin"].items()} if told["listing"] == listing else {}
    except (OSError, IntegrityError, ValueError, TypeError, KeyError, AttributeError):
        return None
    plain = all(
        type(kin.digest) in (str, type(None))
        and type(kin.shared) in (int, float, type(None))
        and type(kin.family) is str
        and kin.family in keys
        for kin in found.values()
    )
    return found if plain and found.keys() == keys else None
