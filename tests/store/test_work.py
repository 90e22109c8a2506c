from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from store_samples import Sample, make_checkpoint, make_cohort, make_state

from zoogen.core.errors import Incomplete
from zoogen.core.records import Checkpoint, CohortState
from zoogen.store.work import Work


def same_bits(a, b):
    """Equal records: arrays by dtype, shape and bytes, mappings with their order."""
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            one, other = [(x.dtype, x.shape, x.tobytes()) for x in (one, other)]
        elif hasattr(one, "items"):
            one, other = (
                [(k, (v.dtype, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v) for k, v in x.items()]
                for x in (one, other)
            )
        assert one == other, field.name


def save_epochs(work, sample, epochs):
    for epoch in epochs:
        checkpoint = make_checkpoint(sample.cohort, sample.layout, epoch, optimizer=epoch == 3)
        work.save(make_state(sample.cohort, sample.layout, epoch), [checkpoint])


def test_state_and_checkpoints_come_back_bit_for_bit(sample):
    work = Work.claim(sample.path, sample.cohort, sample.token)
    assert work.load() is None
    save_epochs(work, sample, range(4))
    again = Work.claim(sample.path, sample.cohort, "another")
    state, checkpoints = again.load()
    same_bits(state, make_state(sample.cohort, sample.layout, 3))
    assert [c.epoch for c in checkpoints] == [0, 1, 2, 3]
    for checkpoint in checkpoints:
        expected = make_checkpoint(sample.cohort, sample.layout, checkpoint.epoch, optimizer=checkpoint.epoch == 3)
        same_bits(checkpoint, expected)


DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint16", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_odd_values_come_back(sample, dtype):
    special = {"f": [np.nan, -0.0, np.inf, 1e-45], "b": [True, False, True, True]}.get(
        np.dtype(dtype).kind, [0, 1, 2, 3]
    )
    values = np.array(special).astype(dtype).reshape(4, 1)
    state = CohortState(
        1,
        sample.cohort.model_ids,
        weights=np.asfortranarray(np.arange(8, dtype=np.float32).reshape(4, 2)),
        side={dtype: values, "empty": np.empty((4, 0), np.int64)},
        optimizer={"z": values, "a": np.zeros((4, 3))[:, ::2]},
        diverged={sample.cohort.model_ids[1]: 1},
        last_finite={sample.cohort.model_ids[1]: 0},
    )
    empty = Checkpoint(1, (), np.empty((0, 2), np.float32), {}, {"z": np.empty(0), "a": np.empty((0, 3))})
    work = Work.claim(sample.path, sample.cohort, sample.token)
    work.save(state, [empty])
    found, checkpoints = work.load()
    same_bits(found, state)
    same_bits(checkpoints[0], empty)
    found.weights[0, 0] = 7  # a trainer writes into what it is given


def test_sealed_checkpoints_are_dropped_and_later_ones_kept(sample):
    work = Work.claim(sample.path, sample.cohort, sample.token)
    save_epochs(work, sample, range(4))
    work.drop_through(2)
    state, checkpoints = work.load()
    assert (state.epoch, [c.epoch for c in checkpoints]) == (3, [3])
    assert {p.name for p in work.folder.iterdir()} == {
        "current.json",
        "rows-000003.safetensors",
        "state-000003.safetensors",
    }
    work.finish()
    assert not work.folder.exists()
    assert Work.claim(sample.path, sample.cohort, "again").load() is None


def test_an_epoch_saved_again_replaces_its_rows(sample):
    work = Work.claim(sample.path, sample.cohort, sample.token)
    save_epochs(work, sample, [0, 1, 1])
    assert [c.epoch for c in work.load()[1]] == [0, 1]


def test_any_damaged_or_missing_file_means_starting_again(sample, caplog):
    files = ["current.json", "rows-000000.safetensors", "rows-000001.safetensors", "state-000001.safetensors"]
    for name in files:
        for damage in ("flip", "truncate", "empty", "remove"):
            work = Work.claim(sample.path, sample.cohort, sample.token)
            work.finish()
            work = Work.claim(sample.path, sample.cohort, sample.token)
            save_epochs(work, sample, [0, 1])
            path = work.folder / name
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            spoiled = {"flip": bytes(data), "truncate": bytes(data[: len(data) // 2]), "empty": b""}
            path.unlink() if damage == "remove" else path.write_bytes(spoiled[damage])
            caplog.clear()
            again = Work.claim(sample.path, sample.cohort, "next")
            assert again.load() is None, (name, damage)
            if damage != "remove" or name != "current.json":
                assert "starts again" in caplog.text
            save_epochs(again, sample, [0])  # and it can be used from here
            assert again.load()[0].epoch == 0
            again.finish()


def test_a_death_between_any_two_steps_leaves_the_last_epoch_or_the_one_before(sample, monkeypatch):
    """The process dies at the n-th change of the file system; the next worker finds epoch 1 or epoch 2, whole."""

    class Death(BaseException):
        pass

    seen = set()
    for n in range(40):
        work = Work.claim(sample.path, sample.cohort, sample.token)
        save_epochs(work, sample, [0, 1])
        left = n

        def dying(real):
            def call(*args, **kwargs):
                nonlocal left
                if left == 0:
                    raise Death
                left -= 1
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "write_bytes", "write_text", "unlink"):
                patch.setattr(f"pathlib.Path.{name}", dying(getattr(Path, name)))
            try:
                save_epochs(work, sample, [2])
                work.drop_through(0)
                finished = True
            except Death:
                finished = False
        again = Work.claim(sample.path, sample.cohort, f"t{n}")
        state, checkpoints = again.load()
        same_bits(state, make_state(sample.cohort, sample.layout, state.epoch))
        assert [c.epoch for c in checkpoints] in ([0, 1], [0, 1, 2], [1, 2])
        assert checkpoints[-1].epoch == state.epoch
        seen.add(state.epoch)
        again.finish()
        if finished:
            assert n >= 8
            break
    else:
        pytest.fail("never finished")
    assert seen == {1, 2}


def test_a_stale_worker_is_fenced_off_and_never_makes_its_folder_anew(sample):
    stale = Work.claim(sample.path, sample.cohort, "old")
    save_epochs(stale, sample, [0])
    fresh = Work.claim(sample.path, sample.cohort, "new")
    for write in (lambda: save_epochs(stale, sample, [1]), lambda: stale.drop_through(0)):
        with pytest.raises(Incomplete, match="fenced"):
            write()
    assert [p.name for p in fresh.folder.parent.iterdir()] == ["c0.new"]
    assert fresh.load()[0].epoch == 0


def test_state_of_other_models_is_not_used(sample, caplog):
    work = Work.claim(sample.path, sample.cohort, sample.token)
    save_epochs(work, sample, [0])
    fewer = replace(sample.cohort, jobs=sample.cohort.jobs[:2])
    assert Work.claim(sample.path, fewer, sample.token).load() is None
    assert "other models" in caplog.text


def test_cohorts_whose_ids_begin_alike_keep_apart(tmp_path):
    sample = Sample.make(tmp_path / "zoo")
    longer = make_cohort(sample.layout, name="c01")
    Work.claim(sample.path, longer, "old")
    Work.claim(sample.path, sample.cohort, "new")
    assert {p.name for p in (sample.path / ".work" / "cohorts").iterdir()} == {"c01.old", "c0.new"}
