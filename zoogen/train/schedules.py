"""Learning-rate schedules a blueprint may name: closed forms of the optimizer step, so a resume needs no state.

``at`` gives the settings of one step; ``build`` puts them into a ``torch.optim`` optimizer before each step. Steps are
optimizer steps (not micro-batches), counted from 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, Protocol

from annotated_types import Ge, Gt, Le, Lt, MinLen

from zoogen.core.registry import SCHEDULES

if TYPE_CHECKING:
    from torch.optim import Optimizer


class StepSettings(NamedTuple):
    """What a schedule sets for one optimizer step; ``momentum`` (beta1 for Adam) is None where it is left alone."""

    lr: float
    momentum: float | None = None


class Schedule(Protocol):
    """An entry of ``SCHEDULES``.

    ``shaped_by_epochs``: the settings of a step depend on how many epochs there are, so a longer run is another model.
    ``per_model``: fields that may differ between models trained together in one cohort.
    """

    shaped_by_epochs: ClassVar[bool]
    per_model: ClassVar[frozenset[str]]

    def at(self, step: int, lr: float, total_steps: int, steps_per_epoch: int) -> StepSettings:
        """Settings of ``step``, in [0, total_steps), for an optimizer whose configured learning rate is ``lr``."""
        ...


class AppliedSchedule:
    """A schedule bound to one optimizer; keeps no position, so any step can be next."""

    def __init__(self, schedule: Schedule, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> None:
        self._schedule = schedule
        self._optimizer = optimizer
        self._lr = float(optimizer.param_groups[0]["lr"])
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch

    def at(self, step: int) -> StepSettings:
        """Settings of one step, from 0."""
        return self._schedule.at(step, self._lr, self._total_steps, self._steps_per_epoch)

    def apply(self, step: int) -> None:
        """Set the optimizer's learning rate (and momentum) for ``step``."""
        lr, momentum = self.at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class _Builds:
    def build(self: Schedule, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> AppliedSchedule:
        """Bind to an optimizer, all of whose groups have one learning rate; ``total_steps`` over all epochs."""
        return AppliedSchedule(self, optimizer, total_steps, steps_per_epoch)


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(_Builds):
    """The optimizer's learning rate at every step."""

    shaped_by_epochs: ClassVar[bool] = False
    per_model: ClassVar[frozenset[str]] = frozenset()

    def at(self, step: int, lr: float, total_steps: int, steps_per_epoch: int) -> StepSettings:
        return StepSettings(lr)


@SCHEDULES.register("one_cycle")
@dataclass(frozen=True)
class OneCycle(_Builds):
    """One cycle (Smith & Topin 2017, arXiv:1708.07120) with cosine annealing in two phases, as torch's ``OneCycleLR``.

    The learning rate rises from lr / div_factor to the optimizer's lr over ``pct_start`` of all steps, then falls to
    lr / (div_factor * final_div_factor). Momentum (beta1 for Adam) moves the other way between its two bounds and
    replaces the optimizer's own, unless ``cycle_momentum`` is false.

    Attributes:
        pct_start: Share of all steps in which the learning rate rises.
        div_factor: The first learning rate is lr divided by this.
        final_div_factor: The last one is the first divided by this.
        cycle_momentum: Move momentum the other way.
        base_momentum: Momentum at the highest learning rate.
        max_momentum: Momentum at the first and the last step.
    """

    shaped_by_epochs: ClassVar[bool] = True
    per_model: ClassVar[frozenset[str]] = frozenset(
        {"pct_start", "div_factor", "final_div_factor", "base_momentum", "max_momentum"}
    )

    pct_start: Annotated[float, Ge(0), Le(1)] = 0.3
    div_factor: Annotated[float, Gt(0)] = 25.0
    final_div_factor: Annotated[float, Gt(0)] = 1e4
    cycle_momentum: bool = True
    base_momentum: Annotated[float, Gt(0), Lt(1)] = 0.85
    max_momentum: Annotated[float, Gt(0), Lt(1)] = 0.95

    def at(self, step: int, lr: float, total_steps: int, steps_per_epoch: int) -> StepSettings:
        first = lr / self.div_factor
        peak = float(self.pct_start * total_steps) - 1
        last = total_steps - 1
        if step <= peak:
            share = step / peak if peak > 0 else 1.0
            ends, momenta = (first, lr), (self.max_momentum, self.base_momentum)
        else:
            # torch starts the second phase at the (fractional) peak, even where that lies before step 0.
            share = (step - peak) / (last - peak)
            ends, momenta = (lr, first / self.final_div_factor), (self.base_momentum, self.max_momentum)
        return StepSettings(_anneal(*ends, share), _anneal(*momenta, share) if self.cycle_momentum else None)


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(_Builds):
    """Cosine decay to ``min_lr`` (Loshchilov & Hutter 2017, arXiv:1608.03983), without restarts.

    During the first ``warmup_epochs`` the learning rate grows linearly: lr / W at step 0, lr at step W - 1, with W
    steps of warm-up; the cosine runs over the rest.
    """

    shaped_by_epochs: ClassVar[bool] = True
    per_model: ClassVar[frozenset[str]] = frozenset({"min_lr", "warmup_epochs"})

    min_lr: Annotated[float, Ge(0)] = 0.0
    warmup_epochs: Annotated[int, Ge(0)] = 0

    def at(self, step: int, lr: float, total_steps: int, steps_per_epoch: int) -> StepSettings:
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return StepSettings(lr * (step + 1) / warmup)
        return StepSettings(_anneal(lr, self.min_lr, (step - warmup) / (total_steps - warmup)))


@SCHEDULES.register("step")
@dataclass(frozen=True)
class Step(_Builds):
    """The learning rate times ``gamma`` after each of ``epochs`` (torch's ``MultiStepLR``, in epochs completed)."""

    shaped_by_epochs: ClassVar[bool] = False
    per_model: ClassVar[frozenset[str]] = frozenset({"epochs", "gamma"})

    epochs: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
    gamma: Annotated[float, Gt(0)] = 0.1

    def at(self, step: int, lr: float, total_steps: int, steps_per_epoch: int) -> StepSettings:
        drops: Sequence[int] = sorted(self.epochs)
        return StepSettings(lr * self.gamma ** bisect_right(drops, step // steps_per_epoch))


def _anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from ``start`` (share 0) to ``end`` (share 1)."""
    return end + (start - end) / 2.0 * (cos(pi * share) + 1)
