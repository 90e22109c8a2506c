"""How a model is trained: the part of a job that, with architecture, task and seeds, determines its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from zoogen.core.registry import OPTIMIZERS, SCHEDULES, SPARSIFIERS


@dataclass(frozen=True)
class Training:
    """One stage of training.

    Attributes:
        epochs: Passes over the task's training part.
        batch_size: Samples per optimizer step; the last, smaller batch of an epoch is used too.
        optimizer: An entry of ``OPTIMIZERS`` (its fields are the blueprint's keys: lr, weight_decay, momentum, ...).
        schedule: An entry of ``SCHEDULES``; sized in optimizer steps, stepped once per optimizer step.
        label_smoothing: Share of the target spread over all classes, as ``torch.nn.functional.cross_entropy``.
        clip_norm: Scale gradients down to this L2 norm (all parameters together) where they exceed it.
        micro_batch: Samples per backward pass; gradients of ``batch_size / micro_batch`` passes are averaged by samples
            before one optimizer step. Changes memory, and batch-norm statistics, not the number of steps.
        precision: ``float32``; ``tf32`` matrix products; or automatic mixed precision in ``bfloat16``/``float16``
            (weights and optimizer stay float32; float16 scales the loss).
        sparsify: An entry of ``SPARSIFIERS``: which weights are removed before and while it trains; None: none. No key
            of a blueprint: twin recipes set it.
    """

    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    optimizer: Any
    schedule: Any
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    clip_norm: Annotated[float, Gt(0)] | None = None
    micro_batch: Annotated[int, Ge(1)] | None = None
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    sparsify: Any = field(default=None, metadata={"blueprint": False})

    per_model: ClassVar[frozenset[str]] = frozenset({"label_smoothing"})
    """Fields that may differ between models trained together in one cohort."""

    def identity(self) -> dict[str, Any]:
        """JSON-able settings that determine the weights: fields at their frozen defaults are left out.

        ``epochs`` enters only where it shapes the run: under a constant schedule a longer run is the same model,
        continued (design, section 4). Each field stands for itself, so that ids of a grid can be put together from
        parts hashed once.
        """
        found: dict[str, Any] = {
            "batch_size": self.batch_size,
            "optimizer": OPTIMIZERS.describe(self.optimizer),
            "schedule": SCHEDULES.describe(self.schedule),
        }
        if self.schedule.shaped_by_epochs or (self.sparsify is not None and self.sparsify.shaped_by_epochs):
            found["epochs"] = self.epochs
        if self.sparsify is not None:
            found["sparsify"] = SPARSIFIERS.describe(self.sparsify)
        for name, default in (
            ("label_smoothing", 0.0),
            ("clip_norm", None),
            ("micro_batch", None),
            ("precision", "float32"),
        ):
            if getattr(self, name) != default:
                found[name] = getattr(self, name)
        return found

    def steps_per_epoch(self, n_train: int) -> int:
        """Optimizer steps of one pass over ``n_train`` samples."""
        return -(-n_train // self.batch_size)
