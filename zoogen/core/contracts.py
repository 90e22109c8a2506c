"""What rooms expect of each other's objects. A contract test runs over every registered entry of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from zoogen.core.records import Checkpoint, Cohort, CohortState

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

PartName = Literal["train", "val", "test"]


class Architecture(Protocol):
    """A frozen dataclass in ``ARCHITECTURES``; its fields are the blueprint's keys.

    ``per_model`` names the fields that may differ between models trained together in one cohort, because they change
    neither the shapes nor the program (``init``, ``dropout``). ``runs_code`` marks an architecture whose ``build``
    imports code that the blueprint or the zoo names: whoever opens a zoo must allow it first.
    """

    registered_name: ClassVar[str]
    per_model: ClassVar[frozenset[str]]
    runs_code: ClassVar[bool]

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network, (B, *input_shape) -> (B, outputs); the caller has seeded torch's generator.

        Raises:
            UserError: the arguments do not fit the input shape (a kernel larger than the image, say).
        """
        ...


class Task(Protocol):
    """A frozen dataclass in ``TASKS``: declared facts for the planner, and the way to the data.

    ``version`` is raised when the same data would give other samples, transforms or splits.
    """

    registered_name: ClassVar[str]
    version: ClassVar[int]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the network sees it, e.g. (1, 28, 28)."""
        ...

    @property
    def outputs(self) -> int:
        """Number of classes."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Samples in the train, validation and test part; validation may be 0."""
        ...

    @property
    def source_digest(self) -> str:
        """Digest of the published source files, as declared; needs no data at hand."""
        ...

    def load(self, data_root: Path | None, cache: Path, *, download: bool = False) -> TaskData:
        """Decode once into ``cache`` (memory-mapped, shared by all workers) and return the parts.

        Raises:
            EnvironmentFault: files are missing and cannot be downloaded; the message says what to place where.
            IntegrityError: a file's checksum is not the published one.
        """
        ...


class TaskData(Protocol):
    """A loaded task. Arrays stay memory-mapped; tensors are made on the device that trains."""

    fingerprint: str  # digest of the decoded arrays and the split, compared with what the zoo recorded
    outputs: int

    def size(self, part: PartName) -> int: ...

    def split(self) -> dict[PartName, np.ndarray]:
        """int64 indices into the published train (train, val) and test (test) files."""
        ...

    def tensors(self, part: PartName, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """All inputs (uint8 or float32, [N, *input_shape]) and targets (int64 [N]) of a part, cached per device."""
        ...

    def prepare(self, inputs_B: Tensor) -> Tensor:
        """uint8 [..., *input_shape] -> normalised float32: what the network sees in training and evaluation.

        Any axes may stand before those of a sample (batches of several models, say); a sample depends on itself alone.
        """
        ...

    def augment(self, inputs_KB: Tensor, keys_K: Tensor, steps_K: Tensor) -> Tensor:
        """The train transform of K batches at once, before ``prepare``; random numbers only from ``core.streams``.

        Each batch comes out as it would alone, whatever the others are. Without augmentation the input is handed back.
        Evaluation never calls it.

        Args:
            inputs_KB: [K, B, *input_shape], as ``tensors`` gives them.
            keys_K: int64, the ``augment`` stream key of the model that each batch belongs to.
            steps_K: int64, the optimizer step of each batch, counted from 0.

        Returns:
            The same shape and dtype.
        """
        ...

    def loss(self, outputs_BC: Tensor, targets_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Per-sample loss [B] in nats."""
        ...


class Trainer(Protocol):
    """Trains one cohort epoch by epoch. All trainers honour this contract and compute the same trajectories."""

    def __init__(self, cohort: Cohort, data: TaskData, device: str) -> None:
        """Construct the models in their initial state (epoch 0)."""
        ...

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one model in one epoch."""
        ...

    @property
    def diverged(self) -> Mapping[str, int]:
        """model_id -> first epoch whose loss or weights were not finite."""
        ...

    @property
    def last_finite(self) -> Mapping[str, int]:
        """model_id -> epoch of the state kept, for diverged models."""
        ...

    def train_epoch(self, should_stop: Callable[[], bool]) -> None:
        """Train every living model for one epoch.

        Raises:
            Incomplete: ``should_stop()`` said so between two steps; the models are no longer at an epoch boundary.
        """
        ...

    def state(self) -> CohortState:
        """A copy of everything needed to continue from here."""
        ...

    def restore(self, state: CohortState) -> None:
        """Continue from ``state``: afterwards equal, bit for bit on CPU, to a run that was never interrupted."""
        ...

    def checkpoint(self, model_ids: tuple[str, ...]) -> Checkpoint:
        """Evaluate these models and copy them out; rows in the order asked for.

        The models are all living (their epoch is the trainer's), or all diverged with the same last finite epoch; a
        diverged model stands still in its last finite state and keeps the training metrics of that epoch.
        """
        ...


def describe_task(task: Any) -> dict[str, Any]:
    """Identity of a task: name, version, arguments that differ from their defaults, digest of the source files."""
    from zoogen.core.registry import TASKS

    return {**TASKS.describe(task), "version": task.version, "source": task.source_digest}
