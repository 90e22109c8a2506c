"""MNIST and USPS as published, where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets, transforms

from zoogen.core.registry import TASKS

ROOT = Path(os.environ.get("ZOOGEN_DATA") or Path(__file__).parents[3] / "shared" / "data")
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not ((ROOT / "MNIST" / "raw").is_dir() and (ROOT / "usps.bz2").is_file()), reason="needs MNIST and USPS"
    ),
]

# Images per class 0..9 in the training and test files, as the authors count them.
MNIST_CLASSES = (
    [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
)
# Table in the description of zip.train and zip.test (The Elements of Statistical Learning).
USPS_CLASSES = (
    [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644],
    [359, 264, 198, 166, 200, 160, 170, 147, 166, 177],
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("mnist", (50_000, 10_000, 10_000), MNIST_CLASSES),
        ("usps", (6_000, 1_291, 2_007), USPS_CLASSES),
    ],
)
def test_parts_and_classes_have_their_published_sizes(name, sizes, classes, cache):
    task = TASKS.make(name, {})
    data = task.load(ROOT, cache)
    assert tuple(data.size(part) for part in ("train", "val", "test")) == sizes == task.sizes
    targets = {part: data.tensors(part, "cpu")[1].bincount(minlength=10) for part in ("train", "val", "test")}
    assert (targets["train"] + targets["val"]).tolist() == classes[0]
    assert targets["test"].tolist() == classes[1]


@pytest.mark.parametrize(("name", "oracle"), [("mnist", datasets.MNIST), ("usps", datasets.USPS)])
def test_pixels_are_those_torchvision_reads(name, oracle, cache):
    data = TASKS.make(name, {}).load(ROOT, cache)
    for part in ("train", "test"):
        expected = oracle(ROOT, train=part == "train")
        indices = data.split()[part]
        inputs, targets = data.tensors(part, "cpu")
        assert np.array_equal(inputs[:, 0].numpy(), np.asarray(expected.data)[indices])
        assert np.array_equal(targets.numpy(), np.asarray(expected.targets)[indices])


def test_usps_of_the_published_zoos_is_resized_as_torchvision_does(cache):
    data = TASKS.make("usps", {"size": 28}).load(ROOT, cache)
    oracle = datasets.USPS(
        ROOT,
        train=False,
        transform=transforms.Compose(
            [transforms.Resize(28), transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
        ),
    )
    found = data.prepare(data.tensors("test", "cpu")[0])
    for i in range(0, len(oracle), 50):
        assert np.allclose(found[i].numpy(), oracle[i][0].numpy(), rtol=0, atol=1e-6)
