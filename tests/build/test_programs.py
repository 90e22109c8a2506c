"""Which program trains a zoo's models: settled before the first of them, kept by every worker and build after it."""

import json
import re
import shutil
import signal

import build_runs
import pytest
from build_runs import Recorder, build, everything, leftovers, rows, shards, write_blueprint
from fault_points import Point

import zoogen
from zoogen.build import programs
from zoogen.build.programs import Wish
from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.programs import read_pinned
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder
from zoogen.train.plain import PlainTrainer
from zoogen.train.population import choice
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.engines import ENGINES
from zoogen.train.population.trainer import PopulationTrainer

POPULATION = Wish("population")
PLAIN = Wish("plain")
CHANGES = {"training.epochs": 4, "seeds.range": [0, 4]}
"""Eight models in four cohorts of two."""


@pytest.fixture(autouse=True)
def native_only(monkeypatch):
    """One engine, so that nothing depends on which is faster today; its kernels do not depend on neighbours."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    monkeypatch.delitem(ENGINES, "stacked")


@pytest.fixture
def blueprint(tmp_path):
    return write_blueprint(tmp_path / "a.yaml", CHANGES)


@pytest.fixture
def used(monkeypatch):
    """(trainer, models) of every trainer that a worker made for a whole cohort."""
    found = []
    real = choice.make_trainer

    def make_trainer(cohort, *given):
        if cohort.segments:  # not a trial
            found.append((type(real(cohort, *given)).__name__, len(cohort.jobs)))
        return real(cohort, *given)

    monkeypatch.setattr(choice, "make_trainer", make_trainer)
    return found


def pins(zoo):
    return {path.stem: read_pinned(zoo, path.stem) for path in (zoo / "programs").glob("*.json")}


def only_pin(zoo):
    (pinned,) = pins(zoo).values()
    return pinned


def worth_it(monkeypatch):
    """Let even these tiny zoos be worth a choice."""
    monkeypatch.setattr(programs, "FEW_STEPS", 0)
    monkeypatch.setattr(programs, "WORTH_SECONDS", 0.0)


def test_the_program_is_on_disk_before_the_first_model_trains_and_for_all(tmp_path, blueprint, monkeypatch, used):
    worth_it(monkeypatch)
    zoo, seen = tmp_path / "zoo", []

    def checks(real):
        def train_epoch(self, should_stop):
            if self._cohort.segments:
                seen.append(only_pin(zoo).program)
            real(self, should_stop)

        return train_epoch

    for trainer in (PlainTrainer, PopulationTrainer):
        monkeypatch.setattr(trainer, "train_epoch", checks(trainer.train_epoch))
    reporter = Recorder()
    assert build(blueprint, zoo, reporter=reporter).exit_code == 0
    assert not reporter.notes  # which program it is stands in the logs; only what went wrong is told
    program = only_pin(zoo).program
    assert seen == [program] * 4 * 4
    assert len({trainer for trainer, _ in used}) == 1
    assert program.seconds_per_step is not None
    journals = [path.read_text() for path in (zoo / "logs").glob("*.jsonl")]
    assert all(json.dumps(f"{program} ({program.reason})") in text for text in journals)


def test_so_little_to_train_is_not_measured_and_a_larger_plan_may_choose_anew(tmp_path, blueprint, monkeypatch, used):
    zoo = tmp_path / "zoo"
    build(blueprint, zoo)
    pinned = only_pin(zoo)
    assert (pinned.program.trainer, pinned.provisional) == ("plain", True)
    assert pinned.program.reason == "160 steps in all"
    before = rows(zoo)
    worth_it(monkeypatch)
    monkeypatch.setattr(choice, "plain_seconds", lambda *_: 1.0)  # what is slow here is not the plain trainer
    longer = write_blueprint(tmp_path / "b.yaml", CHANGES | {"seeds.range": [0, 6]})
    assert build(longer, zoo).exit_code == 0
    assert (only_pin(zoo).program.engine, only_pin(zoo).provisional) == ("native", False)
    assert [trainer for trainer, _ in used] == ["PlainTrainer"] * 4 + ["PopulationTrainer"] * 2
    assert before.items() <= rows(zoo).items()
    assert verify(zoo).complete


def test_what_is_half_trained_keeps_its_program_even_a_provisional_one(tmp_path, blueprint, monkeypatch, used):
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    build(blueprint, undisturbed)
    assert build(blueprint, zoo, until=2).exit_code == 3
    assert only_pin(zoo).provisional
    worth_it(monkeypatch)
    monkeypatch.setattr(choice, "plain_seconds", lambda *_: 1.0)
    used.clear()
    assert build(blueprint, zoo).exit_code == 0
    assert used == [("PlainTrainer", 2)] * 4
    assert shards(zoo) == shards(undisturbed)


def test_a_zoo_begun_before_programs_were_kept_goes_on_as_it_was(tmp_path, blueprint, monkeypatch, used):
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    build(blueprint, undisturbed)
    build(blueprint, zoo, until=2)
    shutil.rmtree(zoo / "programs")
    worth_it(monkeypatch)
    monkeypatch.setattr(choice, "plain_seconds", lambda *_: 1.0)
    used.clear()
    assert build(blueprint, zoo).exit_code == 0
    assert used == [("PlainTrainer", 2)] * 4
    assert only_pin(zoo).program.reason == "begun without a pinned program"
    assert shards(zoo) == shards(undisturbed)


def test_a_population_stopped_and_resumed_is_byte_identical_and_needs_no_option(tmp_path, blueprint, used):
    zoo, at_once, plain = tmp_path / "zoo", tmp_path / "at-once", tmp_path / "plain"
    build(blueprint, at_once, wish=POPULATION)
    assert {trainer for trainer, _ in used} == {"PopulationTrainer"}
    assert build(blueprint, zoo, wish=POPULATION, until=1).exit_code == 3
    assert build(blueprint, zoo, until=3).exit_code == 3
    used.clear()
    assert build(blueprint, zoo).exit_code == 0
    assert used == [("PopulationTrainer", 2)] * 4
    assert shards(zoo) == shards(at_once)
    build(blueprint, plain, wish=PLAIN)
    assert only_pin(plain).program.trainer == "plain"
    ours, theirs = rows(zoo), rows(plain)
    assert ours.keys() == theirs.keys()
    assert ours != theirs, "the two trainers round differently, else nothing was tested"


def test_the_halves_of_a_cohort_train_on_with_its_program(tmp_path, blueprint, monkeypatch):
    """Else their trajectories would not be those of the epochs that the whole cohort has stored."""
    monkeypatch.setattr("zoogen.plan.cohorts.SHARD_BYTES", 5_000)
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    build(blueprint, undisturbed, wish=POPULATION)
    build(blueprint, zoo, wish=POPULATION, until=2)
    train = PopulationTrainer.train_epoch

    def only_alone(self, should_stop):
        if len(self.state().model_ids) > 1 and self._cohort.segments:
            raise RuntimeError("too many")
        train(self, should_stop)

    with monkeypatch.context() as patched:
        patched.setattr(PopulationTrainer, "train_epoch", only_alone)
        assert build(blueprint, zoo).exit_code == 0
    assert len(ZooFolder(zoo).read_cohorts()) == 4 + 8
    assert rows(zoo) == rows(undisturbed)
    assert verify(zoo).complete


def test_a_wish_that_contradicts_a_program_is_refused_untouched(tmp_path, blueprint):
    zoo = tmp_path / "zoo"
    build(blueprint, zoo, wish=POPULATION, until=1)
    before = everything(zoo)
    for wish in (PLAIN, Wish("auto", {"conv2d": "unfold"})):
        with pytest.raises(UserError, match="population trainer, engine native") as refused:
            build(blueprint, zoo, wish=wish)
        assert re.search(r"/programs/\w+-cpu\.json.*\n.*--out", str(refused.value))
        assert everything(zoo) == before
    assert build(blueprint, zoo, wish=Wish("population", {"engine": "native"})).exit_code == 0


def test_a_wish_that_could_not_be_met_is_told_once_and_no_obstacle_later(tmp_path, blueprint, monkeypatch):
    def refuse(wanted):
        raise Unsupported("no rule for Fold")

    monkeypatch.setitem(ENGINES, "native", refuse)
    zoo, reporter = tmp_path / "zoo", Recorder()
    assert build(blueprint, zoo, wish=POPULATION, reporter=reporter, until=1).exit_code == 3
    assert sum("no rule for Fold" in note for note in reporter.notes) == 1, reporter.notes
    assert only_pin(zoo).program.trainer == "plain"
    assert build(blueprint, zoo, wish=POPULATION).exit_code == 0
    assert verify(zoo).complete


def test_a_program_that_cannot_run_here_is_replaced_with_one_warning(tmp_path, blueprint, monkeypatch, used):
    zoo, reporter = tmp_path / "zoo", Recorder()
    build(blueprint, zoo, wish=POPULATION, until=1)
    pinned = pins(zoo)

    def refuse(wanted):
        raise Unsupported("no C compiler was found")

    monkeypatch.setitem(ENGINES, "native", refuse)
    used.clear()
    assert build(blueprint, zoo, reporter=reporter).exit_code == 0
    (note,) = [note for note in reporter.notes if "no C compiler" in note]
    assert "the plain trainer trains them instead" in note
    assert used == [("PlainTrainer", 2)] * 4
    assert pins(zoo) == pinned, "another machine may have a compiler"
    assert verify(zoo).complete


def test_a_zoo_given_another_ones_programs_is_trained_alike(tmp_path, blueprint):
    first, second = tmp_path / "first", tmp_path / "second"
    build(blueprint, first, wish=POPULATION)
    shutil.copytree(first / "programs", second / "programs")
    assert build(blueprint, second).exit_code == 0
    assert shards(second) == shards(first)


def test_a_damaged_program_is_told_before_anything_is_trained(tmp_path, blueprint):
    zoo = tmp_path / "zoo"
    build(blueprint, zoo, wish=POPULATION, until=1)
    (file,) = (zoo / "programs").iterdir()
    file.write_text("{")
    before = everything(zoo)
    with pytest.raises(IntegrityError, match="damaged"):
        build(blueprint, zoo)
    assert everything(zoo) == before


def test_a_complete_zoo_with_programs_is_like_any_other(tmp_path, blueprint, command):
    zoo = tmp_path / "zoo"
    build(blueprint, zoo, wish=POPULATION)
    before = everything(zoo)
    assert build(blueprint, zoo, wish=PLAIN).exit_code == 0, "nothing is to be trained, so there is nothing to refuse"
    assert everything(zoo) == before
    assert len(zoogen.open(zoo).models) == 8
    for name in ("verify", "info", "status"):
        assert command(name, zoo).wait() == 0
    assert leftovers(zoo) == []


def test_a_population_killed_in_training_and_saving_ends_in_the_bytes_of_an_undisturbed_one(
    tmp_path, blueprint, command
):
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    options = ("-o", zoo, "--executor", "serial", "--trainer", "population", "--kernel", "engine=native")
    build(blueprint, undisturbed, wish=Wish("population", {"engine": "native"}))
    for hold in (Point("train", 12, ""), Point("save", 3, ""), Point("rename", 1, "before")):
        run = command("build", blueprint, *options, hold=hold)
        run.reach_hold(hold)
        run.process.kill()
        assert run.wait() == -signal.SIGKILL
        assert not verify(zoo).damaged
    assert build(blueprint, zoo).exit_code == 0
    assert shards(zoo) == shards(undisturbed)
    assert leftovers(zoo) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trainer", "fast"], "'fast' is not one of"),
        (["--kernel", "engine"], "write NAME=VARIANT"),
        (["--kernel", "engine=native", "--kernel", "engine=stacked"], "given twice"),
        (["--kernel", "conv3d=unfold"], "nothing is called 'conv3d'"),
        (["--kernel", "conv2d=unfolded"], "Did you mean 'unfold'"),
        (["--trainer", "plain", "--kernel", "engine=native"], "asks for the other one"),
        (["--kernel", "engine=native", "--kernel", "conv2d=unfold"], "engine native has no variants"),
    ],
)
def test_options_that_make_no_sense_are_refused_without_a_trace(tmp_path, blueprint, command, arguments, told):
    run = command("build", blueprint, "-o", tmp_path / "zoo", "--executor", "serial", *arguments)
    assert run.wait() == 2, run.output
    assert told in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "zoo").exists()


def test_kinds_are_counted_over_the_whole_plan(tmp_path):
    from zoogen.blueprint import load
    from zoogen.plan import make_plan

    change = {"architecture.hidden": {"grid": [[4], [6]]}, "seeds.range": [0, 5], "resources.cohort": 4}
    plan = make_plan(load(write_blueprint(tmp_path / "a.yaml", change)))
    found = programs.kinds_of(plan, "auto")
    # Two architectures of 10 models each, 2 epochs of 5 steps.
    assert sorted((kind.models, kind.steps) for kind in found.values()) == [(4, 100), (4, 100)]
    assert {name.rpartition("-")[2] for name in found} == {"cpu"}
    assert found.keys().isdisjoint(programs.kinds_of(plan, "cuda"))
    assert build_runs.BLUEPRINT["resources"] == {"cohort": 2}
