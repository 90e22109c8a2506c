"""What the installed Ray Tune really writes comes in: a class that trains CNN-s on digits, a checkpoint per epoch."""

import sys
from pathlib import Path

import pytest
import torch
from published_zoos import Published, config
from torch.nn.functional import cross_entropy

import zoogen
from zoogen.build.imported_task import Trained
from zoogen.build.importing import import_zoo
from zoogen.core.registry import TASKS
from zoogen.store.verify import verify
from zoogen.tasks.places import cache_root


def samples(data, part):
    inputs, targets = data.tensors(part, "cpu")
    return data.prepare(inputs), targets


@pytest.mark.slow
def test_a_run_of_ray_tune_is_imported(tmp_path):
    ray = pytest.importorskip("ray")
    from ray import tune

    task = TASKS.make("digits", {"size": 28, "val": 200, "test": 400})
    data = task.load(Path("nowhere"), cache_root())
    trained_on, tested_on = samples(data, "train"), samples(data, "test")

    class Trial(tune.Trainable):
        def setup(self, settings):
            torch.manual_seed(settings["seed"])
            self.network = Published(settings)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings["optim::lr"])

        def step(self):
            for inputs, targets in zip(*(t.split(50) for t in trained_on), strict=True):
                loss = cross_entropy(self.network(inputs), targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            inputs, targets = tested_on
            with torch.no_grad():
                outputs = self.network(inputs)
            return {
                "test_loss": cross_entropy(outputs, targets).item(),
                "test_acc": (outputs.argmax(1) == targets).double().mean().item(),
                "done": self.iteration >= 2,
            }

        def save_checkpoint(self, folder):
            torch.save(self.network.state_dict(), Path(folder) / "checkpoints")

    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": ":".join(sys.path)}})
    try:
        tune.Tuner(
            Trial,
            param_space=config() | {"seed": tune.grid_search([1, 2])},
            run_config=tune.RunConfig(
                name="runs",
                storage_path=str(tmp_path),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            ),
        ).fit()
    finally:
        ray.shutdown()
    done = import_zoo(tmp_path / "runs", None, tmp_path / "zoo", lambda text: None, Trained(task, data))
    assert (done.models, done.states, done.skipped) == (2, 6, ())
    assert (done.check.models, done.check.difference) == (2, 0.0)
    assert verify(done.path).complete
    zoo = zoogen.open(done.path)
    assert sorted(zoo.models["seed"]) == [1, 2]
    trials = dict(zip(zoo.models["model_id"], zoo.models["source.key"], strict=True))
    inputs, targets = tested_on
    for row in zoo.checkpoints.itertuples():
        (file,) = (tmp_path / "runs" / trials[row.model_id]).glob(f"checkpoint_*{row.epoch}/checkpoints")
        written = torch.load(file, weights_only=True)
        read = zoo.state_dict(row.model_id, row.epoch)
        assert all(torch.equal(a, b) for a, b in zip(written.values(), read.values(), strict=True))
        network = Published(config())
        network.load_state_dict(written)
        with torch.no_grad():
            outputs = network(inputs)
        # The metrics of an epoch are those of its weights, whichever way Ray numbers the two.
        assert row.test_loss == pytest.approx(cross_entropy(outputs, targets).item(), rel=1e-6)
        assert row.test_acc == (outputs.argmax(1) == targets).double().mean().item()
