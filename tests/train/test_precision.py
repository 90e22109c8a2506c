import numpy as np
import pytest
import torch

from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.records import Resources
from zoogen.train.optimizers import SGD, Adam
from zoogen.train.precision import matrix_arithmetic


def never() -> bool:
    return False


def trained(setup, epochs=3, **changes):
    trainer = setup.trainer(**changes)
    for _ in range(epochs):
        trainer.train_epoch(never)
    return trainer


def test_bfloat16_trains_near_float32_with_float32_weights(setup):
    own = {"optimizer": SGD(lr=0.05)}
    plain = trained(setup, **own)
    mixed = trained(setup, **own, training={"precision": "bfloat16"})
    weights = mixed.state().weights
    assert weights.dtype == np.float32
    assert not np.array_equal(weights, plain.state().weights)
    np.testing.assert_allclose(weights, plain.state().weights, atol=0.02)
    # The weights are not rounded to bfloat16, which keeps the upper 16 bits of a float32.
    assert (weights.view(np.uint32) & 0xFFFF).any()
    a, b = (t.checkpoint(("model-0",)).metrics for t in (plain, mixed))
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.05)


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_what_only_gpus_do_is_refused_elsewhere(setup, precision):
    with pytest.raises(UserError, match=f"'{precision}' needs a GPU"):
        setup.trainer(training={"precision": precision})


def test_tf32_is_allowed_only_where_asked_for():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("tf32", True), ("float32", False), ("bfloat16", False)):
        with matrix_arithmetic(precision):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_channels_last_is_the_same_training_and_the_same_row(setup, small_net, same_state):
    own = {"architecture": small_net(norm=True, dropout=0.2), "optimizer": SGD(lr=0.05, momentum=0.9)}
    last = {"resources": Resources(channels_last=True)}
    plain, other = trained(setup, **own), trained(setup, **own, **last)
    # Other kernels, other rounding.
    np.testing.assert_allclose(other.state().weights, plain.state().weights, atol=1e-4)
    module = next(iter(other._models.values())).module
    assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(
        other.state().optimizer["momentum_buffer"], plain.state().optimizer["momentum_buffer"], atol=1e-4
    )
    again = setup.trainer(**own, **last)
    again.restore(other.state())
    same_state(again.state(), other.state())
    again.train_epoch(never)
    other.train_epoch(never)
    same_state(again.state(), other.state())


def test_a_compiler_that_does_not_work_is_a_fault_of_the_environment(setup, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend=broken))
    with pytest.raises(EnvironmentFault, match="no compiler here"):
        trained(setup, resources=Resources(compile=True))


def test_a_compiled_model_trains_as_the_plain_one(setup, small_net, monkeypatch):
    # The compiler's front end traces the network; the back end here runs the traced graph as it is.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="aot_eager"))
    own = {"architecture": small_net(norm=True, dropout=0.3)}
    plain = trained(setup, 2, **own)
    compiled = trained(setup, 2, **own, resources=Resources(compile=True))
    np.testing.assert_allclose(compiled.state().weights, plain.state().weights, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_every_precision_trains_and_continues_on_a_gpu(setup, small_net, precision):
    from zoogen.train.plain import PlainTrainer

    own = {
        "architecture": small_net(norm=True, dropout=0.2, torch_random=0.1),
        "training": {"precision": precision, "clip_norm": 1.0},
        "resources": Resources(channels_last=True, gpus=1),
        "optimizer": Adam(lr=0.01),
    }
    cohort = setup.cohort(setup.job(**own), **own)
    trainer = PlainTrainer(cohort, setup.data, "cuda")
    for _ in range(2):
        trainer.train_epoch(never)
    other = PlainTrainer(cohort, setup.data, "cuda")
    other.restore(trainer.state())
    trainer.train_epoch(never)
    other.train_epoch(never)
    np.testing.assert_allclose(other.state().weights, trainer.state().weights, atol=1e-3)
    assert trainer.checkpoint(("model-0",)).metrics["train_acc"][0] > 0.4
    assert ("grad_scaler" in trainer.state().optimizer) is (precision == "float16")
