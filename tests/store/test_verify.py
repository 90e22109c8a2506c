import json
import logging
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from store_samples import Sample, make_checkpoint, make_cohort, make_state, record_of

from zoogen.core.errors import UserError
from zoogen.store.derive import rebuild_tables
from zoogen.store.verify import verify


def complete(sample):
    sample.seal_all()
    rebuild_tables(sample.folder, {})
    return sample


def test_a_complete_zoo_is_proven_complete(sample):
    report = verify(complete(sample).path)
    assert report.complete, report
    assert report.counts["states"] == 28
    assert report.counts["models"] == report.counts["scheduled"] == 4
    assert report.counts["planned"] == 5  # one is in no cohort yet


def test_missing_shards_are_listed_with_their_models_and_epochs(tmp_path):
    sample = Sample.make(tmp_path / "zoo", cohorts=2)
    sample.seal(0)
    rebuild_tables(sample.folder, {})
    report = verify(sample.path)
    assert not report.complete
    assert not report.damaged
    assert [(m.shard_id, m.models, m.epochs) for m in report.missing] == [
        ("c0-s1", 4, (3, 4)),
        ("c0-s2", 4, (5, 6)),
        ("c1-s0", 4, (0, 1, 2)),
        ("c1-s1", 4, (3, 4)),
        ("c1-s2", 4, (5, 6)),
    ]
    assert str(report.missing[1]) == "shard c0-s2 (cohort c0): 4 models, epochs 5 to 6"


@pytest.mark.parametrize("file", ["weights.h5", "optimizer.h5", "models.parquet", "checkpoints.parquet", "shard.json"])
def test_a_flipped_bit_anywhere_names_its_shard_and_file(sample, file):
    complete(sample)
    path = sample.path / "shards" / "c0-s2" / file
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in {0, len(good) - 1, *rng.integers(0, len(good), 12).tolist()}:
        data = bytearray(good)
        data[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        report = verify(sample.path)
        assert [(d.shard_id, d.file) for d in report.damaged] == [("c0-s2", f"shards/c0-s2/{file}")], place
        assert report.damaged_shards() == ["c0-s2"]
    path.write_bytes(good)
    assert verify(sample.path).complete


@pytest.mark.parametrize("file", ["plan.parquet", "cohorts.parquet", "models.parquet", "checkpoints.parquet"])
def test_a_flipped_bit_in_a_table_is_found_or_harmless(sample, file):
    complete(sample)
    path = sample.path / file
    good = path.read_bytes()
    frame = pd.read_parquet(path)
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.integers(0, len(good), 25).tolist():
        data = bytearray(good)
        data[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        report = verify(sample.path)
        found += not report.complete
        if report.complete:  # statistics, names of the writer: the content is the same
            pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
    assert found > 10


def test_without_reading_every_byte_sizes_are_still_held(sample):
    complete(sample)
    path = sample.path / "shards" / "c0-s0" / "weights.h5"
    path.write_bytes(path.read_bytes()[:-1])
    assert [d.file for d in verify(sample.path, deep=False).damaged] == ["shards/c0-s0/weights.h5"]


def test_a_damaged_shard_is_rebuilt_alone(sample):
    complete(sample)
    before = {p: (p.stat().st_ino, p.read_bytes()) for p in sample.path.glob("shards/*/*")}
    weights = sample.path / "shards" / "c0-s1" / "weights.h5"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    aside = sample.folder.remove_damaged("c0-s1")
    assert (aside / "weights.h5").exists()
    assert [m.shard_id for m in verify(sample.path).missing] == ["c0-s1"]
    sample.seal(1)
    assert verify(sample.path).complete
    for path, (inode, data) in before.items():
        assert path.read_bytes() == data
        assert path.stat().st_ino == inode or path.parent.name == "c0-s1"


def test_strange_and_missing_files_and_shards_are_reported(sample):
    complete(sample)
    shards = sample.path / "shards"
    (shards / "c0-s0" / "notes.txt").write_text("x")
    (shards / "c0-s1" / "models.parquet").unlink()
    shutil.copytree(shards / "c0-s2", shards / "c0-s9")
    (shards / ".tmp-c0-s1-abc").mkdir()  # never looked at
    told = [str(d) for d in verify(sample.path).damaged]
    assert told[0] == "shards/c0-s0/notes.txt: does not belong to the shard"
    assert told[1] == "shards/c0-s1/models.parquet: is missing"
    assert "describes shard 'c0-s2'" in told[2]
    assert len(told) == 3


def test_a_shard_that_the_plan_does_not_have_is_reported(sample):
    complete(sample)
    stranger = make_cohort(sample.layout, name="c7")
    sample.seal(0, stranger)
    assert "shards/c7-s0: is not in the plan" in [str(d) for d in verify(sample.path).damaged]


def test_a_checkpoint_in_two_shards_is_reported(sample):
    """Each shard alone is intact and planned; only together they hold an epoch twice."""
    overlapping = make_cohort(sample.layout, segments=((0, 2), (2, 4), (5, 6)))
    sample.folder.write_cohorts([record_of(overlapping)])
    for segment in range(3):
        sample.seal(segment, overlapping)
    told = " ".join(str(d) for d in verify(sample.path).damaged)
    assert "4 checkpoints are stored more than once" in told
    assert "planned in two shards" in told
    assert "at epoch 2" in told


def test_rows_that_contradict_the_tables_are_found_even_when_the_digests_agree(sample):
    from test_hostile import sign

    complete(sample)
    folder = sample.path / "shards" / "c0-s0"
    with h5py.File(folder / "weights.h5", "r+") as file:
        file["epoch"][0] = 1
    sign(folder)
    assert "not those of checkpoints.parquet" in str(verify(sample.path).damaged[0])


def test_diverged_models_are_complete_with_what_they_have(tmp_path):
    sample = Sample.make(tmp_path / "zoo", checkpoint_epochs=(0, 2, 4, 6))
    ids = sample.cohort.model_ids
    living = tuple(m for m in ids if m != ids[1])
    state = make_state(sample.cohort, sample.layout, 6, diverged={ids[1]: 4}, last_finite={ids[1]: 3})
    sample.seal(0)
    rows = [make_checkpoint(sample.cohort, sample.layout, e, living, optimizer=e == 6) for e in (4, 6)]
    kept = make_checkpoint(sample.cohort, sample.layout, 3, (ids[1],))
    sample.seal(1, checkpoints=[*rows, kept], state=state)
    sample.seal(2, checkpoints=rows, state=state)
    rebuild_tables(sample.folder, {})
    report = verify(sample.path)
    assert report.complete, report
    assert report.counts["diverged"] == 1
    sample.folder.remove_damaged("c0-s1")
    sample.seal(1, checkpoints=rows, state=state)  # without the last finite state
    assert "last finite state" in str(verify(sample.path).damaged[0])


def test_stale_tables_are_told_apart_from_damage(sample):
    complete(sample)
    models = sample.path / "models.parquet"
    frame = pd.read_parquet(models)
    (sample.path / "checkpoints.parquet").unlink()
    report = verify(sample.path)
    assert (report.damaged, report.stale) == ([], ["checkpoints.parquet"])
    rebuild_tables(sample.folder, {"f" * 32: "out of memory"})
    assert verify(sample.path).complete  # a failed model's reason is the table's own
    assert pd.read_parquet(models)["status"].tolist()[-1] == "failed"
    assert frame["status"].tolist()[-1] == "planned"


def test_a_layout_that_is_not_the_one_of_its_id_is_reported(sample):
    complete(sample)
    manifest = sample.folder.manifest()
    manifest["layouts"][sample.layout.layout_id]["entries"][0]["name"] = "other"
    sample.folder.write_manifest(manifest)
    assert "layout" in str(verify(sample.path).damaged[0])


def test_cohorts_of_a_plan_that_was_never_written_do_no_harm(sample):
    complete(sample)
    later = make_cohort(sample.layout, name="c5")
    sample.folder.write_cohorts([record_of(sample.cohort), record_of(later)])
    assert verify(sample.path).complete


def test_a_model_whose_cohort_is_not_recorded_is_reported(sample):
    complete(sample)
    sample.folder.write_cohorts([])
    assert "are in no cohort record" in " ".join(map(str, verify(sample.path).damaged))


def test_no_zoo_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no zoo"):
        verify(tmp_path)


def test_a_damaged_manifest_does_not_hide_the_rest(sample):
    complete(sample)
    (sample.path / "zoo.json").write_text(json.dumps({"format": "zoogen", "format_version": 9}))
    logging.getLogger()
    report = verify(sample.path)
    assert [d.file for d in report.damaged] == ["zoo.json"]
    assert report.counts["states"] == 28
