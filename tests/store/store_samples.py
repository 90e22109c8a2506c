"""A small zoo for tests: layout, cohort, checkpoints with every kind of array, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from zoogen.core.layout import Entry, Layout
from zoogen.core.records import Checkpoint, Cohort, CohortState, Job, Recording, Seeds, Segment
from zoogen.store.cohorts import CohortRecord
from zoogen.store.read import ShardReader
from zoogen.store.shard import seal_shard, shards_folder
from zoogen.store.shard_info import ShardInfo
from zoogen.store.zoo import ZooFolder

CLASSES = 3
SAMPLES = 40


def make_layout(parameters: int = 21) -> Layout:
    """A weight, a bias, an integer counter and a half-precision buffer."""
    return Layout(
        (
            Entry("fc.weight", "weight", "Linear", (parameters - 1,), "float32", 0, 0, True),
            Entry("fc.bias", "bias", "Linear", (1,), "float32", parameters - 1, 0, True),
            Entry("bn.num_batches_tracked", "running_statistic", "BatchNorm1d", (), "int64", 0, 1, False),
            Entry("scale", "buffer", "Scale", (2,), "bfloat16", 0, 2, False),
        )
    )


def make_cohort(
    layout: Layout,
    models: int = 4,
    epochs: int = 6,
    segments: tuple[tuple[int, int], ...] = ((0, 2), (3, 4), (5, 6)),
    name: str = "c0",
    checkpoint_epochs: tuple[int, ...] | None = None,
) -> Cohort:
    seeds = Seeds(0, 0, 0, 0)
    jobs = tuple(Job(f"{name}{i:030x}", None, None, None, seeds) for i in range(models))  # type: ignore[arg-type]
    return Cohort(
        cohort_id=name,
        jobs=jobs,
        epochs=epochs,
        recording=Recording(checkpoint_epochs or tuple(range(epochs + 1)), "last", True),
        segments=tuple(Segment(f"{name}-s{i}", first, last) for i, (first, last) in enumerate(segments)),
        layout_id=layout.layout_id,
    )


def make_checkpoint(
    cohort: Cohort, layout: Layout, epoch: int, model_ids: tuple[str, ...] | None = None, *, optimizer: bool = False
) -> Checkpoint:
    """Rows that depend on (model, epoch) only, as those of a real trainer."""
    ids = cohort.model_ids if model_ids is None else model_ids
    places = [cohort.model_ids.index(m) for m in ids]
    rngs = [np.random.default_rng([place, epoch]) for place in places]
    weights = np.stack([r.standard_normal(layout.parameters, dtype=np.float32) for r in rngs]) if ids else None
    if weights is None:
        weights = np.empty((0, layout.parameters), np.float32)
    rows = len(ids)
    return Checkpoint(
        epoch=epoch,
        model_ids=ids,
        weights=weights,
        side={
            "int64": np.full((rows, 1), epoch * 10, np.int64),
            "bfloat16": (weights[:, :2].view(np.uint32) >> 16).astype(np.uint16),
        },
        metrics={
            "train_loss": np.array([p + epoch / 7 for p in places]),
            "train_acc": np.array([min(1.0, epoch / 8) for _ in places]),
            "val_acc": np.full(rows, np.nan),
            "test_acc": np.array([epoch / 10 for _ in places]),
            "test_acc_per_class": np.array([[epoch / 10 + c for c in range(CLASSES)] for _ in places]).reshape(
                rows, CLASSES
            ),
        },
        optimizer={
            "exp_avg": weights * 2,
            "step": np.full((rows, 1), epoch, np.int64),
        }
        if optimizer
        else {},
        predictions=np.stack([r.integers(0, CLASSES, SAMPLES, dtype=np.uint8) for r in rngs])
        if ids
        else np.empty((0, SAMPLES), np.uint8),
    )


def make_state(cohort: Cohort, layout: Layout, epoch: int, **diverged: dict[str, int]) -> CohortState:
    checkpoint = make_checkpoint(cohort, layout, epoch, optimizer=epoch > 0)
    return CohortState(
        epoch=epoch,
        model_ids=cohort.model_ids,
        weights=checkpoint.weights,
        side=checkpoint.side,
        optimizer=checkpoint.optimizer,
        training_metrics={"train_loss": checkpoint.metrics["train_loss"]} if epoch else {},
        **diverged,
    )


@dataclass
class Sample:
    folder: ZooFolder
    layout: Layout
    cohort: Cohort
    token: str

    @classmethod
    def make(cls, path: Path, cohorts: int = 1, **of_cohort: object) -> Sample:
        """A zoo whose plan holds ``cohorts`` cohorts and one model without a cohort."""
        layout = make_layout()
        made = [make_cohort(layout, name=f"c{i}", **of_cohort) for i in range(cohorts)]  # type: ignore[arg-type]
        folder = ZooFolder(path)
        folder.create({"name": "sample", "version": 1, "layouts": {layout.layout_id: layout.to_json()}})
        folder.write_cohorts([record_of(c) for c in made])
        ids = [m for c in made for m in c.model_ids]
        folder.write_plan(
            pd.DataFrame(
                {
                    "model_id": [*ids, "f" * 32],
                    "split": "train",
                    "cohort_id": [*(c.cohort_id for c in made for _ in c.model_ids), None],
                    "training.optimizer.lr": [10.0 ** -(i % 3 + 1) for i in range(len(ids) + 1)],
                }
            )
        )
        return cls(folder, layout, made[0], folder.new_token())

    @property
    def path(self) -> Path:
        return self.folder.path

    def checkpoints(self, segment: int, cohort: Cohort | None = None, keep: str = "all") -> list[Checkpoint]:
        cohort = cohort or self.cohort
        part = cohort.segments[segment]
        return [
            make_checkpoint(cohort, self.layout, e, optimizer=keep == "all" and e == cohort.epochs)
            for e in cohort.recording.epochs
            if part.first <= e <= part.last
        ]

    def seal(self, segment: int, cohort: Cohort | None = None, **kwargs: object) -> ShardInfo:
        cohort = cohort or self.cohort
        state = make_state(cohort, self.layout, cohort.segments[segment].last)
        options = {"token": self.token, "state": state, **kwargs}
        checkpoints = options.pop("checkpoints", None)
        if checkpoints is None:
            checkpoints = self.checkpoints(segment, cohort)
        return seal_shard(self.path, cohort.segments[segment].shard_id, cohort, self.layout, checkpoints, **options)  # type: ignore[arg-type]

    def seal_all(self) -> None:
        for segment in range(len(self.cohort.segments)):
            self.seal(segment)


def record_of(cohort: Cohort) -> CohortRecord:
    return CohortRecord(
        cohort.cohort_id,
        cohort.layout_id,
        cohort.model_ids,
        cohort.epochs,
        cohort.recording.epochs,
        cohort.segments,
        {"optimizer": "last"},
    )


def read_weights(zoo: Path, shard_id: str, rows=None, columns=None) -> np.ndarray:
    """Some rows and columns of one sealed shard."""
    with ShardReader(shards_folder(zoo) / shard_id) as shard:
        return shard.weights(rows, columns)
