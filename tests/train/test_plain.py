"""The plain trainer against loops written out here, with torch alone."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from zoogen.core import streams
from zoogen.core.errors import Incomplete, IntegrityError
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.schedules import OneCycle


def never() -> bool:
    return False


def batches(data, seed: int, epoch: int, size: int):
    """Batches in the order the design promises: ranks of counter-based draws, keyed by (order stream, epoch)."""
    inputs, targets = data.tensors("train", "cpu")
    order = streams.permutation(streams.subkey(streams.stream_key(seed, "order"), epoch), len(targets))
    for start in range(0, len(targets), size):
        rows = order[start : start + size]
        yield data.prepare(inputs[rows]), targets[rows]


def minimal_loop(data, module, optimizer, *, epochs, scheduler=None, **loss):
    """What anyone would write: returns the running loss and accuracy of each epoch."""
    means = []
    for epoch in epochs:
        total, hits, n = 0.0, 0, 0
        for inputs, targets in batches(data, 0, epoch, 10):
            module.train()
            optimizer.zero_grad()
            outputs = module(inputs)
            mean = nn.functional.cross_entropy(outputs, targets, **loss)
            mean.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += mean.item() * len(targets)
            hits += (outputs.argmax(1) == targets).sum().item()
            n += len(targets)
        means.append((total / n, hits / n))
    return means


def row(module) -> np.ndarray:
    parameters = [p.detach().reshape(-1) for p in module.parameters()]
    buffers = [b.reshape(-1) for b in module.buffers() if b.dtype == torch.float32]
    return torch.cat(parameters + buffers).numpy()


OPTIMIZERS = {
    "sgd": (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    "momentum": (
        SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True),
    ),
    "adam": (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01, fused=True)),
    "adamw": (AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)),
    "rmsprop": (RMSprop(lr=0.003), lambda p: torch.optim.RMSprop(p, lr=0.003)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_trajectory_is_that_of_a_minimal_loop(setup, small_net, name, norm):
    entry, reference = OPTIMIZERS[name]
    job = setup.job(optimizer=entry, architecture=small_net(norm=norm))
    trainer = setup.trainer(job)
    module = setup.module(job)
    optimizer = reference(module.parameters())
    assert trainer.state().weights[0].tobytes() == row(module).tobytes()
    # Batches of 10 do not divide the 64 samples: the last one, of 4, is trained on too.
    for epoch in range(3):
        trainer.train_epoch(never)
        ((module_loss, module_acc),) = minimal_loop(setup.data, module, optimizer, epochs=[epoch])
        state = trainer.state()
        assert state.weights[0].tobytes() == row(module).tobytes()
        metrics = trainer.checkpoint(("model-0",)).metrics
        assert metrics["train_loss"][0] == pytest.approx(module_loss, rel=1e-6)
        assert metrics["train_acc"][0] == pytest.approx(module_acc, rel=1e-12)
    if norm:
        assert state.side["int64"].tolist() == [[21]]  # batches that the norm has seen
    if name != "momentum" or norm:  # a loop that learns nothing would prove little
        assert module_acc > 0.5


@pytest.mark.parametrize("name", ["momentum", "adam", "rmsprop"])
def test_one_cycle_with_momentum_moves_weights_as_with_torchs_scheduler(setup, name):
    entry, reference = OPTIMIZERS[name]
    job = setup.job(optimizer=entry, schedule=OneCycle())
    trainer = setup.trainer(job)
    module = setup.module(job)
    optimizer = reference(module.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=entry.lr, epochs=3, steps_per_epoch=7)
    minimal_loop(setup.data, module, optimizer, epochs=range(3), scheduler=scheduler)
    for _ in range(3):
        trainer.train_epoch(never)
    assert trainer.state().weights[0].tobytes() == row(module).tobytes()
    metrics = trainer.checkpoint(("model-0",)).metrics
    assert metrics["learning_rate"][0] == pytest.approx(entry.lr / 25 / 1e4)


def test_label_smoothing_is_trained_on_and_left_out_of_the_test_loss(setup):
    job = setup.job(training={"label_smoothing": 0.2})
    trainer = setup.trainer(job)
    module = setup.module(job)
    means = minimal_loop(
        setup.data, module, torch.optim.SGD(module.parameters(), lr=0.1, fused=True), epochs=[0], label_smoothing=0.2
    )
    trainer.train_epoch(never)
    # torch reduces the smoothed loss in another order than per-sample losses.
    np.testing.assert_allclose(trainer.state().weights[0], row(module), atol=1e-6)
    metrics = trainer.checkpoint(("model-0",)).metrics
    assert metrics["train_loss"][0] == pytest.approx(means[0][0], rel=1e-5)
    inputs, targets = setup.data.tensors("test", "cpu")
    plain = nn.functional.cross_entropy(module.eval()(setup.data.prepare(inputs)), targets).item()
    assert metrics["test_loss"][0] == pytest.approx(plain, rel=1e-5)


def test_gradients_above_the_limit_are_scaled_to_it(setup):
    job = setup.job(training={"clip_norm": 0.05})
    trainer = setup.trainer(job)
    module = setup.module(job)
    norms = []
    for inputs, targets in batches(setup.data, 0, 0, 10):
        loss = nn.functional.cross_entropy(module(inputs), targets)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        norms.append(math.sqrt(sum(g.double().square().sum().item() for g in gradients)))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient * min(1.0, 0.05 / norms[-1])
    assert min(norms) > 0.05
    trainer.train_epoch(never)
    # torch divides by norm + 1e-6.
    np.testing.assert_allclose(trainer.state().weights[0], row(module), atol=1e-5)
    assert trainer.checkpoint(("model-0",)).metrics["grad_norm"][0] == pytest.approx(norms[-1], rel=1e-4)


@pytest.mark.parametrize("micro", [3, 5, 10, 99])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_micro_batches_add_up_to_the_batch_and_step_the_schedule_once(setup, small_data, small_net, micro, dropout):
    common = {
        "optimizer": SGD(lr=0.05, momentum=0.9),
        "schedule": OneCycle(),
        "data": small_data(augmented=True),
        "architecture": small_net(dropout=dropout),
    }
    whole, parts = setup.trainer(**common), setup.trainer(**common, training={"micro_batch": micro})
    for _ in range(3):
        whole.train_epoch(never)
        parts.train_epoch(never)
    # Sums in another order, 21 steps long; the masks of dropout are the same element by element.
    np.testing.assert_allclose(parts.state().weights, whole.state().weights, atol=1e-5)
    a, b = (t.checkpoint(("model-0",)).metrics for t in (whole, parts))
    assert a["learning_rate"] == b["learning_rate"]
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)


def test_norms_are_those_of_all_trainable_parameters(setup, small_net):
    job = setup.job(architecture=small_net(norm=True, frozen=True))
    trainer = setup.trainer(job)
    module = setup.module(job)
    for inputs, targets in batches(setup.data, 0, 0, 10):
        module.train().zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        trained = [p for p in module.parameters() if p.requires_grad]
        gradient = torch.cat([p.grad.reshape(-1) for p in trained])
        with torch.no_grad():
            for p in trained:
                p -= 0.1 * p.grad
    trainer.train_epoch(never)
    metrics = trainer.checkpoint(("model-0",)).metrics
    assert metrics["grad_norm"][0] == pytest.approx(gradient.norm().item(), rel=1e-4)
    weights = torch.cat([p.detach().reshape(-1) for p in trained])
    assert len(weights) == 64 * 3 + 3 + 4 + 4
    assert metrics["weight_norm"][0] == pytest.approx(weights.norm().item(), rel=1e-5)
    assert module.conv.weight.detach().reshape(-1).numpy().tobytes() in trainer.state().weights[0].tobytes()


def test_parameters_without_gradient_stay_as_in_torch(setup, small_net):
    job = setup.job(architecture=small_net(unused=True), optimizer=AdamW(lr=0.01, weight_decay=0.5))
    trainer = setup.trainer(job)
    trainer.train_epoch(never)
    module = setup.module(job)
    minimal_loop(
        setup.data, module, torch.optim.AdamW(module.parameters(), 0.01, weight_decay=0.5, fused=True), epochs=[0]
    )
    assert trainer.state().weights[0].tobytes() == row(module).tobytes()
    assert module.fc.unused.tolist() == [1.0] * 5


def test_a_model_is_the_same_alone_and_among_neighbours(setup, small_data, small_net):
    own = {"data": small_data(augmented=True), "optimizer": Adam(lr=0.01)}
    nets = [small_net(dropout=0.3), small_net(dropout=0.5), small_net(torch_random=0.2)]
    # A cohort shares its layout; the stochastic layers have no parameters.
    jobs = [setup.job(seed, architecture=net, **own) for seed, net in enumerate(nets)]
    together = setup.trainer(*jobs, **own)
    alone = [setup.trainer(job, **own) for job in jobs]
    for _ in range(2):
        together.train_epoch(never)
        for trainer in reversed(alone):
            trainer.train_epoch(never)
    rows = together.state().weights
    assert len({r.tobytes() for r in rows}) == 3
    for row_, trainer in zip(rows, alone, strict=True):
        assert row_.tobytes() == trainer.state().weights[0].tobytes()


def test_seeds_act_apart(setup, small_data, small_net):
    from dataclasses import replace

    own = {"data": small_data(augmented=True), "architecture": small_net(dropout=0.3)}
    base = setup.job(1, **own)

    def trained(job):
        trainer = setup.trainer(job, **own)
        first = trainer.state().weights.tobytes()
        trainer.train_epoch(never)
        return first, trainer.state().weights.tobytes()

    first, last = trained(base)
    for stream in ("init", "order", "augment", "dropout"):
        other_first, other_last = trained(replace(base, seeds=replace(base.seeds, **{stream: 7})))
        assert (other_first == first) is (stream != "init")
        assert other_last != last


def test_augmentation_gets_each_optimizer_step_once(setup, small_data):
    data = small_data(augmented=True)
    trainer = setup.trainer(data=data, training={"micro_batch": 4})
    for _ in range(2):
        trainer.train_epoch(never)
    key = streams.stream_key(0, "augment")
    assert data.augment_calls == [(key, step, 4 if step % 7 == 6 else 10) for step in range(14)]


def test_training_leaves_torchs_generator_alone(setup, small_net):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer = setup.trainer(architecture=small_net(dropout=0.2, torch_random=0.3))
    trainer.train_epoch(never)
    trainer.checkpoint(("model-0",))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.backends.cudnn.allow_tf32  # torch's default, which float32 training must not change for others


def test_training_stops_between_two_steps(setup):
    calls = iter([False] * 4 + [True])
    trainer = setup.trainer()
    with pytest.raises(Incomplete, match="epoch 1"):
        trainer.train_epoch(lambda: next(calls))
    assert trainer.epoch == 0


def test_a_changed_layout_is_refused(setup, small_net):
    from dataclasses import replace

    from zoogen.train.plain import PlainTrainer

    cohort = replace(setup.cohort(), layout_id="0" * 32)
    with pytest.raises(IntegrityError, match="layout"):
        PlainTrainer(cohort, setup.data, "cpu")
