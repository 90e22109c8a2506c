"""The fastest program that computes the right numbers is chosen, remembered, and replaced where it cannot run."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from loop_engine import LoopEngine

from zoogen.core.errors import Incomplete
from zoogen.core.program import Program
from zoogen.core.records import Resources
from zoogen.train.plain import PlainTrainer
from zoogen.train.population import choice as module
from zoogen.train.population import speed
from zoogen.train.population.choice import Choice, cannot_run, choose_program, make_trainer, next_best, seconds_of_plain
from zoogen.train.population.engine import NothingToCompileWith, Unsupported
from zoogen.train.population.engines import ENGINES, Wanted
from zoogen.train.population.trainer import PopulationTrainer

PLAIN_SECONDS = 1e-3


@dataclass(frozen=True)
class Task:
    registered_name: ClassVar[str] = "small"
    version: ClassVar[int] = 1
    source_digest: ClassVar[str] = "0"
    input_shape: tuple[int, ...] = (1, 8, 8)
    outputs: int = 3


class Bench:
    """Engines with a given speed: ``seconds[name]`` per model-step, or by block size; what was measured is counted."""

    def __init__(self, setup, tmp_path, monkeypatch):
        self.seconds = {}
        self.measured = []
        self.warnings = []
        self._setup, self._tmp_path = setup, tmp_path
        self._monkeypatch = monkeypatch
        for name in list(ENGINES):
            monkeypatch.delitem(ENGINES, name)
        monkeypatch.setattr(module, "engine_seconds", self._engine_seconds)
        monkeypatch.setattr(module, "plain_seconds", lambda *_: self._count("plain", PLAIN_SECONDS))

    def _count(self, what, seconds):
        self.measured.append(what)
        return seconds

    def _engine_seconds(self, engine, cohort, models, *_):
        found = self.seconds[engine.name]
        if isinstance(found, dict):
            found = found[models]
        if found is None:
            raise torch.OutOfMemoryError("too many")
        return self._count((engine.name, models), found)

    def engine(self, name, seconds, make=None, **spoils):
        self.seconds[name] = seconds
        self._monkeypatch.setitem(ENGINES, name, make or (lambda wanted: LoopEngine(wanted, name, **spoils)))

    def choice(self, models=4, jobs=2, **changes):
        own = {k: changes.pop(k) for k in list(changes) if k in ("architecture", "training", "resources")}
        setup = replace(self._setup, **own)
        cohort = setup.cohort(*(replace(setup.job(seed), task=Task()) for seed in range(jobs)))
        given = {"models": models, "warn": self.warnings.append}
        return Choice(cohort, setup.data, "cpu", self._tmp_path, **{**given, **changes})


@pytest.fixture
def bench(setup, tmp_path, monkeypatch):
    return Bench(setup, tmp_path, monkeypatch)


def broken(error):
    def make(wanted):
        raise error

    return make


def test_the_fastest_engine_is_chosen_and_every_candidate_is_told(bench):
    bench.engine("slow", 8e-4)
    bench.engine("fast", 4e-4, variants={"conv": "unfold"})
    bench.engine("other", 6e-4)
    program = choose_program(bench.choice())
    assert program == Program(
        "population",
        "fast",
        None,
        {"conv": "unfold"},
        "plain 1 ms per model-step; slow: 0.8 ms per model-step; fast: 0.4 ms per model-step; "
        "other: 0.6 ms per model-step",
        4e-4,
    )
    assert bench.warnings == []


def test_an_engine_far_ahead_ends_the_search(bench):
    bench.engine("fast", 1e-4)
    bench.engine("other", 1e-5)
    assert choose_program(bench.choice()).engine == "fast"
    assert ("other", 4) not in bench.measured


@pytest.mark.parametrize(("seconds", "trainer"), [(9.4e-4, "population"), (9.6e-4, "plain"), (2e-3, "plain")])
def test_the_plain_trainer_wins_ties(bench, seconds, trainer):
    bench.engine("engine", seconds)
    assert choose_program(bench.choice()).trainer == trainer
    assert choose_program(bench.choice(wanted="population")).trainer == "population"


def test_an_engine_with_other_numbers_is_dropped_with_a_warning(bench):
    def off(before, rows, measured):
        return replace(rows, weights=before.weights + 1.01 * (rows.weights - before.weights)), measured

    bench.engine("wrong", 1e-5, spoil=off)
    bench.engine("right", 5e-4)
    program = choose_program(bench.choice())
    assert program.engine == "right"
    (warning,) = bench.warnings
    assert "wrong computes other numbers than the plain trainer (updates)" in warning


def test_a_missing_compiler_is_warned_of_and_a_slower_engine_goes_on(bench):
    bench.engine("compiled", 1e-5, make=broken(NothingToCompileWith("no C compiler was found; install one")))
    bench.engine("other", 5e-4)
    assert choose_program(bench.choice()).engine == "other"
    assert bench.warnings == [
        "training may be many times slower than it could be: no C compiler was found; install one"
    ]


def test_a_compiler_that_came_later_opens_the_choice_again(bench, monkeypatch):
    bench.engine("compiled", 1e-5, make=broken(NothingToCompileWith("no C compiler was found; install one")))
    monkeypatch.setattr(module, "compiler_name", lambda: None)
    assert choose_program(bench.choice()).trainer == "plain"
    bench.engine("compiled", 1e-5)
    assert choose_program(bench.choice()).trainer == "plain"  # remembered
    monkeypatch.setattr(module, "compiler_name", lambda: "cc 12")
    assert choose_program(bench.choice()).engine == "compiled"


def test_an_unsupported_layer_is_a_reason_and_not_a_warning(bench):
    bench.engine("narrow", 1e-5, make=broken(Unsupported("no rule for Fold")))
    program = choose_program(bench.choice())
    assert program == Program(
        "plain", reason="plain 1 ms per model-step; narrow: cannot train them (no rule for Fold)", seconds_per_step=1e-3
    )
    assert bench.warnings == []
    assert choose_program(bench.choice(wanted="population")).trainer == "plain"
    (warning,) = bench.warnings
    assert "the plain trainer does (narrow: cannot train them (no rule for Fold))" in warning


def test_an_engine_that_breaks_costs_a_warning_and_not_the_build(bench):
    bench.engine("broken", 1e-5, make=broken(RuntimeError("shape mismatch")))
    assert choose_program(bench.choice()).trainer == "plain"
    assert bench.warnings == [
        "the engine broken failed and is not used for these models (RuntimeError: shape mismatch)"
    ]


def test_a_wish_to_stop_is_not_taken_for_a_broken_engine(bench):
    bench.engine("engine", 1e-5, make=broken(Incomplete("stopped")))
    with pytest.raises(Incomplete):
        choose_program(bench.choice())


def test_the_block_grows_as_long_as_it_pays(bench):
    bench.engine("blocks", {16: 6e-4, 64: 4e-4, 256: 3.9e-4, 1000: 1e-5})
    program = choose_program(bench.choice(models=1000))
    assert (program.block, program.seconds_per_step) == (64, 4e-4)
    assert [size for _, size in bench.measured[1:]] == [16, 64, 256]


def test_a_whole_cohort_has_no_block(bench):
    bench.engine("blocks", {16: 6e-4, 40: 4e-4})
    assert choose_program(bench.choice(models=40)).block is None


def test_the_block_ends_where_memory_does(bench):
    bench.engine("blocks", {16: 6e-4, 64: None})
    assert choose_program(bench.choice(models=64)).block == 16
    bench.engine("blocks", {16: None})
    program = choose_program(bench.choice(models=16))
    assert program.trainer == "plain"
    assert "OutOfMemoryError" in program.reason


def test_only_the_engine_asked_for_is_tried_with_its_variants(bench):
    asked = []
    bench.engine("a", 1e-4)
    bench.engine("b", 5e-4, make=lambda wanted: asked.append(wanted.variants) or LoopEngine(wanted, "b"))
    overrides = {"engine": "b", "conv2d": "unfold"}
    assert choose_program(bench.choice(overrides=overrides)).engine == "b"
    assert asked[0] == {"conv2d": "unfold"}


@pytest.mark.parametrize(
    "changes",
    [
        {"wanted": "plain"},
        {"models": 1},
        {"resources": Resources(compile=True)},
        {"resources": Resources(channels_last=True)},
        {"training": {"precision": "float16"}},
    ],
    ids=str,
)
def test_what_only_the_plain_trainer_does_is_not_tried(bench, changes):
    bench.engine("engine", 1e-5, make=broken(AssertionError("tried")))
    program = choose_program(bench.choice(**changes))
    assert program.trainer == "plain"
    assert program.reason
    assert bench.measured == []
    assert bench.warnings == []
    forced = choose_program(bench.choice(**({"wanted": "population"} | changes)))
    assert (forced.reason == program.reason) == (changes != {"models": 1})
    assert bool(bench.warnings) == (changes != {"wanted": "plain"})


def test_large_models_are_trained_one_by_one_unless_asked_otherwise(bench, monkeypatch):
    bench.engine("engine", 1e-4)
    monkeypatch.setattr(module, "LARGE", 200)  # the small network has 235 parameters
    assert choose_program(bench.choice()).trainer == "plain"
    assert bench.measured == []
    assert choose_program(bench.choice(wanted="population")).engine == "engine"


def test_a_choice_is_measured_once_and_checked_each_time(bench):
    bench.engine("engine", 1e-4)
    first = choose_program(bench.choice())
    measured = list(bench.measured)
    bench.seconds["engine"] = 5.0
    assert choose_program(bench.choice()) == first
    assert bench.measured == measured
    bench.engine("engine", 5.0, make=broken(Unsupported("not any more")))
    assert choose_program(bench.choice()).trainer == "plain"
    assert "not any more" in bench.warnings[0]


def test_another_kind_or_wish_is_measured_anew(bench, small_net):
    bench.engine("engine", 5e-4)
    choose_program(bench.choice())
    for further in ({"models": 8}, {"architecture": small_net(norm=True)}, {"wanted": "population"}):
        before = len(bench.measured)
        choose_program(bench.choice(**further))
        assert len(bench.measured) > before, further


@pytest.mark.parametrize(
    "damage", [lambda old: b"{", lambda old: old.replace(b"engine", b"motor!"), lambda old: b"[]", lambda old: b"\xff"]
)
def test_a_damaged_memory_costs_one_warning_and_is_made_anew(bench, tmp_path, caplog, damage):
    bench.engine("engine", 1e-4)
    first = choose_program(bench.choice())
    files = {path: path.read_bytes() for path in (tmp_path / "choices").iterdir()}
    assert len(files) == 2
    (chosen,) = [path for path, data in files.items() if b"population" in data]
    chosen.write_bytes(damage(files[chosen]))
    with caplog.at_level(logging.WARNING, "zoogen"):
        assert choose_program(bench.choice()) == first
    assert len(caplog.records) == 1
    assert str(chosen) in caplog.text
    assert chosen.read_bytes() == files[chosen]
    assert sorted((tmp_path / "choices").iterdir()) == sorted(files), "nothing half-written is left"


def test_a_cache_that_cannot_be_written_changes_nothing(bench, tmp_path):
    (tmp_path / "choices").write_text("a file where a folder should be")
    bench.engine("engine", 1e-4)
    assert choose_program(bench.choice()).engine == "engine"


def test_what_was_chosen_elsewhere_runs_if_it_can_and_else_the_next_best_does(bench):
    bench.engine("a", 1e-4)
    bench.engine("b", 5e-4)
    program = Program("population", "a", reason="chosen elsewhere")
    assert next_best(bench.choice(), program) is program
    bench.engine("a", 1e-4, make=broken(Unsupported("no C compiler was found")))
    assert next_best(bench.choice(), program).engine == "b"
    (warning,) = bench.warnings
    assert "no C compiler was found" in warning
    assert "population trainer, engine b trains them instead" in warning
    bench.engine("b", 5e-4, make=broken(Unsupported("no rule for Fold")))
    assert next_best(bench.choice(), program).trainer == "plain"
    newer = Program("population", "from the future")
    assert next_best(bench.choice(), newer).trainer == "plain"
    plain = Program("plain", reason="asked for")
    assert next_best(bench.choice(), plain) is plain


def test_a_program_names_its_trainer(bench):
    bench.engine("a", 1e-4)
    own = bench.choice()
    given = (own.cohort, own.data, own.device)
    assert isinstance(make_trainer(*given, Program("plain"), own.cache), PlainTrainer)
    made = make_trainer(*given, Program("population", "a", 16), own.cache)
    assert isinstance(made, PopulationTrainer)
    with pytest.raises(Unsupported, match="no engine 'z'"):
        make_trainer(*given, Program("population", "z"), own.cache)
    assert "no engine 'z'" in str(cannot_run(Program("population", "z"), *given, own.cache))


# What is really measured


def test_seconds_per_step_are_those_of_the_clock(setup, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    setup = replace(setup, batch_size=10)
    cohort = setup.cohort(*(setup.job(seed) for seed in range(3)))

    class Engine(LoopEngine):
        def train_epoch(self, jobs, rows, epoch, should_stop):
            assert [job.seeds.init for job in jobs] == [0, 1, 2, 0, 1]
            assert torch.equal(rows.weights[0], rows.weights[3])
            clock[0] += 0.001 * len(jobs) * 7  # 64 samples in batches of 10
            clock[0] += 0.1 * (epoch == 0)  # what the first one costs is not counted
            return rows, {}

    engine = Engine(Wanted(cohort.jobs[0], setup.data, torch.device("cpu"), Path(), 1, {}, 5))
    few = speed.few_training_samples(cohort, setup.data, 64)
    assert speed.engine_seconds(engine, cohort, 5, few, "cpu", lambda: False) == pytest.approx(0.001)

    real = PlainTrainer.train_epoch

    def train(self, should_stop):
        real(self, should_stop)
        clock[0] += 0.002 * 7

    monkeypatch.setattr(PlainTrainer, "train_epoch", train)
    assert speed.plain_seconds(cohort, setup.data, "cpu", lambda: False) == pytest.approx(0.002)


@pytest.mark.parametrize(("train", "batch", "steps", "expected"), [(64, 10, 2, 14), (60, 10, 2, 20), (7, 10, 2, 7)])
def test_a_few_samples_end_in_a_batch_as_small_as_the_last_one(setup, small_data, train, batch, steps, expected):
    data = small_data((train, 5, 5))
    few = speed.few_training_samples(setup.cohort(setup.job(batch_size=batch)), data, steps)
    assert few.size("train") == len(few.tensors("train", "cpu")[0]) == expected
    assert (few.size("val"), few.size("test")) == (5, 5)


def test_slow_models_are_measured_in_fewer_steps_and_smaller_blocks(setup):
    cohort = setup.cohort(setup.job(batch_size=10))
    assert speed.affordable(cohort, 16, 1e-4) == (16, 64)
    assert speed.affordable(cohort, 16, 1e-2) == (16, 12)
    models, steps = speed.affordable(cohort, 16, 0.5)
    assert (models, steps) == (4, 1)
    assert speed.affordable(cohort, 16, 60.0) == (2, 1)


def test_the_real_engines_are_tried_on_a_real_cohort(setup, tmp_path):
    """Nothing is made up here: whichever wins is faster than the plain trainer and trains as it does."""
    own = setup.cohort(*(replace(setup.job(seed), task=Task()) for seed in range(16)))
    warnings = []
    choice = Choice(own, setup.data, "cpu", tmp_path, warn=warnings.append)
    program = choose_program(choice)
    assert warnings == []
    assert "native" in program.reason
    assert program.seconds_per_step <= seconds_of_plain(choice)
    trainer = make_trainer(own, setup.data, "cpu", program, tmp_path)
    trainer.train_epoch(lambda: False)
    assert trainer.epoch == 1
    told = [json.loads(path.read_bytes())["question"] for path in (tmp_path / "choices").iterdir()]
    assert all(question["machine"]["torch"] == torch.__version__ for question in told)
