"""What an old release wrote stays readable (P8): zoos of every format, as they were sealed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import zoogen
from zoogen.store.verify import verify

ZOOS = Path(__file__).parents[1] / "data" / "zoos"
CHECKSUM = 5.658253849833272


@pytest.fixture
def v1(tmp_path):
    return Path(shutil.copytree(ZOOS / "v1", tmp_path / "v1"))


def test_format_1_is_complete_and_undamaged(v1):
    report = verify(v1)
    assert report.complete
    assert report.counts["planned"] == 2
    assert report.counts["states"] == 6


def test_format_1_gives_the_numbers_that_were_stored(v1):
    zoo = zoogen.open(v1)
    weights_SP = zoo.select().weights()
    assert weights_SP.shape == (6, 64 * 2 + 2 + 2 * 10 + 10)
    # Written down when the zoo was made.
    assert np.array_equal(zoo.checkpoints["epoch"].to_numpy(), [0, 0, 1, 1, 2, 2])
    assert float(np.float64(weights_SP).sum()) == pytest.approx(CHECKSUM, abs=1e-9)
    norms = np.sqrt((weights_SP.astype(np.float64) ** 2).sum(axis=1))
    assert np.allclose(norms, zoo.checkpoints["weight_norm"], rtol=1e-6)


def test_a_model_of_format_1_still_predicts_what_it_predicted(v1, tmp_path):
    from zoogen.core.registry import TASKS

    zoo = zoogen.open(v1)
    data = TASKS.make("digits", {}).load(None, tmp_path / "cache")
    images, _ = data.tensors("test", "cpu")
    stored = zoo.select(epochs="last").predictions()
    for row, model_id in enumerate(zoo.models["model_id"]):
        assert np.array_equal(zoo.module(model_id)(data.prepare(images)).argmax(1).numpy(), stored[row])
