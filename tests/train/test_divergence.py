import numpy as np
import pytest

from zoogen.core.records import Recording
from zoogen.train.optimizers import SGD
from zoogen.train.run import train_cohort


def never() -> bool:
    return False


WILD = SGD(lr=3e38)  # the outputs overflow float32 after one step


def cohort_of_three(setup, **changes):
    return [setup.job(0), setup.job(1, optimizer=WILD), setup.job(2)]


def test_a_diverged_model_stands_in_its_last_finite_state_and_spares_its_neighbours(setup):
    trainer = setup.trainer(*cohort_of_three(setup))
    start = trainer.state()
    for _ in range(3):
        trainer.train_epoch(never)
    state = trainer.state()
    assert state.diverged == {"model-1": 1}
    assert state.last_finite == {"model-1": 0}
    assert state.weights[1].tobytes() == start.weights[1].tobytes()
    assert np.isfinite(state.weights).all()
    for seed in (0, 2):
        alone = setup.trainer(setup.job(seed))
        for _ in range(3):
            alone.train_epoch(never)
        assert alone.state().weights[0].tobytes() == state.weights[seed].tobytes()


def late(setup, data):
    """A cohort of one that diverges in its second epoch: its data break then."""
    trainer = setup.trainer(data=data)
    trainer.train_epoch(never)
    kept = trainer.state(), trainer.checkpoint(("model-0",))
    data.prepare = lambda inputs_B: inputs_B.float() * float("inf")
    trainer.train_epoch(never)
    del data.prepare
    return trainer, kept


def test_a_model_that_diverges_later_keeps_the_scores_of_its_last_finite_epoch(setup, small_data):
    data = small_data()
    trainer, (state, checkpoint) = late(setup, data)
    after = trainer.state()
    assert (after.diverged, after.last_finite) == ({"model-0": 2}, {"model-0": 1})
    assert after.weights.tobytes() == state.weights.tobytes()
    again = trainer.checkpoint(("model-0",))
    assert again.epoch == 1
    for name, values in checkpoint.metrics.items():
        assert again.metrics[name].tobytes() == values.tobytes()


def test_divergence_survives_a_restore(setup, small_data, same_state):
    data = small_data()
    trainer, (_, checkpoint) = late(setup, data)
    other = setup.trainer(data=data)
    other.restore(trainer.state())
    same_state(other.state(), trainer.state())
    other.train_epoch(never)
    assert other.state().weights.tobytes() == trainer.state().weights.tobytes()
    again = other.checkpoint(("model-0",))
    assert again.epoch == 1
    for name, values in checkpoint.metrics.items():
        assert again.metrics[name].tobytes() == values.tobytes()


def test_the_last_finite_epoch_is_handed_out_before_the_rows_of_the_current_one(setup):
    cohort = setup.cohort(*cohort_of_three(setup), recording=Recording((2, 3)))
    done = list(train_cohort(setup.trainer(*cohort.jobs, recording=cohort.recording), cohort, None, never))
    found = [[(c.epoch, c.model_ids) for c in d.checkpoints] for d in done]
    living = ("model-0", "model-2")
    assert found == [[], [(0, ("model-1",))], [(2, living)], [(3, living)]]


def test_a_last_finite_epoch_that_was_planned_is_not_handed_out_twice(setup):
    cohort = setup.cohort(*cohort_of_three(setup))
    done = list(train_cohort(setup.trainer(*cohort.jobs), cohort, None, never))
    everyone, living = ("model-0", "model-1", "model-2"), ("model-0", "model-2")
    assert [[(c.epoch, c.model_ids) for c in d.checkpoints] for d in done] == [
        [(0, everyone)],
        *([(epoch, living)] for epoch in (1, 2, 3)),
    ]


def test_a_cohort_without_living_models_ends_early(setup):
    cohort = setup.cohort(setup.job(0, optimizer=WILD))
    done = list(train_cohort(setup.trainer(*cohort.jobs), cohort, None, never))
    assert [d.epoch for d in done] == [0, 1]
    state = done[-1].state()
    assert list(train_cohort(setup.trainer(*cohort.jobs), cohort, state, never)) == []


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_model_born_without_finite_weights_diverges_in_its_first_epoch(setup, small_net, scale):
    job = setup.job(architecture=small_net(scale=scale))
    trainer = setup.trainer(job)
    metrics = trainer.checkpoint(("model-0",)).metrics
    assert not np.isfinite(metrics["test_loss"][0])
    trainer.train_epoch(never)
    assert (trainer.diverged, trainer.last_finite) == ({"model-0": 1}, {"model-0": 0})
