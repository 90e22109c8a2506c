"""What the installed Ray Tune really writes comes in: a class that trains CNN-s and checkpoints every epoch."""

import sys
from pathlib import Path

import pytest
import torch
from published_zoos import Published, config, digits
from torch.nn.functional import cross_entropy

from zoogen.importers.opening import open_source


@pytest.mark.slow
def test_a_run_of_ray_tune_is_imported(tmp_path):
    ray = pytest.importorskip("ray")
    from ray import tune

    class Trial(tune.Trainable):
        def setup(self, settings):
            torch.manual_seed(settings["seed"])
            self.network = Published(settings)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings["optim::lr"])

        def step(self):
            images, targets = digits(28)
            loss = cross_entropy(self.network(images), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                return {"test_loss": cross_entropy(self.network(images), targets).item(), "done": self.iteration >= 2}

        def save_checkpoint(self, folder):
            torch.save(self.network.state_dict(), Path(folder) / "checkpoints")

    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": ":".join(sys.path)}})
    try:
        tune.Tuner(
            Trial,
            param_space=config() | {"seed": tune.grid_search([1, 2])},
            run_config=tune.RunConfig(
                name="zoo",
                storage_path=str(tmp_path),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            ),
        ).fit()
    finally:
        ray.shutdown()
    images, targets = digits(28)
    with open_source(tmp_path / "zoo") as source:
        models = sorted(source.models(), key=lambda m: m.settings["seed"])
        assert [m.settings["seed"] for m in models] == [1, 2]
        for model in models:
            assert len(model.checkpoints) == 3
            measured = source.measured(model).by_epoch
            for stored in model.checkpoints:
                written = torch.load(tmp_path / "zoo" / stored.file, weights_only=True)
                read = source.state(model, stored).tensors
                assert all(torch.equal(a, b) for a, b in zip(written.values(), read.values(), strict=True))
                network = Published(config())
                network.load_state_dict(written)
                with torch.no_grad():
                    loss = cross_entropy(network(images), targets).item()
                # The metrics of an epoch are those of its weights, whichever way Ray numbers the two.
                assert measured[stored.epoch]["test_loss"] == pytest.approx(loss, rel=1e-6)
