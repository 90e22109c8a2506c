"""A build may be killed, stopped, run twice, run out of disk or lose a shard: its zoo stays valid and is completed."""

import json
import os
import shutil
import signal
import subprocess

import build_runs
import pytest
from build_runs import build, rows, shards, write_blueprint
from fault_points import Point, read_points

from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder
from zoogen.train.plain import PlainTrainer

SHARD_BYTES = 5_000  # two epochs of two models


@pytest.fixture
def several_shards(monkeypatch):
    monkeypatch.setattr("zoogen.plan.cohorts.SHARD_BYTES", SHARD_BYTES)


def epochs_in_logs(zoo):
    found = {}
    for path in (zoo / "logs").glob("*.jsonl"):
        lines = map(json.loads, path.read_text().splitlines())
        found[path.stem] = [line["epoch"] for line in lines if line["event"] == "epoch"]
    return found


def test_a_build_killed_in_training_sealing_and_renaming_ends_in_the_bytes_of_an_undisturbed_one(
    tmp_path, command, several_shards
):
    blueprint = write_blueprint(tmp_path / "a.yaml")
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    build(blueprint, undisturbed)
    for point in (
        Point("train", 2, ""),
        Point("seal", 1, "models.parquet"),  # the weights are written, the tables are not
        Point("rename", 1, "after"),
        Point("save", 1, ""),
    ):
        run = command("build", blueprint, "-o", zoo, "--executor", "serial", shard_bytes=SHARD_BYTES, hold=point)
        run.reach_hold(point)
        run.process.kill()
        assert run.wait() == -signal.SIGKILL
        report = verify(zoo)
        assert not report.damaged, report.damaged
        assert report.missing, "it was killed before the end"
    outcome = build(blueprint, zoo)
    assert outcome.exit_code == 0
    assert shards(zoo) == shards(undisturbed)
    assert verify(zoo).complete
    assert build_runs.leftovers(zoo) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_build_exits_3_at_once_and_goes_on_after_its_last_epoch(tmp_path, command, several_shards, number):
    blueprint = write_blueprint(tmp_path / "a.yaml", {"training.epochs": 4})
    zoo, undisturbed = tmp_path / "zoo", tmp_path / "undisturbed"
    run = command("build", blueprint, "-o", zoo, "--executor", "serial", slow=0.3, shard_bytes=SHARD_BYTES)
    run.reach("train", 4)
    os.kill(run.process.pid, number)
    assert run.wait() == 3, run.output
    assert "run the same command again" in run.output
    assert "Traceback" not in run.output
    assert not verify(zoo).damaged
    before = epochs_in_logs(zoo)
    (stopped,) = before
    assert before[stopped][:4] == [0, 1, 2, 3]
    assert build(blueprint, zoo).exit_code == 0
    after = epochs_in_logs(zoo)
    assert all(epochs == [0, 1, 2, 3, 4] for epochs in after.values()), "an epoch was trained twice or left out"
    build(blueprint, undisturbed)
    assert shards(zoo) == shards(undisturbed)
    assert build_runs.leftovers(zoo) == []


def test_a_second_builder_is_refused_and_told_of_the_first(tmp_path, command):
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml"), tmp_path / "zoo"
    first = command("build", blueprint, "-o", zoo, "--executor", "serial", slow=0.2)
    first.reach("train", 1)
    second = command("build", blueprint, "-o", zoo, "--executor", "serial")
    assert second.wait() == 2
    assert f"is being built by process {first.process.pid} on " in second.output
    assert read_points(second.points) == {}
    status = command("status", zoo)
    assert status.wait() == 0
    assert f"being built by process {first.process.pid}" in status.output
    assert first.wait() == 0, first.output
    assert verify(zoo).complete


def test_what_cannot_fit_on_the_disk_is_refused_before_anything_is_created(tmp_path, monkeypatch):
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml"), tmp_path / "some" / "where" / "zoo"
    usage = shutil.disk_usage(tmp_path)
    # 4 models x 3 states x 1,240 bytes, 2 optimizer moments of each model, and the work copies.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    with pytest.raises(EnvironmentFault, match="does not fit") as refused:
        build(blueprint, zoo)
    assert refused.value.exit_code == 5
    assert not (tmp_path / "some").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    assert build(blueprint, zoo).exit_code == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert build(blueprint, zoo).exit_code == 0, "a complete zoo needs no room"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_leaves_a_valid_zoo_that_is_completed_when_there_is_room(
    tmp_path, small_disk, monkeypatch, several_shards
):
    # 30 kB a state: the four shards take about 0.6 MB, more than the other files leave.
    blueprint = write_blueprint(tmp_path / "a.yaml", {"architecture.hidden": [100]})
    zoo, undisturbed = small_disk / "zoo", tmp_path / "undisturbed"
    monkeypatch.setattr("zoogen.build.pipeline._check_disk", lambda *_: None)  # somebody else fills the disk later
    filling = small_disk / "something-else"
    filling.write_bytes(b"x" * 2_600_000)
    with pytest.raises(EnvironmentFault, match="no room"):
        build(blueprint, zoo)
    report = verify(zoo)
    assert not report.damaged, report.damaged
    assert report.missing
    kept = shards(zoo)
    filling.unlink()
    assert build(blueprint, zoo).exit_code == 0
    build(blueprint, undisturbed)
    assert shards(zoo) == shards(undisturbed)
    assert kept.items() <= shards(zoo).items()
    assert build_runs.leftovers(zoo) == []


def test_a_damaged_shard_is_named_moved_aside_and_made_anew_with_the_same_bytes(tmp_path, command, several_shards):
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml"), tmp_path / "zoo"
    build(blueprint, zoo)
    before = shards(zoo)
    name = next(n for n in before if n.endswith("weights.h5"))
    shard_id = name.partition("/")[0]
    data = bytearray(before[name])
    data[len(data) // 2] ^= 1
    (zoo / "shards" / name).write_bytes(data)
    told = command("verify", zoo)
    assert told.wait() == 4
    assert f"damaged: shards/{name}" in told.output
    assert [d.shard_id for d in verify(zoo).damaged] == [shard_id]
    assert command("verify", zoo, "--move-damaged").wait() == 4
    assert not (zoo / "shards" / shard_id).exists()
    assert [m.shard_id for m in verify(zoo).missing] == [shard_id]
    assert build(blueprint, zoo).exit_code == 0
    assert shards(zoo) == before
    assert command("verify", zoo).wait() == 0


def test_whichever_shard_of_a_cohort_is_lost_is_made_anew_alone_with_the_same_bytes(tmp_path, several_shards):
    """An earlier segment too, whose later ones are sealed and end with the optimizer state."""
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml"), tmp_path / "zoo"
    build(blueprint, zoo)
    before = shards(zoo)
    lost = sorted({name.partition("/")[0] for name in before})
    assert len(lost) > 2
    for shard_id in lost:
        ZooFolder(zoo).remove_damaged(shard_id)
        assert build(blueprint, zoo).exit_code == 0
        assert shards(zoo) == before
    assert verify(zoo).complete


def test_a_cohort_that_lost_an_earlier_shard_and_is_halved_makes_that_shard_anew_too(
    tmp_path, several_shards, monkeypatch
):
    change = {"seeds.range": [0, 1], "training.epochs": 5}  # two models, three shards
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", change), tmp_path / "zoo"
    build(blueprint, zoo)
    before = rows(zoo)
    (cohort,) = ZooFolder(zoo).read_cohorts()
    assert len(cohort.segments) == 3
    ZooFolder(zoo).remove_damaged(cohort.segments[1].shard_id)
    train = PlainTrainer.train_epoch

    def only_alone(self, should_stop):
        if len(self.state().model_ids) > 1:
            raise RuntimeError("too many")
        train(self, should_stop)

    with monkeypatch.context() as patched:
        patched.setattr(PlainTrainer, "train_epoch", only_alone)
        assert build(blueprint, zoo).exit_code == 0
    report = verify(zoo)
    assert report.complete, report
    assert report.counts["states"] == 2 * 6
    assert rows(zoo) == before
    # And it goes on from there like any other zoo.
    assert build(write_blueprint(tmp_path / "b.yaml", change | {"training.epochs": 6}), zoo).exit_code == 0
    assert verify(zoo).complete
    assert before.items() <= rows(zoo).items()
    assert build_runs.leftovers(zoo) == []


@pytest.mark.parametrize(
    ("change", "arguments", "environment", "code", "told"),
    [
        ({"architecture.activation": "rleu"}, [], {}, 2, "Did you mean 'relu'"),
        ({}, ["--set", "training.epoch=3"], {}, 2, "epoch"),
        ({}, ["--where", "training.lr < 1"], {}, 2, "training.lr"),
        ({}, ["--where", "seed <"], {}, 2, "seed <"),
        ({}, ["--no-such-option"], {}, 2, "--no-such-option"),
        ({}, ["--sample", "0"], {}, 2, "--sample"),
        ({}, ["--cpus", "2"], {}, 2, "--cpus goes with --executor ray"),
        ({"task": {"name": "mnist"}, "architecture.hidden": [4]}, [], {"ZOOGEN_DATA": "EMPTY"}, 5, "mnist"),
    ],
    ids=["blueprint", "override", "unknown-factor", "predicate", "option", "sample", "cpus", "no-data"],
)
def test_bad_input_has_its_exit_code_and_leaves_no_trace(tmp_path, command, change, arguments, environment, code, told):
    blueprint = write_blueprint(tmp_path / "a.yaml", change)
    (tmp_path / "empty").mkdir()
    environment = {k: str(tmp_path / "empty") for k in environment}
    place = tmp_path / "not" / "yet"
    run = command("build", blueprint, "-o", place / "zoo", "--executor", "serial", *arguments, environment=environment)
    assert run.wait() == code, run.output
    assert told.lower() in run.output.lower()
    assert "Traceback" not in run.output
    assert not (tmp_path / "not").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_missing_blueprint_and_a_folder_of_other_things_are_the_users_mistake(tmp_path, command):
    gone = command("build", tmp_path / "gone.yaml", "-o", tmp_path / "zoo", "--executor", "serial")
    assert gone.wait() == 2
    assert "gone.yaml" in gone.output
    assert "Traceback" not in gone.output
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        build(write_blueprint(tmp_path / "a.yaml"), other)
    assert [p.name for p in other.rglob("*")] == ["thesis.tex"]


def test_a_stored_failure_is_forgotten_when_the_model_is_stored(tmp_path):
    """A build killed between the last seal and its bookkeeping leaves the old reason behind."""
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml"), tmp_path / "zoo"
    build(blueprint, zoo)
    model = ZooFolder(zoo).plan_table()["model_id"][0].as_py()
    (zoo / "logs" / "failures.json").write_text(json.dumps({model: "RuntimeError: no longer"}))
    outcome = build(blueprint, zoo)
    assert (outcome.exit_code, outcome.failed) == (0, {})
