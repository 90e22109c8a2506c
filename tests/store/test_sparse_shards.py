"""Shards of sparse twins: masks come back bit for bit, and zeros take little room."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from store_samples import Sample, make_cohort, make_state

from zoogen.core.errors import IntegrityError
from zoogen.core.modules import describe
from zoogen.core.records import Checkpoint, CohortState
from zoogen.core.registry import ARCHITECTURES
from zoogen.store.check import problems_of
from zoogen.store.read import ShardReader
from zoogen.store.shard import seal_shard, shards_folder
from zoogen.store.stack_file import StackFile
from zoogen.store.work import Work
from zoogen.store.zoo import ZooFolder


def with_masks(sample: Sample, segment: int = 0, *, log_alpha: bool = True) -> list[Checkpoint]:
    """The sample's checkpoints with a mask over its 20 prunable weights, which are 0 where it says so."""
    found = []
    for checkpoint in sample.checkpoints(segment):
        rng = np.random.default_rng(checkpoint.epoch)
        kept = rng.random((len(checkpoint.model_ids), 20)) < 0.4
        weights = checkpoint.weights.copy()
        weights[:, :20] = np.where(kept, weights[:, :20], 0)
        alpha = rng.standard_normal(kept.shape, dtype=np.float32) if log_alpha else None
        found.append(replace(checkpoint, weights=weights, kept=kept, log_alpha=alpha))
    return found


def test_masks_and_log_alpha_come_back_as_they_were_whole_and_in_part(sample):
    checkpoints = with_masks(sample)
    info = sample.seal(0, checkpoints=checkpoints)
    kept = np.concatenate([c.kept for c in checkpoints])
    alpha = np.concatenate([c.log_alpha for c in checkpoints])
    with ShardReader(shards_folder(sample.path) / info.shard_id) as shard:
        assert np.array_equal(shard.kept(20), kept)
        assert shard.kept(20).dtype == np.bool_
        assert np.array_equal(shard.log_alpha(20), alpha)
        for rows in ([0, 3, 7], slice(2, 9, 3), np.array([11])):
            assert np.array_equal(shard.kept(20, rows), kept[rows])
            assert np.array_equal(shard.log_alpha(20, rows), alpha[rows])
        assert np.array_equal(shard.weights()[:, :20] != 0, kept)
    assert problems_of(shards_folder(sample.path) / info.shard_id) == []


def test_every_bit_of_a_sparse_row_comes_back_whole_and_in_part(sample):
    checkpoints = with_masks(sample)
    odd = np.array([-0.0, np.nan, np.inf, np.finfo(np.float32).smallest_subnormal, 0.0], np.float32)
    checkpoints[0].weights[0, :5] = odd
    checkpoints[0].weights[1] = 0
    checkpoints[1].weights[2] = 1
    info = sample.seal(0, checkpoints=checkpoints)
    expected = np.concatenate([c.weights for c in checkpoints])
    with ShardReader(shards_folder(sample.path) / info.shard_id) as shard:
        assert shard.weights().tobytes() == expected.tobytes()
        for rows in ([0, 3, 7], slice(2, 9, 3), np.array([11]), [1, 0, 1]):
            assert shard.weights(rows).tobytes() == expected[rows].tobytes()
            assert shard.weights(rows, slice(3, 17)).tobytes() == expected[rows][:, 3:17].tobytes()


def test_any_reader_finds_the_numbers_of_a_sparse_row_by_their_bits(sample):
    checkpoints = with_masks(sample)
    info = sample.seal(0, checkpoints=checkpoints)
    with h5py.File(shards_folder(sample.path) / info.shard_id / "weights.h5") as file:
        assert "weights" not in file
        values, packed = file["nonzero"][:], file["places"][:]
    for row, expected in enumerate(np.concatenate([c.weights for c in checkpoints])):
        found, left = [], iter(values[row].tolist())
        for i in range(21):
            found.append(next(left) if packed[row, i // 8] >> (7 - i % 8) & 1 else 0.0)
        assert found == expected.tolist()
        assert not any(left)


def test_a_shard_that_lacks_its_bits_is_no_shard(sample):
    info = sample.seal(0, checkpoints=with_masks(sample))
    for name, wrong in (("places", (12, 2)), ("nonzero", (12, 20)), ("places", None)):
        sets = {**info.datasets["weights.h5"]}
        if wrong is None:
            del sets[name]
        else:
            sets[name] = (sets[name][0], wrong)
        folder = shards_folder(sample.path) / info.shard_id
        (folder / "shard.json").write_bytes(replace(info, datasets={**info.datasets, "weights.h5": sets}).to_bytes())
        with pytest.raises(IntegrityError, match="sparse weights"):
            ShardReader(folder)


def test_a_mask_takes_a_bit_per_weight_and_any_reader_can_unpack_it(sample):
    checkpoints = with_masks(sample)
    info = sample.seal(0, checkpoints=checkpoints)
    with h5py.File(shards_folder(sample.path) / info.shard_id / "weights.h5") as file:
        packed = file["kept"][:]
    assert (packed.dtype, packed.shape) == (np.uint8, (12, 3))
    bits = [[row[i // 8] >> (7 - i % 8) & 1 for i in range(20)] for row in packed.tolist()]
    assert np.array_equal(np.array(bits, bool), np.concatenate([c.kept for c in checkpoints]))


def test_a_shard_of_models_that_are_no_twins_has_no_mask_and_the_bytes_it_always_had(sample):
    info = sample.seal(0)
    with ShardReader(shards_folder(sample.path) / info.shard_id) as shard:
        assert (shard.kept(20), shard.log_alpha(20)) == (None, None)
    with h5py.File(shards_folder(sample.path) / info.shard_id / "weights.h5") as file:
        assert not {"kept", "log_alpha"} & set(file)
        assert file["weights"].compression is None


def test_equal_twins_give_equal_bytes(tmp_path):
    samples = [Sample.make(tmp_path / name) for name in ("a", "b")]
    infos = [sample.seal(0, checkpoints=with_masks(sample)) for sample in samples]
    assert infos[0].digest == infos[1].digest


def test_a_mask_of_another_number_of_weights_is_damage(sample):
    info = sample.seal(0, checkpoints=with_masks(sample))
    with ShardReader(shards_folder(sample.path) / info.shard_id) as shard:
        for wrong in (16, 25):
            with pytest.raises(IntegrityError, match="kept"):
                shard.kept(wrong)
        with pytest.raises(IntegrityError, match="log_alpha"):
            shard.log_alpha(21)


def test_any_flipped_byte_of_a_mask_is_found(sample):
    info = sample.seal(0, checkpoints=with_masks(sample))
    folder = shards_folder(sample.path) / info.shard_id
    with h5py.File(folder / "weights.h5") as file:
        place = file["kept"].id.get_chunk_info(0)
        start, size = place.byte_offset, place.size
    data = bytearray((folder / "weights.h5").read_bytes())
    data[start + size // 2] ^= 0x10
    (folder / "weights.h5").write_bytes(data)
    assert [file for file, _ in problems_of(folder)] == ["weights.h5"]
    with (
        StackFile(folder / "weights.h5", info.datasets["weights.h5"]) as file,
        pytest.raises(IntegrityError),
    ):
        file.read("kept")


def test_unfinished_work_keeps_masks_of_its_state_and_of_its_rows(sample):
    checkpoints = with_masks(sample)
    state = replace(make_state(sample.cohort, sample.layout, 2), kept=checkpoints[-1].kept)
    Work.claim(sample.path, sample.cohort, sample.token).save(state, checkpoints)
    found = Work.claim(sample.path, sample.cohort, sample.token).load()
    assert found is not None
    assert np.array_equal(found[0].kept, state.kept)
    assert found[0].kept.dtype == np.bool_
    for before, after in zip(checkpoints, found[1], strict=True):
        assert np.array_equal(before.kept, after.kept)
        assert np.array_equal(before.log_alpha, after.log_alpha)
        assert after.kept.dtype == np.bool_
    plain = replace(state, kept=None)
    Work.claim(sample.path, sample.cohort, sample.token).save(plain, [])
    assert Work.claim(sample.path, sample.cohort, sample.token).load()[0].kept is None


@pytest.mark.parametrize(
    ("name", "shape", "models", "epochs"),
    [
        ("cnn-s", (1, 28, 28), 16, 15),
        ("cnn-s", (1, 28, 28), 3, 2),
        ("mlp", (1, 8, 8), 1, 0),
        ("cnn-l", (3, 32, 32), 8, 4),
    ],
)
@pytest.mark.parametrize("scope", ["scattered", "channels"])
@pytest.mark.parametrize("sparsity", [0.8, 0.9])
def test_twins_of_eighty_percent_sparsity_take_at_most_three_tenths_of_raw_float32(
    tmp_path, name, shape, models, epochs, scope, sparsity
):
    layout = describe(ARCHITECTURES.make(name, {}), shape, 10)
    segments = ((0, epochs),)
    cohort = make_cohort(layout, models, max(epochs, 1), segments, checkpoint_epochs=tuple(range(epochs + 1)))
    folder = ZooFolder(tmp_path / "zoo")
    folder.create({"name": "size", "version": 1, "layouts": {layout.layout_id: layout.to_json()}})
    rng = np.random.default_rng(5)
    size = len(layout.prunable_places)
    kept = np.stack([mask(rng, layout, sparsity, scope) for _ in range(models)])
    assert ((~kept).sum(axis=1) >= 0.8 * size - 1).all()
    checkpoints = []
    for epoch in range(epochs + 1):
        weights = rng.standard_normal((models, layout.parameters), dtype=np.float32)  # nothing else compresses
        weights[:, layout.prunable_places] = np.where(kept, weights[:, layout.prunable_places], 0)
        checkpoints.append(Checkpoint(epoch, cohort.model_ids, weights, {}, {}, kept=kept))
    state = CohortState(epochs, cohort.model_ids, checkpoints[-1].weights)
    shard_id = cohort.segments[0].shard_id
    seal_shard(folder.path, shard_id, cohort, layout, checkpoints, state=state, token=folder.new_token())
    with h5py.File(shards_folder(folder.path) / shard_id / "weights.h5") as file:
        stored = sum(file[n].id.get_storage_size() for n in ("nonzero", "places", "kept"))
    with ShardReader(shards_folder(folder.path) / shard_id) as shard:
        assert np.array_equal(shard.weights(), np.concatenate([c.weights for c in checkpoints]))
    raw = 4 * layout.parameters * models * (epochs + 1)
    assert stored <= 0.3 * raw, stored / raw


def mask(rng: np.random.Generator, layout, sparsity: float, scope: str) -> np.ndarray:
    """Removes exactly that share, single weights anywhere or whole output channels."""
    size = len(layout.prunable_places)
    if scope == "scattered":
        order = rng.permutation(size)
    else:
        rows = [np.full(e.size // e.shape[0], rng.random()) for e in layout.prunable for _ in range(e.shape[0])]
        order = np.argsort(np.concatenate(rows), kind="stable")
    kept = np.ones(size, bool)
    kept[order[: round(sparsity * size)]] = False
    return kept
