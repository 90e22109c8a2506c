"""What trains a kind of models: which trainer, which of its engines, with which choices; measured once, then kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from zoogen.core.frozen import FrozenDict
from zoogen.core.records import Job, Resources
from zoogen.core.registry import ARCHITECTURES, OPTIMIZERS, SPARSIFIERS, Registry

TrainerName = Literal["plain", "population"]


@dataclass(frozen=True)
class Program:
    """How models of one kind are trained.

    Attributes:
        trainer: ``plain`` (one model after the other) or ``population``.
        engine: Of the population trainer.
        block: Models the engine gets at once; None: a whole cohort.
        variants: What was chosen inside the engine, by the name of the choice.
        reason: Why this one, in words.
        seconds_per_step: Measured time of one optimizer step of one model; None: not measured.
    """

    trainer: TrainerName
    engine: str | None = None
    block: int | None = None
    variants: Mapping[str, str] = FrozenDict()
    reason: str = ""
    seconds_per_step: float | None = None

    def __str__(self) -> str:
        if self.trainer == "plain":
            return "plain trainer"
        return f"population trainer, engine {self.engine}" + (f", {self.block} at once" if self.block else "")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"variants": dict(self.variants)}

    @classmethod
    def from_json(cls, told: Any) -> Program:
        """The inverse of ``to_json``.

        Raises:
            ValueError: it is not a program.
        """
        checks = {
            "trainer": lambda v: v in ("plain", "population"),
            "engine": lambda v: v is None or isinstance(v, str),
            "block": lambda v: v is None or (type(v) is int and v > 0),
            "variants": lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()),
            "reason": lambda v: isinstance(v, str),
            "seconds_per_step": lambda v: v is None or isinstance(v, (int, float)),
        }
        if not isinstance(told, dict) or told.keys() != checks.keys():
            raise ValueError(f"a program has the keys {', '.join(checks)}")
        wrong = [name for name, fits in checks.items() if not fits(told[name])]
        if (told["trainer"] == "population") != isinstance(told["engine"], str):
            wrong.append("engine")
        if wrong:
            raise ValueError(f"not a program: {', '.join(f'{name}={told[name]!r}' for name in wrong)}")
        return cls(**{**told, "variants": FrozenDict(told["variants"])})


def describe_kind(job: Job, layout_id: str, resources: Resources) -> dict[str, Any]:
    """What the models have in common that one program trains, JSON-able.

    Not in it: fields that differ within a cohort, and how many models or cores there are. So all cohorts of a kind,
    the halves of one that was split too, go on with the same arithmetic.
    """
    training = job.training
    sparse = {} if training.sparsify is None else {"sparsify": _in_common(SPARSIFIERS, training.sparsify)}
    return sparse | {
        "layout": layout_id,
        "architecture": _in_common(ARCHITECTURES, job.architecture),
        "input_shape": list(job.task.input_shape),
        "outputs": job.task.outputs,
        "batch_size": training.batch_size,
        "micro_batch": training.micro_batch,
        "optimizer": _in_common(OPTIMIZERS, training.optimizer),
        "precision": training.precision,
        "compile": resources.compile,
        "channels_last": resources.channels_last,
    }


def _in_common(registry: Registry, entry: Any) -> dict[str, Any]:
    return {name: value for name, value in registry.describe(entry).items() if name not in entry.per_model}
