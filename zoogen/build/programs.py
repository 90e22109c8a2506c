"""Which program trains each kind of models of a zoo: chosen by the first worker that needs it, kept in the zoo.

A program is on disk before the first of its models trains, and every later worker and build takes it from there, so
that a resumed build computes the same bytes. One that was not measured (too little to train, one model at a time) is
provisional: a later build chooses anew, unless models of that kind are in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import UserError, suggest
from zoogen.core.program import Program, describe_kind
from zoogen.core.records import Cohort, Job, Resources
from zoogen.plan import Plan
from zoogen.plan.cohorts import cohort_size
from zoogen.store.programs import Pinned, pin, pinned_file, read_pinned, unpin
from zoogen.store.work import unfinished_epochs

if TYPE_CHECKING:
    from zoogen.core.contracts import TaskData
    from zoogen.train.population.choice import Choice

FEW_STEPS = 500
"""Fewer optimizer steps of a kind are not worth a measurement."""

WORTH_SECONDS = 0.5
"""Below this much of the plain trainer's time, choosing an engine (and compiling it) would cost more than it saves."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for.

    Attributes:
        trainer: ``auto``, ``plain`` or ``population``.
        kernels: ``engine`` and variants of its layers, by name.
    """

    trainer: Literal["auto", "plain", "population"] = "auto"
    kernels: Mapping[str, str] = field(default_factory=dict)

    @property
    def explicit(self) -> bool:
        return self.trainer != "auto" or bool(self.kernels)

    def to_json(self) -> dict[str, Any]:
        return {"trainer": self.trainer, "kernels": dict(self.kernels)}

    def fits(self, pinned: Pinned) -> bool:
        """Whether what is settled is what is asked for, or the best that could be done about it."""
        program = pinned.program
        if not self.explicit or pinned.wish == self.to_json():
            return True
        own = {**program.variants, "engine": program.engine}
        return self.trainer in ("auto", program.trainer) and all(own.get(n) == v for n, v in self.kernels.items())

    def check(self) -> None:
        """Refuse names that no engine knows.

        Raises:
            UserError: an unknown name or variant, or ones that do not go together.
        """
        if not self.kernels:
            return
        from zoogen.train.population.engines import ENGINES
        from zoogen.train.population.stacked import convolution, pooling

        images = tuple(convolution.VARIANTS)
        known = {"engine": tuple(ENGINES), "conv1d": images, "conv2d": images, "max_pool": tuple(pooling.VARIANTS)}
        for name, variant in self.kernels.items():
            if name not in known:
                raise UserError(f"--kernel {name}={variant}: nothing is called {name!r}\n{suggest(name, known)}")
            if variant not in known[name]:
                what = f"--kernel {name}={variant}: {name} has no variant {variant!r}"
                raise UserError(f"{what}\n{suggest(variant, known[name])}")
        if self.trainer == "plain":
            raise UserError(
                "--kernel chooses within the population trainer, and --trainer plain asks for the other one"
            )
        if self.kernels.get("engine", "stacked") != "stacked" and len(self.kernels) > 1:
            raise UserError(f"engine {self.kernels['engine']} has no variants; leave the other --kernel options out")


@dataclass(frozen=True)
class Kind:
    """How much there is of a kind in the plan.

    Attributes:
        models: In its largest cohort.
        steps: Optimizer steps of all its models together.
    """

    models: int
    steps: int


def device_of(resources: Resources, device: str) -> str:
    """Where a cohort trains under the build's ``device`` option: ``auto`` is the GPU for those that ask for one."""
    if device != "auto":
        return device
    return "cuda" if resources.gpus > 0 else "cpu"


def name_of(job: Job, layout_id: str, resources: Resources, device: str) -> str:
    """Names the program of a kind of models on a device."""
    return f"{_kind_id(job, layout_id, resources)}-{device_of(resources, device)}"


def _kind_id(job: Job, layout_id: str, resources: Resources) -> str:
    return digest(canonical_json(describe_kind(job, layout_id, resources)))


def kinds_of(plan: Plan, device: str) -> dict[str, Kind]:
    """What the whole plan has of each kind, by the name of its program; what is stored already is counted too.

    So the choice does not depend on interruptions, nor on which part of the plan is built first.
    """
    found: dict[str, Kind] = {}
    for group, layout in zip(plan.groups, plan.layouts, strict=True):
        name = name_of(group.job(0), layout.layout_id, group.resources, device)
        before = found.get(name, Kind(0, 0))
        steps = len(group) * group.training.epochs * group.training.steps_per_epoch(group.task.sizes[0])
        models = min(len(group), cohort_size(group, layout))
        found[name] = Kind(max(before.models, models), before.steps + steps)
    return found


class Settlement:
    """What the driver does about programs before anything is trained.

    Args:
        zoo: The zoo's folder.
        pending: Cohorts to train.
        sealed: Ids of sealed shards.
        wish, device: Options of the build.
    """

    def __init__(self, zoo: Path, pending: Sequence[Cohort], sealed: Iterable[str], wish: Wish, device: str) -> None:
        self._zoo = zoo
        self._wish = wish
        self._examples: dict[str, Cohort] = {}
        self._begun: set[str] = set()
        there = set(sealed)
        reached = unfinished_epochs(zoo)
        for cohort in pending:
            name = name_of(cohort.jobs[0], cohort.layout_id, cohort.resources, device)
            self._examples.setdefault(name, cohort)
            if (
                cohort.stored_through >= 0
                or cohort.cohort_id in reached
                or any(s.shard_id in there for s in cohort.segments)
            ):
                self._begun.add(name)

    def check(self) -> None:
        """Refuse a wish that would train on with another program what was begun with one; writes nothing.

        Raises:
            UserError: the wish contradicts a program of the zoo.
            IntegrityError: a program's file is damaged.
        """
        self._wish.check()
        for name in self._examples:
            pinned = self._standing(name)
            if pinned is not None and not self._wish.fits(pinned):
                raise UserError(
                    f"{in_words(self._examples[name])}: this zoo trains them with the {pinned.program} "
                    f"({pinned_file(self._zoo, name)}), which is not what --trainer or --kernel asks for\n"
                    "leave these options out, or build another zoo (--out DIR)"
                )

    def carry_out(self) -> None:
        """Keep the programs of what was begun, and forget provisional ones of what was not."""
        for name in self._examples:
            there, standing = read_pinned(self._zoo, name), self._standing(name)
            if there is not None and standing is None:
                unpin(self._zoo, name)
            elif there is None and standing is not None:
                pin(self._zoo, name, standing)

    def _standing(self, name: str) -> Pinned | None:
        """The program that must be kept, None where it is open."""
        pinned = read_pinned(self._zoo, name)
        if name not in self._begun:
            return None if pinned is None or pinned.provisional else pinned
        if pinned is None and not list((self._zoo / "programs").glob(f"{name.rpartition('-')[0]}-*.json")):
            # Nothing pinned on any device: it was begun before zoos kept programs, or after somebody deleted them.
            cohort = self._examples[name]
            kind = describe_kind(cohort.jobs[0], cohort.layout_id, cohort.resources)
            return Pinned(Program("plain", reason="begun without a pinned program"), kind, Wish().to_json(), True)
        return pinned


class Programs:
    """The programs of one worker: one per kind, checked on its machine once.

    Args:
        zoo: The zoo's folder.
        cache: Folder of what can be made again.
        wish: Options of the build.
        kinds: Of the plan.
    """

    def __init__(self, zoo: Path, cache: Path, wish: Wish, kinds: Mapping[str, Kind]) -> None:
        self._zoo = zoo
        self.cache = cache / "kernels"
        self._wish = wish
        self._kinds = kinds
        self._known: dict[str, Program] = {}

    def of(
        self,
        cohort: Cohort,
        trained: Cohort,
        data: TaskData,
        device: str,
        should_stop: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> Program:
        """The program that trains ``cohort`` here; settles it for the zoo where nobody has.

        Args:
            cohort: What to train.
            trained: The same in the layout that trains; twins have more numbers there than are stored.
            data: Its task.
            device: Where.
            should_stop: Asked while engines are tried out.
            tell: Gets what the user should know.

        Raises:
            Incomplete: ``should_stop()`` said so.
        """
        from zoogen.train.population.choice import Choice

        name = name_of(cohort.jobs[0], cohort.layout_id, cohort.resources, device)
        if name not in self._known:
            own = Kind(len(cohort.jobs), cohort.epochs * len(cohort.jobs) * _steps(cohort, data))
            kind = self._kinds.get(name, own)
            wish = self._wish
            choice = Choice(
                trained,
                data,
                device,
                self.cache,
                wish.trainer,
                wish.kernels,
                models=kind.models,
                should_stop=should_stop,
                warn=tell,
            )
            self._known[name] = self._settled(name, cohort, choice, kind)
        return self._known[name]

    def _settled(self, name: str, cohort: Cohort, choice: Choice, kind: Kind) -> Program:
        from zoogen.train.population.choice import next_best

        pinned = read_pinned(self._zoo, name)
        if pinned is None:
            program, provisional = self._chosen(choice, kind)
            described = describe_kind(cohort.jobs[0], cohort.layout_id, cohort.resources)
            mine = Pinned(program, described, self._wish.to_json(), provisional)
            pinned = pin(self._zoo, name, mine)
            if pinned.program == program:
                return program
        return next_best(choice, pinned.program)

    def _chosen(self, choice: Choice, kind: Kind) -> tuple[Program, bool]:
        """A program, and whether it is provisional."""
        from zoogen.train.population.choice import choose_program, plain_without_trial, seconds_of_plain

        if not self._wish.explicit:
            reason = plain_without_trial(choice)
            if reason is None and kind.steps < FEW_STEPS:
                reason = f"{kind.steps} steps in all"
            if reason is None and (seconds := kind.steps * seconds_of_plain(choice)) < WORTH_SECONDS:
                reason = f"{seconds:.1f} s of training in all"
            if reason is not None:
                return Program("plain", reason=reason), True
        return choose_program(choice), False


def _steps(cohort: Cohort, data: TaskData) -> int:
    return cohort.jobs[0].training.steps_per_epoch(data.size("train"))


def in_words(cohort: Cohort) -> str:
    """The kind of a cohort's models, for a message."""
    job = cohort.jobs[0]
    return f"{job.architecture.registered_name} on {job.task.registered_name}, batch {job.training.batch_size}"
