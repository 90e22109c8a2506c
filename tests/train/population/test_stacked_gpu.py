"""The stacked engine on a GPU: the CPU's models up to rounding, recorded steps or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoogen.train.optimizers import SGD, Adam
from zoogen.train.population.stacked import graph
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.population.trainer import PopulationTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def trained(setup, small_net, small_data):
    def train(device, epochs=3, precision="float32", optimizer=SGD, **further):
        data = small_data((96, 20, 30), augmented=True)  # nine batches of 10 and one of 6: recorded, replayed, rest
        jobs = [
            setup.job(
                seed,
                architecture=small_net(norm=True, dropout=0.1 * seed),
                optimizer=optimizer(lr=0.01 * (1 + seed)),
                training={"label_smoothing": 0.1 * (seed % 2), "clip_norm": 1.0, "precision": precision},
            )
            for seed in range(3)
        ]
        engine = StackedEngine(jobs[0], data, torch.device(device), **further)
        trainer = PopulationTrainer(setup.cohort(*jobs, architecture=jobs[0].architecture), data, device, engine)
        for _ in range(epochs):
            trainer.train_epoch(lambda: False)
        return trainer, tuple(job.model_id for job in jobs)

    return train


@pytest.mark.parametrize("conv", ["unfold", "grouped", "shifted", "loop"])
@pytest.mark.parametrize("pool", ["native", "slices"])
def test_a_gpu_trains_the_cpus_models(trained, conv, pool):
    variants = {"conv2d": conv, "max_pool": pool}
    (ours, ids), (theirs, _) = trained("cuda", variants=variants), trained("cpu", variants=variants)
    # Thirty steps of float32, summed in another order.
    np.testing.assert_allclose(ours.state().weights, theirs.state().weights, atol=1e-4)
    a, b = ours.checkpoint(ids).metrics, theirs.checkpoint(ids).metrics
    for name in ("train_loss", "val_loss", "test_loss", "grad_norm"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-2)


def test_recorded_steps_are_the_steps(trained, monkeypatch):
    recorded = trained("cuda", variants={"conv2d": "unfold", "max_pool": "slices"}, optimizer=Adam)[0].state()
    monkeypatch.setattr(graph, "_WARM_UP", 10**9)
    run = trained("cuda", variants={"conv2d": "unfold", "max_pool": "slices"}, optimizer=Adam)[0].state()
    np.testing.assert_allclose(recorded.weights, run.weights, atol=1e-5)
    assert recorded.optimizer["step"].tolist() == run.optimizer["step"].tolist()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_narrower_arithmetic_learns_as_well(trained, precision):
    trainer, ids = trained("cuda", precision=precision)
    assert (trainer.checkpoint(ids).metrics["train_acc"] > 0.4).all()


def test_what_is_measured_on_a_gpu_is_remembered(trained, tmp_path):
    trained("cuda", epochs=1, cache=tmp_path / "cache.json")
    assert torch.cuda.get_device_name() in (tmp_path / "cache.json").read_text()
