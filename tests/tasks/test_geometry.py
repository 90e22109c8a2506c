"""Static transforms equal torchvision's on PIL images, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from zoogen.core.registry import TASKS
from zoogen.tasks.geometry import Geometry, as_array


def noise(*shape):
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("geometry", "oracle"),
    [
        (Geometry(greyscale=True), [transforms.Grayscale()]),
        (Geometry(size=28), [transforms.Resize(28)]),
        (Geometry(size=45), [transforms.Resize(45)]),
        (Geometry(crop=28), [transforms.CenterCrop(28)]),
        (Geometry(crop=27), [transforms.CenterCrop(27)]),
        (Geometry(True, None, 28), [transforms.Grayscale(), transforms.CenterCrop(28)]),
        (Geometry(True, 30, 21), [transforms.Grayscale(), transforms.Resize(30), transforms.CenterCrop(21)]),
    ],
)
@pytest.mark.parametrize("shape", [(32, 32), (40, 33), (33, 58)])
def test_static_transforms_are_torchvisions(geometry, oracle, shape):
    image = Image.fromarray(noise(*shape, 3))
    assert np.array_equal(as_array(geometry.apply(image)), as_array(transforms.Compose(oracle)(image)))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_transformed_image_by_image(channels):
    images = noise(5, channels, 16, 16)
    found = Geometry(size=28).apply_all(images)
    for before, after in zip(images, found, strict=True):
        picture = Image.fromarray(before[0] if channels == 1 else before.transpose(1, 2, 0))
        assert np.array_equal(after, as_array(transforms.Resize(28)(picture)))


def test_a_crop_larger_than_the_image_is_an_error():
    with pytest.raises(ValueError, match="16x9 pixels is smaller than crop: 10"):
        Geometry(crop=10).apply(Image.fromarray(noise(9, 16)))


def test_the_cache_keeps_every_geometry_of_a_task_apart(make_fake, tmp_path):
    fake = make_fake("svhn")
    shapes = set()
    for arguments in ({}, {"greyscale": True}, {"size": 28}, {"crop": 28}, {"size": 30, "crop": 28}):
        data = TASKS.make("svhn", {"val": 4, **arguments}).load(fake.root, tmp_path)
        inputs, _ = data.tensors("test", "cpu")
        shapes.add((tuple(inputs.shape), int(inputs.sum())))
    assert len(shapes) == len(list(tmp_path.glob("tasks/svhn-*/"))) == 5
