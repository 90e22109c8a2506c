"""One bad model costs itself: the others are stored, its reason is told, and the next build tries it again."""

import pandas as pd
import pytest
from build_runs import Recorder, build, leftovers, rows, shards, write_blueprint

from zoogen.build.pipeline import BuildOptions
from zoogen.build.pipeline import build as run_build
from zoogen.build.status import read_status
from zoogen.core.errors import Incomplete, UserError
from zoogen.schedule import Finished, SerialExecutor, StopFlag
from zoogen.store.verify import verify

# A network that gives up when its weights are large, unless the variable says otherwise.
FRAGILE = """
import os
from torch import nn

class Fragile(nn.Module):
    def __init__(self, input_shape, outputs, width):
        super().__init__()
        if os.environ.get("FRAGILE") == f"factory {width}":
            raise RuntimeError(f"no network of width {width} today")
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, images):
        if os.environ.get("FRAGILE") == "weights" and self.layers[1].weight.abs().max() > 10:
            raise RuntimeError("the weights are too large")
        if os.environ.get("FRAGILE") == f"forward {self.layers[1].out_features}" and len(images) > 100:
            raise RuntimeError("not this width")
        return self.layers(images)
"""


@pytest.fixture
def fragile(tmp_path, monkeypatch, request):
    """The ``architecture`` section of that network; each test has a module of its own name."""
    name = "fragile_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    return {"name": "import", "path": f"{name}:Fragile", "arguments": {"width": 4}}


def sgd(*rates):
    return {"name": "sgd", "lr": {"grid": list(rates)}}


def test_a_model_that_fails_is_cut_out_of_its_cohort_told_and_tried_again(tmp_path, fragile, monkeypatch):
    change = {"architecture": fragile, "training.optimizer": sgd(1.0e-3, 1.0e-2, 1.0e5), "resources.cohort": 6}
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", change), tmp_path / "zoo"
    monkeypatch.setenv("FRAGILE", "weights")
    reporter = Recorder()
    outcome = build(blueprint, zoo, reporter=reporter)
    assert (outcome.exit_code, outcome.trained, outcome.open) == (1, 4, 0)
    assert set(outcome.failed.values()) == {"RuntimeError: the weights are too large"}
    table = pd.read_parquet(zoo / "models.parquet").set_index("model_id")
    assert (table["training.optimizer.lr"][list(outcome.failed)] == 1.0e5).all()
    assert table["status"].value_counts().to_dict() == {"trained": 4, "failed": 2}
    assert set(table["reason"].dropna()) == {"RuntimeError: the weights are too large"}
    status = read_status(zoo)
    assert status.failed == outcome.failed
    assert status.by_status == {"stored": 4, "training": 0, "planned": 0, "failed": 2}
    assert any("is halved" in note for note in reporter.notes)
    assert not verify(zoo).damaged

    healthy = tmp_path / "healthy"
    build(write_blueprint(tmp_path / "b.yaml", change | {"training.optimizer": sgd(1.0e-3, 1.0e-2)}), healthy)
    assert rows(healthy).items() <= rows(zoo).items(), "a failing neighbour changed weights"

    again = Recorder()
    assert build(blueprint, zoo, reporter=again).exit_code == 1
    assert again.pending == 2, "only the failed ones are tried again"

    before = shards(zoo)
    monkeypatch.delenv("FRAGILE")
    outcome = build(blueprint, zoo)
    assert (outcome.exit_code, outcome.failed, outcome.trained + outcome.diverged) == (0, {}, 6)
    assert before.items() <= shards(zoo).items()
    assert read_status(zoo).by_status == {"stored": 6, "training": 0, "planned": 0, "failed": 0}
    assert verify(zoo).complete
    assert leftovers(zoo) == []


def test_an_architecture_that_fails_for_one_value_costs_only_the_models_of_that_value(tmp_path, fragile, monkeypatch):
    fragile["arguments"] = {"grid": [{"width": 4}, {"width": 5}]}
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", {"architecture": fragile}), tmp_path / "zoo"
    monkeypatch.setenv("FRAGILE", "forward 5")
    outcome = build(blueprint, zoo)
    assert (outcome.exit_code, outcome.trained, len(outcome.failed)) == (1, 4, 4)
    assert set(outcome.failed.values()) == {"RuntimeError: not this width"}
    monkeypatch.delenv("FRAGILE")
    assert build(blueprint, zoo).exit_code == 0
    assert verify(zoo).complete
    at_once = tmp_path / "at-once"
    build(blueprint, at_once)
    assert rows(zoo) == rows(at_once)


def test_a_factory_that_raises_is_named_before_anything_is_created(tmp_path, fragile, monkeypatch, command):
    fragile["arguments"] = {"grid": [{"width": 4}, {"width": 5}]}
    blueprint = write_blueprint(tmp_path / "a.yaml", {"architecture": fragile})
    monkeypatch.setenv("FRAGILE", "factory 5")
    with pytest.raises(UserError, match="no network of width 5 today"):
        build(blueprint, tmp_path / "zoo")
    told = command(
        "build", blueprint, "-o", tmp_path / "zoo", "--executor", "serial", environment={"PYTHONPATH": str(tmp_path)}
    )
    assert told.wait() == 2
    assert "Traceback" not in told.output
    assert not (tmp_path / "zoo").exists()


def test_a_model_that_diverges_is_a_result_and_harms_no_neighbour(tmp_path):
    change = {"training.optimizer": sgd(1.0e-3, 1.0e-2, 1.0e30), "resources.cohort": 6, "training.epochs": 3}
    zoo, without = tmp_path / "zoo", tmp_path / "without"
    outcome = build(write_blueprint(tmp_path / "a.yaml", change), zoo)
    assert (outcome.exit_code, outcome.trained, outcome.diverged, outcome.failed) == (0, 4, 2, {})
    table = pd.read_parquet(zoo / "models.parquet")
    assert (table.loc[table["training.optimizer.lr"] == 1.0e30, "status"] == "diverged").all()
    assert verify(zoo).complete
    build(write_blueprint(tmp_path / "b.yaml", change | {"training.optimizer": sgd(1.0e-3, 1.0e-2)}), without)
    stored, alone = rows(zoo), rows(without)
    assert alone.items() <= stored.items()
    diverged = set(table.loc[table["status"] == "diverged", "model_id"])
    assert {model for model, _ in stored.keys() - alone.keys()} == diverged
    assert {epoch for model, epoch in stored if model in diverged} == {0}, "the last finite state is the initial one"


def test_a_worker_lost_from_sight_is_fenced_off_by_the_next_attempt_of_the_same_build(tmp_path):
    """A node may be taken for dead while its worker goes on: only the later attempt writes."""
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", {"seeds.range": [0, 1]}), tmp_path / "zoo"
    undisturbed = tmp_path / "undisturbed"
    build(blueprint, undisturbed)

    class LosesSight(SerialExecutor):
        def run(self, factory, todo, stop):
            while todo:
                cohort = todo.popleft()
                lost, next_one = factory().run(cohort, stop), factory().run(cohort, stop)
                next(lost)
                next(next_one)
                with pytest.raises(Incomplete, match="fenced"):
                    list(lost)
                yield Finished((cohort, list(next_one))[0])

    outcome = run_build(BuildOptions(blueprint, zoo), LosesSight(), Recorder(), StopFlag())
    assert outcome.exit_code == 0
    assert shards(zoo) == shards(undisturbed)
    assert leftovers(zoo) == []
