"""A zoo grows: more seeds, values and epochs train only the difference; what contradicts it is refused untouched."""

import json

import build_runs
import pytest
from build_runs import Recorder, build, everything, rows, shards, write_blueprint

from zoogen.core.errors import UserError
from zoogen.store.verify import verify


@pytest.fixture(autouse=True)
def _several_shards_per_cohort(monkeypatch):
    # Two models of 310 weights: 2,480 bytes an epoch, so two epochs fill a shard.
    monkeypatch.setattr("zoogen.plan.cohorts.SHARD_BYTES", 5_000)


def trained_epochs(zoo):
    """(cohort, epoch) of every epoch trained, from the logs; a repeated one stands twice."""
    lines = [json.loads(line) for path in (zoo / "logs").glob("*.jsonl") for line in path.read_text().splitlines()]
    return [(line["cohort_id"], line["epoch"]) for line in lines if line["event"] == "epoch"]


def complete(zoo):
    report = verify(zoo)
    return report.complete and report.counts["models"] == report.counts["planned"] and not build_runs.leftovers(zoo)


@pytest.mark.parametrize(
    ("change", "further_models", "further_rows"),
    [
        ({"seeds.range": [0, 3]}, 2, 6),
        ({"training.optimizer.lr": {"grid": [1.0e-3, 1.0e-2, 1.0e-1]}}, 2, 6),
        ({"architecture.hidden": {"grid": [[4], [6]]}}, 4, 12),
        ({"training.epochs": 5}, 0, 12),
    ],
    ids=["seeds", "values", "architectures", "epochs"],
)
def test_an_extended_zoo_trains_only_the_difference_and_keeps_every_sealed_byte(
    tmp_path, change, further_models, further_rows
):
    zoo = tmp_path / "zoo"
    build(write_blueprint(tmp_path / "a.yaml"), zoo)
    sealed, stored, trained = shards(zoo), rows(zoo), trained_epochs(zoo)
    longer = write_blueprint(tmp_path / "b.yaml", change)
    outcome = build(longer, zoo)
    assert (outcome.exit_code, outcome.trained, outcome.planned) == (0, 4 + further_models, 4 + further_models)
    assert {name: data for name, data in shards(zoo).items() if name in sealed} == sealed
    now = trained_epochs(zoo)
    assert len(now) == len(set(now)), "an epoch was trained twice"
    assert len(rows(zoo)) == len(stored) + further_rows
    assert complete(zoo)
    at_once = tmp_path / "at-once"
    build(longer, at_once)
    assert rows(zoo) == rows(at_once), "weights depend on how the zoo grew"
    assert len(now) > len(trained)


def test_building_a_complete_zoo_again_trains_nothing_and_changes_no_table(tmp_path):
    zoo, blueprint = tmp_path / "zoo", write_blueprint(tmp_path / "a.yaml")
    build(blueprint, zoo)
    before = everything(zoo)
    reporter = Recorder()
    outcome = build(blueprint, zoo, reporter=reporter)
    assert (outcome.exit_code, reporter.pending, reporter.steps) == (0, 0, [])
    assert everything(zoo) == before


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"seeds.range": [1, 3]}, ["2 of 4 stored models", "- seed: 0", "+ seed: 1, 2"]),
        ({"training.optimizer.lr": {"grid": [1.0e-3, 2.0e-2]}}, ["- training.optimizer.lr: 0.01", "0.02"]),
        ({"training.batch_size": 128}, ["4 of 4", "- training.batch_size: 256", "+ training.batch_size: 128"]),
        ({"training.epochs": 1}, ["models of 2 epochs", "asks for 1", "put training.epochs back to 2"]),
        ({"zoo": "another"}, ["'small'", "'another'", "--out"]),
        ({"version": 2}, ["version 1", "has 2"]),
    ],
    ids=["seed-gone", "value-gone", "other-setting", "fewer-epochs", "name", "version"],
)
def test_a_contradicting_blueprint_is_refused_with_the_difference_and_no_file_changes(tmp_path, change, shown):
    zoo = tmp_path / "zoo"
    build(write_blueprint(tmp_path / "a.yaml"), zoo)
    before = everything(zoo)
    with pytest.raises(UserError) as refused:
        build(write_blueprint(tmp_path / "b.yaml", change), zoo)
    assert [part for part in shown if part not in str(refused.value)] == [], str(refused.value)
    assert everything(zoo) == before


def test_checkpoints_that_were_not_kept_are_refused(tmp_path):
    zoo = tmp_path / "zoo"
    build(write_blueprint(tmp_path / "a.yaml", {"checkpoints": {"epochs": [0, 2]}}), zoo)
    before = everything(zoo)
    with pytest.raises(UserError, match="epochs 1 were not kept"):
        build(write_blueprint(tmp_path / "b.yaml"), zoo)
    assert everything(zoo) == before


def test_more_epochs_need_an_optimizer_state_unless_the_optimizer_has_none(tmp_path):
    forget = {"checkpoints": {"optimizer": "none"}}
    zoo = tmp_path / "adam"
    build(write_blueprint(tmp_path / "a.yaml", forget), zoo)
    before = everything(zoo)
    with pytest.raises(UserError, match="kept no optimizer state"):
        build(write_blueprint(tmp_path / "b.yaml", forget | {"training.epochs": 3}), zoo)
    assert everything(zoo) == before
    plain = forget | {"training.optimizer": {"name": "sgd", "lr": {"grid": [1.0e-3, 1.0e-2]}}}
    zoo = tmp_path / "sgd"
    build(write_blueprint(tmp_path / "c.yaml", plain), zoo)
    assert build(write_blueprint(tmp_path / "d.yaml", plain | {"training.epochs": 3}), zoo).exit_code == 0
    assert sorted(epoch for _, epoch in rows(zoo)) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize(
    "part", [{"sample": 1}, {"sample": 3}, {"where": "training.optimizer.lr < 0.005"}, {"where": "seed == 1"}], ids=str
)
def test_a_pilot_completed_later_holds_the_same_weights_as_the_zoo_built_at_once(tmp_path, part):
    blueprint = write_blueprint(tmp_path / "a.yaml")
    zoo, at_once = tmp_path / "zoo", tmp_path / "at-once"
    pilot = build(blueprint, zoo, **part)
    count = part.get("sample", 2)
    assert (pilot.exit_code, pilot.trained, pilot.open) == (3, count, 4 - count)
    assert len({model for model, _ in rows(zoo)}) == count
    sealed = shards(zoo)
    assert build(blueprint, zoo).exit_code == 0
    build(blueprint, at_once)
    assert rows(zoo) == rows(at_once)
    assert sealed.items() <= shards(zoo).items()
    assert complete(zoo)


def test_a_sample_is_the_same_in_every_build_and_grows_by_inclusion(tmp_path):
    blueprint = write_blueprint(tmp_path / "a.yaml")
    found = []
    for count in (1, 2, 3):
        build(blueprint, tmp_path / f"zoo-{count}", sample=count)
        found.append({model for model, _ in rows(tmp_path / f"zoo-{count}")})
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_build_stopped_at_an_epoch_and_completed_is_byte_identical(tmp_path, until):
    blueprint = write_blueprint(tmp_path / "a.yaml", {"training.epochs": 3})
    zoo, at_once = tmp_path / "zoo", tmp_path / "at-once"
    part = build(blueprint, zoo, until=until)
    assert (part.exit_code, part.open) == (3, 4)
    assert {epoch for _, epoch in trained_epochs(zoo)} == set(range(until + 1))
    assert build(blueprint, zoo).exit_code == 0
    build(blueprint, at_once)
    assert shards(zoo) == shards(at_once)
    assert len(trained_epochs(zoo)) == len(set(trained_epochs(zoo))) == 2 * 4, "an epoch was trained twice"
    assert complete(zoo)


def test_an_override_builds_what_the_file_would_build_with_that_value(tmp_path):
    blueprint = write_blueprint(tmp_path / "a.yaml")
    build(blueprint, tmp_path / "set", overrides=["training.epochs=3", "seeds.range=[0, 1]"])
    build(write_blueprint(tmp_path / "b.yaml", {"training.epochs": 3, "seeds.range": [0, 1]}), tmp_path / "file")
    assert shards(tmp_path / "set") == shards(tmp_path / "file")
    assert {epoch for _, epoch in rows(tmp_path / "set")} == {0, 1, 2, 3}


def test_a_zoo_of_diverged_models_is_complete_and_can_be_asked_for_more_epochs(tmp_path):
    change = {"training.optimizer": {"name": "sgd", "lr": 1.0e30}, "training.epochs": 3}
    zoo = tmp_path / "zoo"
    outcome = build(write_blueprint(tmp_path / "a.yaml", change), zoo)
    assert (outcome.exit_code, outcome.diverged, outcome.trained) == (0, 2, 0)
    before = rows(zoo)
    outcome = build(write_blueprint(tmp_path / "b.yaml", change | {"training.epochs": 6}), zoo)
    assert (outcome.exit_code, outcome.diverged) == (0, 2)
    assert rows(zoo) == before
    assert complete(zoo)
