"""An epoch is written while the next one trains: one behind at most, told once it is on disk, its errors told too."""

import threading
import time

import pytest
from build_runs import Recorder, build, leftovers, shards, write_blueprint

from zoogen.core.errors import EnvironmentFault, IntegrityError
from zoogen.store.verify import verify
from zoogen.store.work import Work, unfinished_epochs
from zoogen.train.plain import PlainTrainer

ONE_COHORT = {"seeds.range": [0, 1], "training.epochs": 4}
SECONDS = 20  # to wait for what comes within milliseconds, or never


@pytest.fixture
def blueprint(tmp_path):
    return write_blueprint(tmp_path / "a.yaml", ONE_COHORT)


@pytest.fixture
def wrap(monkeypatch):
    """Puts ``around(call, owner, *arguments)`` in the place of a method."""

    def replace(owner, name, around):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *given: around(lambda: real(self, *given), self, *given))

    return replace


def test_an_epoch_is_written_while_the_next_one_trains_and_never_two_behind(tmp_path, blueprint, wrap):
    undisturbed = tmp_path / "undisturbed"
    build(blueprint, undisturbed)
    begun = {epoch: threading.Event() for epoch in range(1, 6)}
    begun[5].set()  # nothing is trained beside the last epoch
    saved, behind = [], []

    def save(call, work, state, checkpoints):
        assert begun[state.epoch + 1].wait(SECONDS), f"epoch {state.epoch + 1} waits for epoch {state.epoch}"
        call()
        saved.append(state.epoch)

    def train(call, trainer, should_stop):
        begun[trainer.epoch + 1].set()
        behind.append(trainer.epoch - len(saved))
        call()

    wrap(Work, "save", save)
    wrap(PlainTrainer, "train_epoch", train)
    assert build(blueprint, tmp_path / "zoo").exit_code == 0
    assert saved == [0, 1, 2, 3, 4]
    assert set(behind) <= {-1, 0}, "epoch e + 1 begins when at least e - 1 is saved"
    assert shards(tmp_path / "zoo") == shards(undisturbed)


def test_what_is_reported_is_on_disk(tmp_path, blueprint, wrap):
    zoo = tmp_path / "zoo"
    told = []

    class Checks(Recorder):
        def progress(self, progress):
            if progress.sealed:
                assert (zoo / "shards" / progress.sealed / "shard.json").is_file()
            else:
                assert max(unfinished_epochs(zoo).values(), default=4) >= progress.epoch
                told.append(progress.epoch)

    wrap(Work, "save", lambda call, *_: (time.sleep(0.02), call()))
    assert build(blueprint, zoo, reporter=Checks()).exit_code == 0
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "error", [EnvironmentFault("no room"), IntegrityError("damaged")], ids=lambda e: type(e).__name__
)
def test_an_epoch_that_cannot_be_written_ends_the_training_at_its_next_step(tmp_path, blueprint, wrap, error):
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    failing, steps = [True], []

    def save(call, work, state, checkpoints):
        if failing and state.epoch == 1:
            raise error
        call()

    def train(call, trainer, should_stop):
        if failing and trainer.epoch == 1:
            deadline = time.monotonic() + SECONDS
            while not should_stop():
                assert time.monotonic() < deadline
                time.sleep(0.001)
        steps.append(trainer.epoch)
        call()

    wrap(Work, "save", save)
    wrap(PlainTrainer, "train_epoch", train)
    with pytest.raises(type(error), match=str(error)):
        build(blueprint, zoo)
    assert steps == [0, 1], "no epoch was begun after the one that was cut short"
    report = verify(zoo)
    assert not report.damaged
    assert report.missing
    failing.clear()
    assert build(blueprint, zoo).exit_code == 0
    build(blueprint, undisturbed)
    assert shards(zoo) == shards(undisturbed)
    assert leftovers(zoo) == []


def test_a_model_that_fails_while_its_last_epoch_is_written_keeps_that_epoch(tmp_path, blueprint, wrap):
    zoo = tmp_path / "zoo"
    outcomes = []

    def save(call, *_):
        time.sleep(0.05)
        call()

    def train(call, trainer, should_stop):
        if trainer.epoch == 2 and "failed" not in outcomes:
            outcomes.append("failed")
            raise RuntimeError("out of order")
        outcomes.append(trainer.epoch)
        call()

    wrap(Work, "save", save)
    wrap(PlainTrainer, "train_epoch", train)
    reporter = Recorder()
    assert build(blueprint, zoo, reporter=reporter).exit_code == 0
    assert any("is tried again: RuntimeError: out of order" in note for note in reporter.notes)
    assert [step.epoch for step in reporter.steps if not step.sealed] == [0, 1, 2, 3, 4], "an epoch was trained twice"
