import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from store_samples import Sample, make_checkpoint, make_cohort, make_layout, make_state, read_weights

from zoogen.core.errors import Incomplete, IntegrityError
from zoogen.store import shard
from zoogen.store.check import problems_of
from zoogen.store.derive import rebuild_tables
from zoogen.store.read import ShardReader
from zoogen.store.shard import seal_shard
from zoogen.store.stacks import chunk_shape


def test_a_sealed_shard_gives_back_every_array_bit_for_bit(sample):
    checkpoints = sample.checkpoints(2)
    sample.seal(2, checkpoints=list(reversed(checkpoints)))  # the order of arrival does not matter
    with ShardReader(sample.path / "shards" / "c0-s2") as reader:
        for i, checkpoint in enumerate(checkpoints):
            rows = slice(4 * i, 4 * i + 4)
            assert reader.weights(rows).tobytes() == checkpoint.weights.tobytes()
            assert reader.side("int64", rows).tobytes() == checkpoint.side["int64"].tobytes()
            assert reader.side("bfloat16", rows).tobytes() == checkpoint.side["bfloat16"].tobytes()
            assert reader.predictions(rows).tobytes() == checkpoint.predictions.tobytes()
            assert reader.model_ids(rows) == list(checkpoint.model_ids)
            assert set(reader.epochs(rows)) == {checkpoint.epoch}
        last = reader.optimizer(sample.cohort.model_ids[::-1], 6)
        assert np.array_equal(last["exp_avg"], checkpoints[-1].optimizer["exp_avg"][::-1])
        assert last["step"].dtype == np.int64
        assert reader.optimizer(sample.cohort.model_ids, 5) is None
    table = pd.read_parquet(sample.path / "shards" / "c0-s2" / "checkpoints.parquet")
    for name in ("train_loss", "test_acc"):
        assert np.array_equal(table[name], np.concatenate([c.metrics[name] for c in checkpoints]))
    assert np.isnan(table["val_acc"]).all()
    assert np.stack(table["test_acc_per_class"]).shape == (8, 3)


def test_plain_h5py_and_pandas_read_a_shard(sample):
    sample.seal(0)
    folder = sample.path / "shards" / "c0-s0"
    table = pd.read_parquet(folder / "checkpoints.parquet")
    with h5py.File(folder / "weights.h5") as file:
        weights, ids, epochs = file["weights"][:], file["model_id"][:], file["epoch"][:]
    assert weights.shape == (12, 21)
    assert table["model_id"].tolist() == [m.decode() for m in ids]
    assert table["epoch"].tolist() == epochs.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_the_lines_of_the_format_page_read_a_zoo(sample, monkeypatch):
    sample.seal_all()
    rebuild_tables(sample.folder, {})
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(sample.path.parent)
    found = {}
    exec(code, found)
    weights = make_checkpoint(sample.cohort, sample.layout, 5).weights[0]
    assert np.array_equal(found["state"]["fc.weight"], weights[:20])
    assert np.array_equal(found["state"]["fc.bias"], weights[20:])


def test_rows_and_columns_are_read_in_the_order_asked_for(sample):
    sample.seal(0)
    everything = read_weights(sample.path, "c0-s0")
    rng = np.random.default_rng(0)
    for rows in ([11, 0, 5, 5], [1, 5, 9], [], rng.integers(0, 12, 50)):
        assert np.array_equal(read_weights(sample.path, "c0-s0", rows, slice(3, 17, 2)), everything[rows, 3:17:2])
    with pytest.raises(IndexError, match="0 to 11"):
        read_weights(sample.path, "c0-s0", [12])


_SEAL = """
import sys
from pathlib import Path
from store_samples import Sample
sample = Sample.make(Path(sys.argv[1]))
sample.seal_all()
"""


def test_equal_input_gives_equal_bytes_in_every_process(sample, tmp_path):
    sample.seal_all()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", _SEAL, str(tmp_path / "other")], env=environment, check=True)
    for path in sorted(sample.path.glob("shards/*/*")):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(sample.path)).read_bytes(), path


def test_sealing_again_keeps_the_stored_shard(sample):
    first = sample.seal(0)
    folder = sample.path / "shards" / "c0-s0"
    before = {p.name: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}
    assert sample.seal(0) == first
    assert {p.name: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["c0-s0"]


def test_a_damaged_shard_is_not_taken_for_the_one_sealed_again(sample):
    sample.seal(0)
    weights = sample.path / "shards" / "c0-s0" / "weights.h5"
    flip(weights, 1000)
    with pytest.raises(IntegrityError, match=r"c0-s0.*weights\.h5"):
        sample.seal(0)


def test_an_incomplete_shard_is_never_sealed(sample):
    with pytest.raises(ValueError, match=r"missing or too many: \[1\]"):
        sample.seal(0, checkpoints=[c for c in sample.checkpoints(0) if c.epoch != 1])
    with pytest.raises(ValueError, match="two rows"):
        sample.seal(0, checkpoints=sample.checkpoints(0) * 2)
    assert not list((sample.path / "shards").iterdir())


def test_a_diverged_model_has_rows_up_to_its_last_finite_epoch(tmp_path):
    sample = Sample.make(tmp_path / "zoo", checkpoint_epochs=(0, 2, 4, 6))
    ids = sample.cohort.model_ids
    sample.seal(0)
    # Model 1 stops being finite in epoch 4; epoch 3, its last finite state, was not planned but is kept.
    state = make_state(sample.cohort, sample.layout, 4, diverged={ids[1]: 4}, last_finite={ids[1]: 3})
    rest = tuple(m for m in ids if m != ids[1])
    kept = make_checkpoint(sample.cohort, sample.layout, 3, (ids[1],))
    living = make_checkpoint(sample.cohort, sample.layout, 4, rest)
    info = sample.seal(1, checkpoints=[living, kept], state=state)
    assert (info.states, info.epochs, info.diverged) == (4, (3, 4), 1)
    models = pd.read_parquet(sample.path / "shards" / "c0-s1" / "models.parquet").set_index("model_id")
    assert models.loc[ids[1], ["status", "diverged_epoch", "last_finite_epoch"]].tolist() == ["diverged", 4, 3]
    assert models["status"].value_counts()["trained"] == 3
    assert not problems_of(sample.path / "shards" / "c0-s1")


def test_a_last_finite_state_just_before_the_segment_is_kept_in_the_segment_that_found_it_lost(tmp_path):
    sample = Sample.make(tmp_path / "zoo", checkpoint_epochs=(0, 3, 4, 6), segments=((0, 2), (3, 6)))
    ids = sample.cohort.model_ids
    state = make_state(sample.cohort, sample.layout, 6, diverged={ids[1]: 3}, last_finite={ids[1]: 2})
    rest = tuple(m for m in ids if m != ids[1])
    rows = [make_checkpoint(sample.cohort, sample.layout, e, rest) for e in (3, 4, 6)]
    info = sample.seal(1, checkpoints=[*rows, make_checkpoint(sample.cohort, sample.layout, 2, (ids[1],))], state=state)
    assert (info.states, info.epochs) == (10, (2, 3, 4, 6))


def test_rows_of_other_segments_may_be_passed_along(sample):
    info = sample.seal(1, checkpoints=[c for i in range(3) for c in sample.checkpoints(i)])
    assert info.epochs == (3, 4)
    assert read_weights(sample.path, "c0-s1", [0]).tobytes() == sample.checkpoints(1)[0].weights[:1].tobytes()


def test_a_segment_in_which_no_model_lives_is_sealed_empty(sample):
    ids = sample.cohort.model_ids
    gone = {"diverged": dict.fromkeys(ids, 4), "last_finite": dict.fromkeys(ids, 3)}
    info = sample.seal(2, checkpoints=[], state=make_state(sample.cohort, sample.layout, 4, **gone))
    assert info.states == 0
    assert not problems_of(sample.path / "shards" / "c0-s2")
    assert read_weights(sample.path, "c0-s2").shape == (0, 21)


def test_a_worker_of_an_older_build_cannot_seal(sample):
    sample.folder.new_token()
    with pytest.raises(Incomplete, match="fenced"):
        sample.seal(0)
    assert not list((sample.path / "shards").iterdir())


def test_a_worker_that_a_newer_build_cleans_up_after_stops_too(sample, monkeypatch):
    real = shard.write_parquet

    def overtaken(*args):
        sample.folder.clean_leftovers(sample.folder.new_token())
        return real(*args)

    monkeypatch.setattr(shard, "write_parquet", overtaken)
    with pytest.raises(Incomplete, match="fenced"):
        sample.seal(0)
    assert not list((sample.path / "shards").iterdir())


def test_a_zoo_of_tiny_models_takes_at_most_five_percent_more_than_its_float32(tmp_path):
    layout = make_layout(2464)
    cohort = make_cohort(layout, 16, 50, ((0, 50),))
    sample = Sample.make(tmp_path / "zoo")
    rng = np.random.default_rng(0)
    checkpoints = []
    for epoch in range(51):
        plain = make_checkpoint(cohort, layout, epoch, optimizer=epoch == 50)
        noisy = {n: rng.random(16) for n in ("train_loss", "val_loss", "test_loss", "grad_norm", "weight_norm")}
        counted = {n: rng.integers(0, 2007, 16) / 2007 for n in ("train_acc", "val_acc", "test_acc", "ggap", "lr")}
        per_class = {"test_acc_per_class": rng.integers(0, 200, (16, 10)) / 200}
        checkpoints.append(
            type(plain)(epoch, plain.model_ids, plain.weights, plain.side, noisy | counted | per_class, plain.optimizer)
        )
    state = make_state(cohort, layout, 50)
    info = seal_shard(sample.path, "c0-s0", cohort, layout, checkpoints, state=state, token=sample.token)
    on_disk = sum(p.stat().st_size for p in (sample.path / "shards" / "c0-s0").iterdir() if p.name != "optimizer.h5")
    assert on_disk <= 1.05 * 816 * 2464 * 4
    assert info.size <= on_disk


@pytest.mark.parametrize(
    ("per_epoch", "row", "expected"),
    [
        ([16] * 51, (2464,), (16, 2464)),
        ([20] * 51, (2464,), (10, 2464)),  # the largest height that does not straddle epochs
        ([4] * 51, (2464,), (4, 2464)),
        ([1] * 3, (11_173_962,), (1, 1_015_815)),  # 4 MB pieces of nearly equal width
        ([17], (2464,), (1, 2464)),  # 16 would leave 15 empty rows in the second chunk
        ([1000], (), (1000,)),
    ],
)
def test_chunks_hold_states_of_one_epoch_and_hardly_any_padding(per_epoch, row, expected):
    chunk = chunk_shape(per_epoch, row, 4)
    assert chunk == expected
    stored = np.prod([-(-n // c) * c for n, c in zip((sum(per_epoch), *row), chunk, strict=True)], dtype=float)
    assert stored <= 1.01 * sum(per_epoch) * np.prod(row, dtype=float)


def test_shard_json_says_what_is_in_the_shard(sample):
    info = sample.seal(2)
    told = json.loads((sample.path / "shards" / "c0-s2" / "shard.json").read_text())
    assert told["format_version"] == 1
    assert (told["states"], told["parameters"], told["epochs"]) == (8, 21, [5, 6])
    assert told["files"].keys() == {"weights.h5", "optimizer.h5", "models.parquet", "checkpoints.parquet"}
    assert told["files"]["weights.h5"]["size"] == info.files["weights.h5"].size


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
