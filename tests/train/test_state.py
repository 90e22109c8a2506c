"""A cohort that is stopped, carried elsewhere as arrays and continued is the one that never stopped."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from zoogen.core.errors import IntegrityError
from zoogen.core.records import Recording
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.schedules import Constant, Cosine, OneCycle, Step

OPTIMIZERS = [
    SGD(lr=0.1),
    SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(lr=0.01, weight_decay=0.01),
    AdamW(lr=0.01),
    RMSprop(lr=0.003),
    RMSprop(lr=0.003, momentum=0.5),
]
SCHEDULES = [Constant(), OneCycle(), Cosine(warmup_epochs=1), Step(epochs=(1, 2))]


def never() -> bool:
    return False


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_continued_cohort_equals_one_that_never_stopped(
    setup, small_data, small_net, same_state, optimizer, schedule
):
    own = {
        "data": small_data(augmented=True),
        "optimizer": optimizer,
        "schedule": schedule,
        "architecture": small_net(norm=True, dropout=0.3, torch_random=0.2, unused=True),
        "training": {"clip_norm": 1.0},
    }
    jobs = [setup.job(seed, **own) for seed in (1, 2)]
    through = setup.trainer(*jobs, **own)
    for _ in range(3):
        before = through.state()
        through.train_epoch(never)
        other = setup.trainer(*jobs, **own)
        other.restore(before)
        same_state(other.state(), before)
        other.train_epoch(never)
        same_state(other.state(), through.state())
    a, b = through.checkpoint(("model-1", "model-2")), other.checkpoint(("model-1", "model-2"))
    for name in a.metrics:
        assert a.metrics[name].tobytes() == b.metrics[name].tobytes()
    assert a.optimizer.keys() == b.optimizer.keys()


def test_a_state_is_a_copy(setup):
    trainer = setup.trainer(optimizer=Adam(lr=0.01))
    trainer.train_epoch(never)
    state = trainer.state()
    kept = state.weights.copy(), state.optimizer["exp_avg"].copy()
    trainer.train_epoch(never)
    assert np.array_equal(state.weights, kept[0])
    assert np.array_equal(state.optimizer["exp_avg"], kept[1])
    assert not np.array_equal(trainer.state().weights, kept[0])


def test_what_is_handed_out_stands_still_while_training_goes_on(setup, small_net):
    """It is written to disk beside the training."""
    own = {"optimizer": Adam(lr=0.01), "architecture": small_net(norm=True)}
    trainer = setup.trainer(recording=Recording((0, 1, 2), "all", test_predictions=True), **own)
    trainer.train_epoch(never)

    def arrays(checkpoint, state):
        parts = [checkpoint.weights, checkpoint.predictions, state.weights]
        maps = [checkpoint.side, checkpoint.metrics, checkpoint.optimizer]
        maps += [state.side, state.optimizer, state.training_metrics]
        return [*parts, *(rows for part in maps for rows in part.values())]

    kept = arrays(trainer.checkpoint(("model-0",)), trainer.state())
    before = [rows.tobytes() for rows in kept]
    trainer.train_epoch(never)
    after = arrays(trainer.checkpoint(("model-0",)), trainer.state())
    assert [rows.tobytes() for rows in kept] == before
    assert not any(np.shares_memory(one, other) for one, other in zip(kept, after, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (SGD(lr=0.1), set()),
        (SGD(lr=0.1, momentum=0.9), {"momentum_buffer"}),
        (Adam(lr=0.01), {"exp_avg", "exp_avg_sq", "step"}),
        (RMSprop(lr=0.01), {"square_avg", "step"}),
        (RMSprop(lr=0.01, momentum=0.9), {"square_avg", "step", "momentum_buffer"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_optimizer_rows_lie_like_the_trainable_weights(setup, small_net, optimizer, names):
    own = {"optimizer": optimizer, "architecture": small_net(norm=True)}
    trainer = setup.trainer(**own)
    assert trainer.state().optimizer == {}
    trainer.train_epoch(never)
    rows = trainer.state().optimizer
    assert set(rows) == names
    trainable = 40 + 8 + 195
    assert trainer.state().weights.shape == (1, trainable + 8)
    for name, values in rows.items():
        assert values.shape == (1, 6 if name == "step" else trainable)
        if name == "step":
            assert (values == 7).all()


def test_the_momentum_row_is_the_sum_of_gradients_that_moved_the_weights(setup):
    # With SGD and one step per epoch: w1 = w0 - lr * buffer.
    trainer = setup.trainer(optimizer=SGD(lr=0.1, momentum=0.9), batch_size=64)
    before = trainer.state().weights
    trainer.train_epoch(never)
    state = trainer.state()
    np.testing.assert_allclose(state.weights, before - 0.1 * state.optimizer["momentum_buffer"], atol=1e-7)


def test_a_state_of_other_models_is_refused(setup):
    trainer = setup.trainer(setup.job(1))
    with pytest.raises(IntegrityError, match="models"):
        trainer.restore(setup.trainer(setup.job(2)).state())


class Counting(nn.Module):
    """Counts its batches in a buffer that each forward pass replaces."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return self.fc(x.flatten(1)) * (1 + self.seen / 100)


@dataclass(frozen=True)
class CountingNet:
    registered_name: ClassVar[str] = "counting"
    per_model: ClassVar[frozenset[str]] = frozenset()
    runs_code: ClassVar[bool] = False

    def build(self, input_shape, outputs):
        return Counting()


def test_a_buffer_that_the_network_replaces_is_stored_and_restored(setup, same_state):
    job = setup.job(architecture=CountingNet())
    through = setup.trainer(job)
    through.train_epoch(never)
    state = through.state()
    assert state.weights[0, -1] == 7  # 64 samples in batches of 10
    other = setup.trainer(job)
    other.restore(state)
    other.train_epoch(never)
    through.train_epoch(never)
    same_state(other.state(), through.state())
