"""How far a build is, from the files of a zoo; works while it is being built."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoogen.build.ledger import Failures
from zoogen.store.fence import builder_of
from zoogen.store.work import unfinished_epochs
from zoogen.store.zoo import ZooFolder


@dataclass(frozen=True)
class Status:
    """Models by what is on disk now.

    Attributes:
        by_status: stored (all segments sealed), training (a cohort with kept work or some shards), planned, failed.
        unfinished: (cohort id, epoch reached, epochs, models) of cohorts with kept work.
        failed: model_id -> reason of its last attempt.
        builder: Who builds the zoo now, if anyone does.
    """

    name: str
    version: int
    models: int
    by_status: dict[str, int]
    shards: int
    sealed: int
    unfinished: tuple[tuple[str, int, int, int], ...]
    failed: dict[str, str]
    builder: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_status(path: Path) -> Status:
    """Count what is there.

    Raises:
        UserError: there is no zoo.
        IntegrityError: its plan is damaged.
    """
    folder = ZooFolder(path)
    manifest = folder.manifest()
    sealed = set(folder.sealed())
    records = folder.read_cohorts()
    planned = folder.plan_table().num_rows
    failed = Failures(path).reasons
    reached = unfinished_epochs(path)
    kinds: dict[str, str] = {}
    shards = [s.shard_id for r in records for s in r.segments]
    for record in records:
        left = [s for s in record.segments if s.shard_id not in sealed]
        begun = record.cohort_id in reached or len(left) < len(record.segments)
        kind = "stored" if not left else "training" if begun else "planned"
        kinds |= dict.fromkeys(record.model_ids, kind)
    kinds |= {m: "failed" for m in failed if kinds.get(m) != "stored"}
    counts = Counter(kinds.values())
    counts["planned"] += planned - len(kinds)
    return Status(
        manifest["name"],
        manifest["version"],
        planned,
        {kind: counts[kind] for kind in ("stored", "training", "planned", "failed")},
        len(shards),
        len(sealed.intersection(shards)),
        tuple(
            (r.cohort_id, reached[r.cohort_id], r.epochs, len(r.model_ids)) for r in records if r.cohort_id in reached
        ),
        {m: r for m, r in failed.items() if kinds.get(m) == "failed"},
        builder_of(path),
    )
