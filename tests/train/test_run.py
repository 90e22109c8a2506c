import pytest

from zoogen.core.errors import Incomplete
from zoogen.core.records import Recording
from zoogen.train.optimizers import Adam
from zoogen.train.run import train_cohort


def never() -> bool:
    return False


def run(setup, start=None, should_stop=never, until=None, **changes):
    jobs = [setup.job(seed, **changes) for seed in (0, 1)]
    cohort = setup.cohort(*jobs, **changes)
    return train_cohort(setup.trainer(*jobs, **changes), cohort, start, should_stop, until=until)


def test_epochs_are_handed_out_one_by_one_with_planned_checkpoints_only(setup):
    done = list(run(setup, recording=Recording((0, 2, 3))))
    assert [d.epoch for d in done] == [0, 1, 2, 3]
    assert [[c.epoch for c in d.checkpoints] for d in done] == [[0], [], [2], [3]]
    assert [d.steps for d in done] == [0, 14, 14, 14]
    assert all(d.checkpoints[0].model_ids == ("model-0", "model-1") for d in done if d.checkpoints)
    assert done[0].seconds_train == 0
    assert all(d.seconds_train > 0 for d in done[1:])


def test_nothing_is_evaluated_where_nothing_is_stored(setup, monkeypatch):
    from zoogen.train.plain import PlainTrainer

    def refuse(self, model_ids):
        raise AssertionError("evaluated")

    monkeypatch.setattr(PlainTrainer, "checkpoint", refuse)
    assert len(list(run(setup, recording=Recording(())))) == 4


def test_a_run_in_pieces_hands_out_what_one_run_does(setup):
    whole = list(run(setup, optimizer=Adam(lr=0.01)))
    pieces, state = [], None
    for until in (0, 1, 3):
        for done in run(setup, state, until=until, optimizer=Adam(lr=0.01)):
            pieces.append(done)
            state = done.state()
    assert [d.epoch for d in pieces] == [d.epoch for d in whole]
    for a, b in zip(whole, pieces, strict=True):
        for x, y in zip(a.checkpoints, b.checkpoints, strict=True):
            assert x.weights.tobytes() == y.weights.tobytes()
            assert all(x.metrics[n].tobytes() == y.metrics[n].tobytes() for n in x.metrics)
            assert x.optimizer.keys() == y.optimizer.keys()
            assert all(x.optimizer[n].tobytes() == y.optimizer[n].tobytes() for n in x.optimizer)


def test_what_is_sealed_is_trained_again_but_not_made_again(setup):
    done = list(run(setup, stored_through=2))
    assert [[c.epoch for c in d.checkpoints] for d in done] == [[], [], [], [3]]


def test_a_stop_in_the_middle_of_an_epoch_raises_and_the_last_state_continues_it(setup):
    calls = iter([False] * 20 + [True])
    stopped = run(setup, should_stop=lambda: next(calls))
    next(stopped)
    state = next(stopped).state()
    with pytest.raises(Incomplete):
        next(stopped)
    assert state.epoch == 1
    rest = list(run(setup, state))
    whole = list(run(setup))
    assert rest[-1].checkpoints[0].weights.tobytes() == whole[-1].checkpoints[0].weights.tobytes()


def test_a_finished_cohort_has_nothing_left(setup):
    *_, last = run(setup)
    assert list(run(setup, last.state())) == []
