"""Which program trains a kind of models: the fastest that computes what the plain trainer computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from zoogen.core.contracts import TaskData, Trainer, describe_task
from zoogen.core.errors import EnvironmentFault, Incomplete, IntegrityError
from zoogen.core.program import Program, describe_kind
from zoogen.core.records import Cohort
from zoogen.train.plain import PlainTrainer
from zoogen.train.population.agreement import disagreement
from zoogen.train.population.engine import NothingToCompileWith, Unsupported
from zoogen.train.population.engines import ENGINES, Wanted, make_engine
from zoogen.train.population.native.compiler import compiler_name
from zoogen.train.population.remembered import machine, recall, remember
from zoogen.train.population.speed import affordable, engine_seconds, few_training_samples, plain_seconds
from zoogen.train.population.trainer import PopulationTrainer
from zoogen.train.population.trial import layout_of, never

log = logging.getLogger("zoogen")

TrainerWish = Literal["auto", "plain", "population"]

LARGE = 1_000_000
"""Parameters of a model from which on one alone keeps a device busy."""

WORTH_IT = 0.95
"""A population must need less than this share of the plain trainer's time."""

FAST_ENOUGH = 5.0
"""Times the speed of the plain trainer from which on no further engine is tried."""

BLOCKS = (16, 64, 256, 1024)
"""Models at once, tried as long as each size is faster by another ``1 - WORTH_IT``."""


@dataclass(frozen=True)
class Choice:
    """What to choose for, and how.

    Attributes:
        cohort: Models of the kind; they are tried out, and not changed.
        data: The task, loaded.
        device: Where they train.
        cache: Folder of what can be made again: measurements, compiled programs.
        wanted: ``auto``: the fastest; ``population``: the fastest engine that there is; ``plain``.
        overrides: ``engine``: only this one; other names: variants for an engine that knows them.
        models: Models of a cohort as planned; the one at hand may be a smaller rest.
        without: Engines that are out of the question.
        should_stop: Asked while trying out.
        warn: Told what a user should know.
    """

    cohort: Cohort
    data: TaskData
    device: str
    cache: Path
    wanted: TrainerWish = "auto"
    overrides: Mapping[str, str] = field(default_factory=dict)
    models: int = 0
    without: Collection[str] = ()
    should_stop: Callable[[], bool] = never
    warn: Callable[[str], None] = log.warning

    @property
    def size(self) -> int:
        return self.models or len(self.cohort.jobs)

    @property
    def engines(self) -> list[str]:
        only = self.overrides.get("engine")
        return [name for name in ENGINES if only in (None, name) and name not in self.without]

    @property
    def variants(self) -> dict[str, str]:
        return {name: value for name, value in self.overrides.items() if name != "engine"}


def choose_program(choice: Choice) -> Program:
    """The program for models like those of the choice's cohort; it has been tried out here.

    An engine that cannot train them is left out with its reason, one whose numbers are not those of the plain trainer
    with a warning. What was measured is kept in the cache for builds to come.

    Raises:
        Incomplete: ``should_stop()`` said so.
    """
    if reason := plain_without_trial(choice):
        if choice.wanted == "population":
            choice.warn(f"the plain trainer trains these models: {reason}")
        return Program("plain", reason=reason)
    question = _question(choice) | {
        "models": choice.size,
        "wanted": choice.wanted,
        "overrides": dict(choice.overrides),
        "without": sorted(choice.without),
    }
    known = recall(choice.cache, question)
    if known is not None:
        try:
            return next_best(choice, Program.from_json(known))
        except ValueError as error:
            log.warning("a program in %s cannot be used (%s); it is chosen anew", choice.cache, error)
    program = _fastest(choice)
    remember(choice.cache, question, program.to_json())
    return program


def next_best(choice: Choice, program: Program) -> Program:
    """``program`` itself where it can train these models here, else, with a warning, the best that can.

    It was chosen earlier or elsewhere: this machine may have no compiler, or another version of the engine.
    """
    problem = cannot_run(program, choice.cohort, choice.data, choice.device, choice.cache)
    if problem is None or program.engine is None:
        return program
    others = replace(choice, wanted="auto", overrides={}, without={*choice.without, program.engine})
    best = choose_program(others)
    choice.warn(f"{problem}; the {best} trains them instead")
    return best


def plain_without_trial(choice: Choice) -> str | None:
    """Why the plain trainer it is, whatever could be measured; None: that is open."""
    resources, training = choice.cohort.resources, choice.cohort.jobs[0].training
    if choice.wanted == "plain":
        return "asked for"
    for setting in ("compile", "channels_last"):
        if getattr(resources, setting):
            return f"resources.{setting} is the plain trainer's"
    if training.precision == "float16":
        return "precision float16 is the plain trainer's"
    if choice.wanted == "population":
        return None
    if choice.size == 1:
        return "one model at a time"
    parameters = layout_of(choice.cohort.jobs[0]).parameters
    return f"models of {parameters:,} parameters keep a device busy one by one" if parameters > LARGE else None


def seconds_of_plain(choice: Choice) -> float:
    """Seconds of one step of one model in the plain trainer, measured or remembered."""
    question = _question(choice) | {"plain": "seconds per step"}
    known = recall(choice.cache, question)
    if isinstance(known, float) and known > 0:
        return known
    seconds = plain_seconds(choice.cohort, choice.data, choice.device, choice.should_stop)
    remember(choice.cache, question, seconds)
    return seconds


def _question(choice: Choice) -> dict[str, Any]:
    job = choice.cohort.jobs[0]
    return describe_kind(job, choice.cohort.layout_id, choice.cohort.resources) | {
        "task": describe_task(job.task),
        "machine": machine(choice.device) | {"compiler": compiler_name()},
    }


def _fastest(choice: Choice) -> Program:
    plain = seconds_of_plain(choice)
    told = [] if choice.wanted == "population" else [f"plain {_in_ms(plain)}"]
    best: Program | None = None
    for name in choice.engines:
        if best and (best.seconds_per_step or 0) * FAST_ENOUGH < plain:
            told.append(f"{name}: not tried")
            continue
        found, words = _tried(choice, name, plain)
        told.append(f"{name}: {words}")
        if found and (best is None or (found.seconds_per_step or 0) < (best.seconds_per_step or 0)):
            best = found
    reason = "; ".join(told)
    if best is None:
        if choice.wanted == "population":
            choice.warn(f"no engine can train these models together, so the plain trainer does ({reason})")
        return Program("plain", reason=reason, seconds_per_step=plain)
    if choice.wanted == "auto" and (best.seconds_per_step or 0) >= WORTH_IT * plain:
        return Program("plain", reason=reason, seconds_per_step=plain)
    return replace(best, reason=reason)


def _tried(choice: Choice, name: str, plain: float) -> tuple[Program | None, str]:
    """An engine's program, checked and measured, or None; and what to say of it."""
    try:
        program = _measured(choice, name, plain)
        if problem := _disagreement(program, choice.cohort, choice.data, choice.device, choice.cache):
            choice.warn(_other_numbers(name, problem))
            return None, f"not used, since it computes other numbers ({problem})"
    except NothingToCompileWith as why:
        choice.warn(f"training may be many times slower than it could be: {why}")
        return None, f"cannot train them ({why})"
    except Unsupported as why:
        return None, f"cannot train them ({why})"
    except (Incomplete, IntegrityError, EnvironmentFault):
        raise
    except Exception as error:  # an engine that breaks must not cost the build: the plain trainer is there
        choice.warn(f"the engine {name} failed and is not used for these models ({type(error).__name__}: {error})")
        log.debug("engine %s", name, exc_info=True)
        return None, f"failed ({type(error).__name__})"
    assert program.seconds_per_step is not None
    return program, _in_ms(program.seconds_per_step)


def _measured(choice: Choice, name: str, plain: float) -> Program:
    """An engine's program with its fastest number of models at once; ``native`` cuts a cohort into blocks by itself."""
    sizes = [*(n for n in BLOCKS if n < choice.size and name != "native"), choice.size]
    best: Program | None = None
    seconds = plain
    for size in sizes:
        models, steps = affordable(choice.cohort, size, seconds)
        few = few_training_samples(choice.cohort, choice.data, steps)
        try:
            wanted = _wanted(choice.cohort, few, choice.device, choice.cache, choice.variants, models)
            engine = make_engine(name, wanted)
            found = engine_seconds(engine, choice.cohort, models, few, choice.device, choice.should_stop)
        except torch.OutOfMemoryError:
            if best is None:
                raise
            break
        if best is not None and found > WORTH_IT * seconds:
            break
        seconds = found
        block = models if models < choice.size and name != "native" else None
        best = Program("population", name, block, engine.describe().get("variants", {}), "", seconds)
        if models < size:
            break  # larger ones would take too long to measure
    assert best is not None
    return best


def make_trainer(cohort: Cohort, data: TaskData, device: str, program: Program, cache: Path) -> Trainer:
    """The trainer of ``cohort`` that ``program`` names.

    Raises:
        Unsupported: its engine cannot run here (another machine, no compiler, another version).
    """
    if program.trainer == "plain":
        return PlainTrainer(cohort, data, device)
    assert program.engine is not None
    models = min(program.block or len(cohort.jobs), len(cohort.jobs))
    engine = make_engine(program.engine, _wanted(cohort, data, device, cache, program.variants, models))
    return PopulationTrainer(cohort, data, device, engine, program.block)


def cannot_run(program: Program, cohort: Cohort, data: TaskData, device: str, cache: Path) -> str | None:
    """Why a program that was chosen elsewhere or earlier shall not train these models here; None: it may."""
    if program.trainer == "plain" or program.engine is None:
        return None
    try:
        problem = _disagreement(program, cohort, data, device, cache)
    except Unsupported as why:
        return f"the engine {program.engine} cannot train these models here ({why})"
    except (Incomplete, IntegrityError, EnvironmentFault):
        raise
    except Exception as error:  # as where it was chosen
        log.debug("engine %s", program.engine, exc_info=True)
        return f"the engine {program.engine} failed ({type(error).__name__}: {error})"
    return problem and _other_numbers(program.engine, problem)


def _disagreement(program: Program, cohort: Cohort, data: TaskData, device: str, cache: Path) -> str | None:
    return disagreement(
        lambda few_models, few: make_trainer(few_models, few, device, program, cache), cohort, data, device
    )


def _wanted(
    cohort: Cohort, data: TaskData, device: str, cache: Path, variants: Mapping[str, str], models: int
) -> Wanted:
    threads = max(1, int(cohort.resources.cpus))
    return Wanted(cohort.jobs[0], data, torch.device(device), cache, threads, variants, models)


def _other_numbers(name: str, problem: str) -> str:
    return (
        f"the engine {name} computes other numbers than the plain trainer ({problem}), so it is not used for these "
        "models; please report it"
    )


def _in_ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms per model-step"
