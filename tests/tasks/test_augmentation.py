"""Batched augmentations equal torchvision's transforms of one image at a time, and depend on their counters alone."""

import math

import pytest
import torch
from torchvision.transforms import functional as oracle

from zoogen.core.streams import stream_key, subkey, uniform
from zoogen.tasks.augmentation import Augmentation, crop, flip, rotate

KEY = stream_key(5, "augment")


def augment(augmentation, inputs, key, step):
    """One batch [B, C, H, W]."""
    return augmentation(inputs[None], torch.tensor([key]), torch.tensor([step]))[0]


def images(batch=64, channels=3, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("shape", [(32, 32), (28, 20)])
def test_crop_is_torchvisions_pad_and_crop(shape):
    inputs = images(81, 3, *shape)
    corners = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    for before, after, (row, column) in zip(inputs, crop(inputs, corners, 4), corners.tolist(), strict=True):
        assert torch.equal(after, oracle.crop(oracle.pad(before, [4]), row, column, *shape))


def test_flip_is_torchvisions():
    inputs = images(8)
    which = torch.tensor([True, False] * 4)
    for before, after, flipped in zip(inputs, flip(inputs, which), which, strict=True):
        assert torch.equal(after, oracle.hflip(before) if flipped else before)


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (28, 20)])
def test_rotation_is_torchvisions(shape):
    inputs = images(200, 3, *shape)
    angles = torch.linspace(-180, 180, 200)
    expected = torch.stack([oracle.rotate(i, float(a)) for i, a in zip(inputs, angles, strict=True)])
    # A source position half-way between two pixels may round either way, since sums of three products are not
    # rounded alike in every matrix routine; that concerns fewer than 1 pixel in 1,000.
    assert (rotate(inputs, angles) != expected).float().mean() < 1e-3
    assert torch.equal(rotate(inputs, torch.zeros(200)), inputs)


def test_rotation_by_right_angles_is_exact():
    inputs = images(4, height=31, width=31)
    turned = rotate(inputs, torch.tensor([90.0, -90.0, 180.0, 0.0]))
    for i, turns in enumerate((1, -1, 2, 0)):
        assert torch.equal(turned[i], torch.rot90(inputs[i], turns, (-2, -1)))


def test_draws_have_the_distributions_of_torchvisions_transforms():
    n = 20_000
    # An image whose only bright pixel marks where the crop came from.
    inputs = torch.zeros(n, 1, 9, 9, dtype=torch.uint8)
    inputs[:, :, 4, 4] = 255
    places = augment(Augmentation(padding=4), inputs, KEY, 0).flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=81).double()
    # 80 degrees of freedom: mean 80, standard deviation sqrt(160); five of those are beyond any fair draw.
    assert ((counts - n / 81).square() / (n / 81)).sum() < 80 + 5 * math.sqrt(160)

    ramp = torch.arange(4, dtype=torch.uint8).expand(n, 1, 4, 4)
    flipped = (augment(Augmentation(flip=True), ramp, KEY, 0)[:, 0, 0, 0] == 3).double().mean()
    assert abs(flipped - 0.5) < 5 * math.sqrt(0.25 / n)


def test_crops_and_flips_are_those_drawn_from_the_key_of_their_step():
    """Zoos depend on these draws: row and column from counters 2b and 2b + 1 of layer 0, the flip of layer 1."""
    inputs = images(50)
    rows_columns = torch.tensor(
        [[uniform(subkey(KEY, 7, 0), torch.tensor(2 * b + i)) for i in (0, 1)] for b in range(50)]
    )
    assert torch.equal(augment(Augmentation(padding=4), inputs, KEY, 7), crop(inputs, (rows_columns * 9).long(), 4))
    flipped = torch.tensor([uniform(subkey(KEY, 7, 1), torch.tensor(b)) < 0.5 for b in range(50)])
    assert torch.equal(augment(Augmentation(flip=True), inputs, KEY, 7), flip(inputs, flipped))


def test_angles_are_uniform_within_the_limit():
    # What the class promises to hand to `rotate`: recovered through the same stream, then compared image by image.
    inputs = images(500, 1)
    angles = (2 * uniform(subkey(KEY, 7, 2), torch.arange(500)) - 1) * 20
    assert angles.abs().max() < 20
    assert abs(angles.mean()) < 5 * 20 / math.sqrt(3 * 500)
    assert angles.std() == pytest.approx(20 / math.sqrt(3), rel=0.1)
    assert torch.equal(augment(Augmentation(degrees=20.0), inputs, KEY, 7), rotate(inputs, angles))


ALL = Augmentation(padding=4, flip=True, degrees=20.0)


def test_a_batch_depends_on_key_and_step_alone():
    inputs = images()
    assert torch.equal(augment(ALL, inputs, KEY, 3), augment(ALL, inputs.clone(), KEY, 3))
    assert not torch.equal(augment(ALL, inputs, KEY, 3), augment(ALL, inputs, KEY, 4))
    assert not torch.equal(augment(ALL, inputs, KEY, 3), augment(ALL, inputs, stream_key(6, "augment"), 3))


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    inputs = images()
    assert torch.equal(augment(ALL, inputs[:10], KEY, 3), augment(ALL, inputs, KEY, 3)[:10])


@pytest.mark.parametrize(
    "augmentation",
    [ALL, Augmentation(padding=4), Augmentation(flip=True), Augmentation(degrees=180.0)],
    ids=["all", "crop", "flip", "rotation"],
)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (10, 1, 28, 28), (7, 3, 32, 32), (33, 3, 20, 28)], ids=str)
def test_k_batches_at_once_are_what_each_is_alone_bit_for_bit(augmentation, shape):
    batches = 23
    inputs = images(batches * shape[0], *shape[1:]).unflatten(0, (batches, shape[0]))
    keys = [stream_key(k % 5, "augment") for k in range(batches)]
    steps = [k * k for k in range(batches)]
    together = augmentation(inputs, torch.tensor(keys), torch.tensor(steps))
    alone = [augment(augmentation, own, key, step) for own, key, step in zip(inputs, keys, steps, strict=True)]
    assert torch.equal(together, torch.stack(alone))


def test_input_stays_as_it_was_and_dtype_and_shape_too():
    inputs = images()
    before = inputs.clone()
    after = augment(ALL, inputs, KEY, 0)
    assert torch.equal(inputs, before)
    assert (after.shape, after.dtype) == (before.shape, torch.uint8)
    assert not torch.equal(after, before)


def test_no_augmentation_hands_back_its_input():
    inputs = images()[None]
    assert Augmentation()(inputs, torch.tensor([KEY]), torch.tensor([0])) is inputs


@pytest.mark.gpu
def test_a_gpu_augments_as_the_cpu_does():
    inputs = images(256)
    on_gpu = augment(ALL, inputs.cuda(), KEY, 1).cpu()
    # Rounding of half-way positions in the rotation may differ between devices, as above.
    assert (on_gpu != augment(ALL, inputs, KEY, 1)).float().mean() < 1e-3
    plain = Augmentation(padding=4, flip=True)
    assert torch.equal(augment(plain, inputs.cuda(), KEY, 1).cpu(), augment(plain, inputs, KEY, 1))
