import numpy as np
import pytest
import torch
from torch import nn

from zoogen.core.records import Recording
from zoogen.train import evaluate as evaluation
from zoogen.train.metrics import METRICS
from zoogen.train.optimizers import Adam


def never() -> bool:
    return False


def naive(module, data, part, first=None):
    """Sample by sample, in eval mode: losses and predictions."""
    inputs, targets = data.tensors(part, "cpu")
    losses, classes = [], []
    with torch.no_grad():
        for image, target in list(zip(inputs, targets, strict=True))[:first]:
            outputs = module.eval()(data.prepare(image[None]))[0].double()
            losses.append((outputs.logsumexp(0) - outputs[target]).item())
            classes.append(max(range(3), key=lambda c: outputs[c].item()))
    return np.array(losses), np.array(classes), targets.numpy()[:first]


def trained_module(setup, job, trainer):
    module = setup.module(job)
    state = trainer.state()
    with torch.no_grad():
        offset = 0
        tensors = [*module.parameters(), *(b for b in module.buffers() if b.dtype == torch.float32)]
        for tensor in tensors:
            tensor.copy_(torch.tensor(state.weights[0, offset : offset + tensor.numel()]).view(tensor.shape))
            offset += tensor.numel()
    return module


@pytest.mark.parametrize("elements", [64, 7 * 64, 2**19])
def test_scores_are_those_of_a_naive_evaluation(setup, small_net, monkeypatch, elements):
    monkeypatch.setitem(evaluation._ELEMENTS, "cpu", elements)
    own = {
        "architecture": small_net(norm=True, dropout=0.5, torch_random=0.5),
        "optimizer": Adam(lr=0.01),
        "recording": Recording((0, 1), evaluate_train=9, test_predictions=True),
    }
    job = setup.job(**own)
    trainer = setup.trainer(job, **own)
    for _ in range(2):
        trainer.train_epoch(never)
    found = trainer.checkpoint(("model-0",))
    module = trained_module(setup, job, trainer)
    for part, prefix, first in (("test", "test", None), ("val", "val", None), ("train", "train_eval", 9)):
        losses, classes, targets = naive(module, setup.data, part, first)
        assert found.metrics[f"{prefix}_loss"][0] == pytest.approx(losses.mean(), rel=1e-5)
        assert found.metrics[f"{prefix}_acc"][0] == pytest.approx((classes == targets).mean())
        if part == "test":
            assert found.predictions.dtype == np.uint8
            assert found.predictions.tolist() == [classes.tolist()]
            expected = [(classes == targets)[targets == c].mean() for c in range(3)]
            np.testing.assert_allclose(found.metrics["test_acc_per_class"], [expected])


def test_every_column_is_described_and_has_its_shape(setup):
    trainer = setup.trainer(setup.job(0), setup.job(1), recording=Recording((0,), evaluate_train=-1))
    for _ in range(2):
        found = trainer.checkpoint(("model-0", "model-1"))
        assert set(found.metrics) == set(METRICS)
        for name, values in found.metrics.items():
            assert values.dtype == np.float64
            assert values.shape == ((2, 3) if name == "test_acc_per_class" else (2,))
        trainer.train_epoch(never)


def test_epoch_zero_is_evaluated_on_the_training_part(setup):
    job = setup.job(training={"label_smoothing": 0.1})
    metrics = setup.trainer(job).checkpoint(("model-0",)).metrics
    module = setup.module(job).eval()
    inputs, targets = setup.data.tensors("train", "cpu")
    outputs = module(setup.data.prepare(inputs))
    smoothed = nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1).item()
    assert metrics["train_loss"][0] == pytest.approx(smoothed, rel=1e-6)
    assert metrics["train_acc"][0] == (outputs.argmax(1) == targets).double().mean().item()
    assert np.isnan(metrics["grad_norm"][0])
    assert metrics["learning_rate"][0] == 0.1


def test_scores_without_samples_are_nan(setup, small_data):
    data = small_data((64, 0, 5))
    _, targets = data.tensors("test", "cpu")
    targets.clamp_(max=1)
    metrics = setup.trainer(data=data).checkpoint(("model-0",)).metrics
    assert np.isnan(metrics["val_loss"][0])
    assert np.isnan(metrics["val_acc"][0])
    assert np.isnan(metrics["test_acc_per_class"][0]).tolist() == [False, False, True]


def test_evaluation_does_not_disturb_training(setup, small_net):
    own = {"architecture": small_net(norm=True, dropout=0.3, torch_random=0.3)}
    watched, left_alone = setup.trainer(**own), setup.trainer(**own)
    for _ in range(2):
        watched.checkpoint(("model-0",))
        watched.train_epoch(never)
        left_alone.train_epoch(never)
    assert watched.state().weights.tobytes() == left_alone.state().weights.tobytes()


@pytest.mark.parametrize(("keep", "epochs"), [("none", set()), ("last", {2}), ("all", {1, 2})])
def test_optimizer_states_are_kept_where_asked_for(setup, keep, epochs):
    trainer = setup.trainer(optimizer=Adam(lr=0.01), recording=Recording((0, 1, 2), optimizer=keep))
    for epoch in range(3):
        assert bool(trainer.checkpoint(("model-0",)).optimizer) is (epoch in epochs)
        trainer.train_epoch(never)


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.int32)])
def test_predictions_are_kept_in_a_type_that_holds_every_class(setup, small_data, classes, dtype):
    data = small_data()
    data.outputs = classes
    found = setup.trainer(data=data, recording=Recording((0,), test_predictions=True)).checkpoint(("model-0",))
    assert found.predictions.dtype == dtype
    assert found.predictions.shape == (1, data.size("test"))
