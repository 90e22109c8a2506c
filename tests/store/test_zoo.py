import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from store_samples import Sample, make_checkpoint, make_cohort, make_layout, make_state, record_of

from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.cohorts import read_cohorts, write_cohorts
from zoogen.store.derive import rebuild_tables
from zoogen.store.durable import checked_name
from zoogen.store.resume import is_sealed, read_state
from zoogen.store.zoo import ZooFolder

_HOLD = """
import sys
from pathlib import Path
from zoogen.store.zoo import ZooFolder
with ZooFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_builder_is_refused_and_a_dead_one_does_not_block(sample):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(sample.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on "), sample.folder.lock():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with sample.folder.lock():
        owner = json.loads((sample.path / ".work" / "lock").read_text())
        assert owner["pid"] == os.getpid()
        with pytest.raises(UserError), ZooFolder(sample.path).lock():
            pass
    with sample.folder.lock():
        pass


def test_a_manifest_comes_back_and_unknown_versions_are_refused(sample):
    manifest = sample.folder.manifest()
    assert (manifest["name"], manifest["format"], manifest["format_version"]) == ("sample", "zoogen", 1)
    assert sample.folder.layout(sample.layout.layout_id) == sample.layout
    with pytest.raises(IntegrityError, match="missing or damaged"):
        sample.folder.layout("0" * 32)
    (sample.path / "zoo.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(IntegrityError, match="format version 2"):
        sample.folder.manifest()


def test_a_zoo_is_not_created_over_something_else(sample, tmp_path):
    with pytest.raises(UserError, match="holds a zoo already"):
        sample.folder.create({})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"):
        ZooFolder(tmp_path / "other").create({})
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="no zoo at"):
        ZooFolder(tmp_path / "other").manifest()
    begun = tmp_path / "begun"  # killed before the manifest was written
    (begun / ".work").mkdir(parents=True)
    (begun / ".tmp-zoo.json").touch()
    ZooFolder(begun).create({"name": "x", "version": 1})
    assert ZooFolder(begun).manifest()["name"] == "x"


def test_leftovers_of_dead_builders_go_and_sealed_shards_stay(sample):
    sample.seal(0)
    shards = sample.path / "shards"
    new = sample.folder.new_token()
    for name in (f".tmp-c0-s1-{sample.token}", f".tmp-c0-s1-{sample.token}-2", f".tmp-c0-s1-{new}-1"):
        (shards / name).mkdir()
        (shards / name / "weights.h5").touch()
    (sample.path / ".tmp-plan.parquet").touch()
    sample.folder.clean_leftovers(new)
    assert sorted(p.name for p in shards.iterdir()) == [f".tmp-c0-s1-{new}-1", "c0-s0"]
    assert list(sample.folder.sealed()) == ["c0-s0"]
    assert not (sample.path / ".tmp-plan.parquet").exists()


def test_a_plan_comes_back_with_its_types(sample):
    plan = pd.DataFrame(
        {
            "model_id": ["a", "b", "c"],
            "seed": pd.array([2**53 + 1, None, 3], dtype="Int64"),
            "count": np.array([1, 2, 3], np.int32),
            "lr": [0.1, np.nan, 1e-300],
            "nesterov": pd.array([True, None, False], dtype="boolean"),
            "flag": [True, False, True],
            "name": pd.Categorical(["x", None, "y"]),
            "hidden": [[64, 64], [32], None],
            "cohort_id": ["c", None, None],
        }
    )
    sample.folder.write_plan(plan)
    found = sample.folder.read_plan()
    pd.testing.assert_frame_equal(
        found.drop(columns="hidden"), plan.drop(columns="hidden"), check_dtype=True, check_categorical=True
    )
    assert [None if v is None else list(v) for v in found["hidden"]] == [[64, 64], [32], None]
    sample.folder.write_plan(found)
    pd.testing.assert_frame_equal(sample.folder.read_plan(), found)
    with pytest.raises(ValueError, match="twice"):
        sample.folder.write_plan(pd.concat([plan, plan]))


def test_ten_thousand_cohorts_come_back_from_a_small_file(sample):
    cohorts = [make_cohort(sample.layout, 16, 50, ((0, 25), (26, 50)), f"c{i:05d}") for i in range(10_000)]
    records = [record_of(c) for c in cohorts]
    path = sample.path / "cohorts.parquet"
    write_cohorts(path, records)
    assert read_cohorts(path) == records
    assert path.stat().st_size < 160_000 * 16 + 1_000_000  # 16 bytes of a random id cannot be compressed
    assert read_cohorts(sample.path / "none.parquet") == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a.b", "-a", "a b", "a\0", "x" * 129, "ä"])
def test_ids_that_would_be_paths_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a file"):
        checked_name("shard", name)


def test_tables_say_what_became_of_every_model(tmp_path):
    sample = Sample.make(tmp_path / "zoo", cohorts=2)
    ids = sample.cohort.model_ids
    other = make_cohort(sample.layout, name="c1")
    sample.seal(0)
    sample.seal(1)
    living = tuple(m for m in ids if m != ids[2])
    state = make_state(sample.cohort, sample.layout, 6, diverged={ids[2]: 5}, last_finite={ids[2]: 4})
    sample.seal(2, checkpoints=[make_checkpoint(sample.cohort, sample.layout, e, living) for e in (5, 6)], state=state)
    sample.seal(0, other)
    counts = rebuild_tables(sample.folder, {other.model_ids[0]: "out of memory", ids[0]: "long ago"})
    assert counts == {"planned": 4, "trained": 3, "diverged": 1, "failed": 1}
    models = pd.read_parquet(sample.path / "models.parquet").set_index("model_id")
    assert models.loc[list(ids), "status"].tolist() == ["trained", "trained", "diverged", "trained"]
    assert models.loc[ids[2], ["diverged_epoch", "last_epoch"]].tolist() == [5, 4]
    assert models.loc[other.model_ids[0], ["status", "reason", "last_epoch"]].tolist() == ["failed", "out of memory", 2]
    assert models.loc[ids[0], "reason"] is None or pd.isna(models.loc[ids[0], "reason"])
    assert pd.isna(models.loc["f" * 32, "last_epoch"])
    # Scores of the last checkpoint, from the checkpoints themselves.
    for model, epoch in ((ids[0], 6), (ids[2], 4), (other.model_ids[1], 2)):
        metrics = make_checkpoint(sample.cohort, sample.layout, epoch).metrics
        assert models.loc[model, "test_acc"] == metrics["test_acc"][0]
        assert models.loc[model, "ggap"] == metrics["train_acc"][0] - metrics["test_acc"][0]
    rows = pd.read_parquet(sample.path / "checkpoints.parquet")
    assert len(rows) == 4 * 5 + 3 * 2 + 4 * 3
    assert not rows.duplicated(["model_id", "epoch"]).any()


def test_metrics_that_only_some_shards_have_are_nan_elsewhere(tmp_path):
    sample = Sample.make(tmp_path / "zoo", cohorts=2)
    other = make_cohort(sample.layout, name="c1")
    sample.seal(0)
    more = [make_checkpoint(other, sample.layout, e) for e in range(3)]
    for checkpoint in more:
        checkpoint.metrics["train_eval_acc"] = np.full(4, 0.25)
        del checkpoint.metrics["val_acc"]
    sample.seal(0, other, checkpoints=more)
    rebuild_tables(sample.folder, {})
    rows = pd.read_parquet(sample.path / "checkpoints.parquet")
    assert rows["train_eval_acc"].isna().tolist() == [True] * 12 + [False] * 12
    models = pd.read_parquet(sample.path / "models.parquet").set_index("model_id")
    gaps = models["ggap"] + models["test_acc"]  # an evaluated train accuracy counts more than the running mean
    assert gaps[list(other.model_ids)].tolist() == [0.25] * 4
    assert gaps[list(sample.cohort.model_ids)].tolist() == [2 / 8] * 4


def test_timing_comes_from_the_logs_and_torn_lines_do_not_hurt(sample, caplog):
    logs = sample.path / "logs"
    logs.mkdir()
    line = {
        "event": "epoch",
        "cohort_id": "c0",
        "epoch": 1,
        "seconds_train": 1.5,
        "seconds_evaluate": 0.5,
        "seconds_store": 0.25,
        "host": "h",
        "device": "cpu",
        "more": [1],
    }
    (logs / "c0.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps({"event": "note", "message": "x"}) + "\n" + json.dumps(line)[:20]
    )
    rebuild_tables(sample.folder, {})
    timing = pd.read_parquet(sample.path / "timing.parquet")
    assert timing[["cohort_id", "epoch", "seconds_train", "device"]].values.tolist() == [["c0", 1, 1.5, "cpu"]]
    assert "1 lines could not be read" in caplog.text


def test_a_sealed_state_continues_where_the_optimizer_was_kept(sample):
    for segment in range(3):
        sample.seal(segment)
    state = read_state(sample.path, "c0-s2", sample.cohort, sample.layout, stateless=False)
    expected = make_state(sample.cohort, sample.layout, 6)
    assert state.epoch == 6
    for name in ("weights", "side", "optimizer"):
        one, other = getattr(state, name), getattr(expected, name)
        pairs = [(one, other)] if name == "weights" else [(one[k], other[k]) for k in other]
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    assert read_state(sample.path, "c0-s1", sample.cohort, sample.layout, stateless=False) is None
    assert read_state(sample.path, "c0-s1", sample.cohort, sample.layout, stateless=True).epoch == 4
    assert is_sealed(sample.path, "c0-s1")
    assert not is_sealed(sample.path, "c0-s7")


def test_a_diverged_model_continues_as_its_last_finite_state(tmp_path):
    sample = Sample.make(tmp_path / "zoo")
    ids = sample.cohort.model_ids
    state = make_state(sample.cohort, sample.layout, 6, diverged={ids[2]: 2}, last_finite={ids[2]: 1})
    for segment in range(3):
        rows = []
        for checkpoint in sample.checkpoints(segment):
            living = tuple(m for m in ids if m != ids[2] or checkpoint.epoch <= 1)
            rows.append(
                make_checkpoint(
                    sample.cohort, sample.layout, checkpoint.epoch, living, optimizer=bool(checkpoint.optimizer)
                )
            )
        sample.seal(segment, checkpoints=rows, state=state)
    found = read_state(sample.path, "c0-s2", sample.cohort, sample.layout, stateless=False)
    assert (found.diverged, found.last_finite) == ({ids[2]: 2}, {ids[2]: 1})
    assert np.array_equal(found.weights[2], make_checkpoint(sample.cohort, sample.layout, 1).weights[2])
    assert np.array_equal(found.weights[3], make_checkpoint(sample.cohort, sample.layout, 6).weights[3])
    assert not found.optimizer["exp_avg"][2].any()


def test_importing_the_store_loads_neither_torch_nor_ray():
    code = (
        "import sys, zoogen.store.zoo, zoogen.store.read, zoogen.store.verify;"
        "sys.exit(bool({'torch', 'ray', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_in_a_zoo_is_pickled(sample):
    from zoogen.store.work import Work

    sample.seal(0)
    work = Work.claim(sample.path, sample.cohort, sample.token)
    work.save(make_state(sample.cohort, sample.layout, 3), [make_checkpoint(sample.cohort, sample.layout, 3)])
    starts = {
        ".h5": b"\x89HDF", ".parquet": b"PAR1", ".json": b"{", ".safetensors": None, "": None,
    }  # fmt: skip
    for path in (p for p in Path(sample.path).rglob("*") if p.is_file()):
        start = starts[path.suffix]
        assert start is None or path.read_bytes().startswith(start), path
    assert make_layout().layout_id == sample.layout.layout_id
