"""What every registered task promises to the planner, without any data at hand."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from zoogen.core.contracts import describe_task
from zoogen.core.errors import UserError
from zoogen.core.registry import TASKS

NEEDED = {"image-folder": {"folder": "x", "size": 32, "classes": 3, "train": 30, "test": 9}}
NAMES = [name for name in TASKS.names() if "/" not in name]


def make(name, **arguments):
    return TASKS.make(name, {**NEEDED.get(name, {}), **arguments})


def test_all_promised_tasks_are_registered():
    promised = {"digits", "mnist", "fashion-mnist", "kmnist", "usps", "svhn", "cifar10", "cifar100", "stl10"}
    assert promised | {"tiny-imagenet", "eurosat", "image-folder"} <= set(NAMES)


def test_importing_the_tasks_loads_no_heavy_library():
    code = (
        "import sys, zoogen.tasks; from zoogen.core.registry import TASKS\n"
        "for name in TASKS.names(): TASKS.get(name)\n"
        "TASKS.make('mnist', {}).sizes\n"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'scipy', 'pandas', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_description_is_json_and_needs_no_data(name):
    described = describe_task(make(name))
    assert json.loads(json.dumps(described)) == described
    assert described["name"] == name
    assert described["version"] == 1
    assert len(described["source"]) == 32


@pytest.mark.parametrize("name", NAMES)
def test_equal_tasks_have_one_identity_and_unequal_ones_another(name):
    assert make(name) == make(name)
    assert describe_task(make(name)) == describe_task(make(name))
    assert describe_task(make(name, val=5, split_seed=1)) != describe_task(make(name, val=5, split_seed=2))
    assert describe_task(make(name, rotation=20.0)) != describe_task(make(name))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_split_and_its_parts_are_disjoint(name):
    task = make(name, val=7)
    split = task.split()
    assert tuple(len(split[part]) for part in ("train", "val", "test")) == task.sizes
    assert task.sizes[1] == 7
    in_one_file = ["train", "val"] if task.facts.test else ["train", "val", "test"]
    together = np.concatenate([split[part] for part in in_one_file])
    assert np.array_equal(np.sort(together), np.arange(task.facts.train))


@pytest.mark.parametrize("name", NAMES)
def test_fields_pass_a_strict_type_check_and_wrong_ones_do_not(name):
    adapter = TypeAdapter(TASKS.get(name))
    assert adapter.validate_python({**NEEDED.get(name, {}), "val": 3}) == make(name, val=3)
    for wrong in ({"val": -1}, {"split_seed": -1}, {"rotation": 181.0}, {"normalise": "hal"}, {"size": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python({**NEEDED.get(name, {}), **wrong})


@pytest.mark.parametrize("name", NAMES)
def test_registered_classes_are_frozen_dataclasses_with_json_defaults(name):
    for field in dataclasses.fields(TASKS.get(name)):
        if field.default is not dataclasses.MISSING:
            json.dumps(field.default)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(name).val = 3


# The rows of the data table and of the ResNet zoos of Schuerholt et al. 2022, and of the phase zoos of 2025.
ROWS = [
    ("mnist", {}, (50_000, 10_000, 10_000), (1, 28, 28)),
    ("fashion-mnist", {}, (50_000, 10_000, 10_000), (1, 28, 28)),
    ("svhn", {"greyscale": True, "crop": 28}, (60_000, 13_257, 26_032), (1, 28, 28)),
    ("usps", {"size": 28}, (6_000, 1_291, 2_007), (1, 28, 28)),
    ("cifar10", {"size": 28}, (42_000, 8_000, 10_000), (3, 28, 28)),
    ("cifar10", {}, (42_000, 8_000, 10_000), (3, 32, 32)),
    ("stl10", {"size": 28}, (4_200, 800, 8_000), (3, 28, 28)),
    ("stl10", {"size": 32}, (4_200, 800, 8_000), (3, 32, 32)),
    ("cifar10", {"val": 10_000, "random_crop": 4, "horizontal_flip": True}, (40_000, 10_000, 10_000), (3, 32, 32)),
    ("cifar100", {"random_crop": 4, "horizontal_flip": True}, (40_000, 10_000, 10_000), (3, 32, 32)),
    ("tiny-imagenet", {"horizontal_flip": True, "rotation": 20.0}, (100_000, 0, 10_000), (3, 64, 64)),
    ("svhn", {"val": 0, "normalise": "svhn", "random_crop": 4, "rotation": 20.0}, (73_257, 0, 26_032), (3, 32, 32)),
    ("digits", {}, (1_257, 270, 270), (1, 8, 8)),
    ("eurosat", {"size": 28}, (16_200, 5_400, 5_400), (3, 28, 28)),
]


@pytest.mark.parametrize(("name", "arguments", "sizes", "shape"), ROWS)
def test_published_setups_have_their_sizes_and_shapes(name, arguments, sizes, shape):
    task = make(name, **arguments)
    assert (task.sizes, task.input_shape) == (sizes, shape)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mnist", {"crop": 29}, "crop: 29 is larger than the image side of 28 pixels"),
        ("mnist", {"val": 60_000}, "leave no training samples of the 60000"),
        ("digits", {"val": 1_000, "test": 797}, "val: 1000 and test: 797 leave no training samples"),
        ("mnist", {"normalise": "imagenet"}, "for 3 channels, the images have 1"),
        ("svhn", {"normalise": "svhn", "greyscale": True}, "for 3 channels, the images have 1"),
        ("mnist", {"val": 0, "split_seed": 1}, "split_seed: 1 has no effect"),
        ("image-folder", {"folder": "../x"}, "below the data root"),
        ("image-folder", {"folder": "/x"}, "below the data root"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_with_a_reason(name, arguments, message):
    with pytest.raises(UserError, match=message):
        make(name, **arguments)
