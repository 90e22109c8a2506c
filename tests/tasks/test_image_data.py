"""From stored bytes to what the network sees and how it is scored."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import random_split
from torchvision import transforms

from zoogen.core.registry import TASKS
from zoogen.tasks.normalisation import statistics
from zoogen.tasks.splits import cut_pool, cut_validation


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return TASKS.make("digits", {}).load(None, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize(("n", "val"), [(60_000, 10_000), (7_291, 1_291), (10, 9)])
def test_the_validation_cut_is_torchs_random_split(n, val, seed):
    generator = torch.Generator().manual_seed(seed)
    train, held_out = random_split(range(n), [n - val, val], generator=generator)
    found = cut_validation(n, val, 5, seed)
    assert found["train"].tolist() == list(train.indices)
    assert found["val"].tolist() == list(held_out.indices)
    assert found["test"].tolist() == list(range(5))


def test_a_pool_is_cut_by_torchs_random_split_of_three():
    generator = torch.Generator().manual_seed(3)
    parts = random_split(range(1797), [1257, 270, 270], generator=generator)
    found = cut_pool(1797, 270, 270, 3)
    assert [found[name].tolist() for name in ("train", "val", "test")] == [list(p.indices) for p in parts]


def test_without_a_validation_part_the_order_of_the_file_stays():
    assert cut_validation(9, 0, 2, 42)["train"].tolist() == list(range(9))


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    found = load_digits()
    for part, indices in digits.split().items():
        inputs, targets = digits.tensors(part, "cpu")
        assert digits.size(part) == len(inputs) == len(indices)
        assert np.array_equal(targets.numpy(), found.target[indices])
        # 16 grey levels above black, spread over 0..255: at most half a level of 255 is lost.
        assert np.abs(inputs[:, 0].numpy() / 255 - found.images[indices] / 16).max() <= 0.5 / 255 + 1e-9
    assert {part: digits.size(part) for part in digits.split()} == {"train": 1257, "val": 270, "test": 270}


@pytest.mark.parametrize("name", ["none", "half", "mnist", "cifar10", "cifar100", "svhn", "imagenet"])
def test_prepare_is_to_tensor_and_normalise(name, make_fake, tmp_path):
    grey = name == "mnist"
    task = TASKS.make("mnist" if grey else "cifar10", {"val": 2, "normalise": name})
    fake = make_fake(task.registered_name)
    data = task.load(fake.root, tmp_path / "cache")
    inputs, _ = data.tensors("test", "cpu")
    oracle = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*statistics(name, 1 if grey else 3))])
    expected = torch.stack([oracle(i.permute(1, 2, 0).numpy()) for i in inputs])
    before = inputs.clone()
    found = data.prepare(inputs)
    assert found.dtype == torch.float32
    # Values up to 3, so one unit in the last place is 2.4e-7; product and sum each round once.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(inputs, before)
    assert torch.equal(data.prepare(inputs.view(1, *inputs.shape))[0], found)
    floats = inputs.float()
    assert torch.equal(data.prepare(floats), found)
    assert torch.equal(floats, before.float())


def test_statistics_of_the_published_zoos():
    assert statistics("mnist", 1) == ((0.1307,), (0.3081,))
    assert statistics("half", 3) == ((0.5,) * 3, (0.5,) * 3)
    mean, std = statistics("cifar10", 3)
    assert [round(255 * m, 4) for m in mean] == [125.3, 123.0, 113.9]
    assert [round(255 * s, 4) for s in std] == [63.0, 62.1, 66.7]


def test_tensors_are_made_once_and_whole_files_are_not_copied(make_fake, tmp_path):
    fake = make_fake("mnist")
    data = TASKS.make("mnist", {"val": 0}).load(fake.root, tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that must not be written
        inputs, targets = data.tensors("train", "cpu")
    assert data.tensors("train", torch.device("cpu"))[0] is inputs
    mapped = data._arrays["train_inputs"]
    assert inputs.data_ptr() == mapped.ctypes.data
    assert isinstance(mapped, np.memmap)
    assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)
    assert (data.size("train"), data.size("val"), data.size("test")) == (30, 0, 12)
    assert data.tensors("val", "cpu")[0].shape == (0, 1, 28, 28)


def test_a_stray_write_reaches_neither_the_file_nor_another_reader(make_fake, tmp_path):
    fake = make_fake("mnist")
    task = TASKS.make("mnist", {"val": 0})
    first = task.load(fake.root, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("test_inputs.npy")
    stored = file.read_bytes()
    first.tensors("test", "cpu")[0].zero_()
    assert file.read_bytes() == stored
    again = task.load(fake.root, tmp_path / "cache")
    assert np.array_equal(again.tensors("test", "cpu")[0].numpy(), fake.images["test"])


def test_the_fingerprint_tells_pixels_targets_and_splits_apart(make_fake, tmp_path):
    fake = make_fake("mnist")

    def fingerprint(**arguments):
        return TASKS.make("mnist", {"val": 4, **arguments}).load(fake.root, tmp_path / "cache").fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert first == fingerprint(normalise="half", rotation=20.0)  # of the data, not of what is done to a batch
    others = [fingerprint(split_seed=1), fingerprint(val=5), fingerprint(size=14)]
    assert len({first, *others}) == 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy_per_sample(smoothing, digits):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    targets = torch.arange(7)
    log_probabilities = outputs - outputs.exp().sum(1, keepdim=True).log()
    true = torch.nn.functional.one_hot(targets, 10) * (1 - smoothing) + smoothing / 10
    expected = -(true * log_probabilities).sum(1)
    torch.testing.assert_close(digits.loss(outputs, targets, smoothing), expected)


def test_augment_is_the_tasks_train_transform(digits, make_fake, tmp_path):
    key, step = torch.tensor([9]), torch.tensor([3])
    inputs = digits.tensors("train", "cpu")[0][None, :4]
    assert digits.augment(inputs, key, step) is inputs
    fake = make_fake("cifar10")
    task = TASKS.make("cifar10", {"val": 2, "random_crop": 4, "horizontal_flip": True, "rotation": 20.0})
    data = task.load(fake.root, tmp_path / "cache")
    assert (data.augmentation.padding, data.augmentation.flip, data.augmentation.degrees) == (4, True, 20.0)
    inputs = data.tensors("train", "cpu")[0][None]
    assert torch.equal(data.augment(inputs, key, step), data.augmentation(inputs, key, step))
    assert not torch.equal(data.augment(inputs, key, step), inputs)


@pytest.mark.gpu
def test_a_gpu_holds_one_copy_and_prepares_alike(digits):
    inputs, _ = digits.tensors("train", "cuda")
    assert digits.tensors("train", "cuda:0")[0] is inputs
    on_cpu = digits.prepare(digits.tensors("train", "cpu")[0])
    torch.testing.assert_close(digits.prepare(inputs).cpu(), on_cpu, rtol=0, atol=1e-6)
