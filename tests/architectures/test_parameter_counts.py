"""Parameter counts of the published zoos, as stated by their papers and code."""

import pytest

from zoogen.core.modules import describe
from zoogen.core.registry import ARCHITECTURES

WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256)
RESNETS = {
    ("resnet18", 10): (11_420, 44_622, 176_402, 701_466, 2_797_610, 11_173_962, 44_662_922, 178_585_866),
    ("resnet18", 100): (12_950, 47_592, 182_252, 713_076, 2_820_740, 11_220_132, 44_755_172, 178_770_276),
    ("resnet18", 200): (14_650, 50_892, 188_752, 725_976, 2_846_440, 11_271_432, 44_857_672, 178_975_176),
    ("resnet50", 10): (25_260, 96_302, 375_762, 1_484_186, 5_899_050, 23_520_842, 93_932_682, 375_429_386),
    ("resnet50", 100): (31_110, 107_912, 398_892, 1_530_356, 5_991_300, 23_705_252, 94_301_412, 376_166_756),
    ("resnet50", 200): (37_610, 120_812, 424_592, 1_581_656, 6_093_800, 23_910_152, 94_711_112, 376_986_056),
}


@pytest.mark.parametrize(("name", "outputs"), RESNETS)
def test_residual_networks_have_the_published_number_of_parameters_at_every_width(name, outputs):
    layouts = [describe(ARCHITECTURES.make(name, {"width": width}), (3, 32, 32), outputs) for width in WIDTHS]
    assert tuple(layout.trainable for layout in layouts) == RESNETS[name, outputs]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "input_shape", "per_layer"),
    [
        ("cnn-s", (1, 28, 28), (208, 1_206, 100, 740, 210)),
        ("cnn-s", (3, 28, 28), (608, 1_206, 100, 740, 210)),
        ("cnn-l", (1, 32, 32), (160, 4_640, 4_335, 1_220, 210)),
        ("cnn-l", (3, 32, 32), (448, 4_640, 4_335, 1_220, 210)),
    ],
)
def test_small_cnns_have_the_published_number_of_parameters_in_every_layer(name, input_shape, per_layer, dropout):
    layout = describe(ARCHITECTURES.make(name, {"dropout": dropout}), input_shape, 10)
    sizes = {}
    for entry in layout.entries:
        layer = entry.name.split(".")[0]
        sizes[layer] = sizes.get(layer, 0) + entry.size
    assert list(sizes.items()) == list(zip(("conv1", "conv2", "conv3", "fc1", "fc2"), per_layer, strict=True))


@pytest.mark.parametrize(
    ("name", "input_shape", "total"),
    [
        ("cnn-s", (1, 28, 28), 2_464),
        ("cnn-s", (3, 28, 28), 2_864),
        ("cnn-l", (3, 32, 32), 10_853),
        ("cnn-l", (1, 32, 32), 10_565),
    ],
)
def test_small_cnns_have_the_published_total(name, input_shape, total):
    layout = describe(ARCHITECTURES.make(name, {}), input_shape, 10)
    assert layout.parameters == layout.trainable == total
