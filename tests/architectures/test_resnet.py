"""Our residual networks against torchvision's, and what their initialisation leaves alone."""

import pytest
import torch
import torchvision
from torch import nn

from zoogen.architectures.resnet import ResNet18, ResNet50
from zoogen.core.modules import build_model, describe


@pytest.mark.parametrize(
    ("cls", "reference"), [(ResNet18, torchvision.models.resnet18), (ResNet50, torchvision.models.resnet50)]
)
@pytest.mark.parametrize("train", [False, True])
def test_width_64_computes_what_torchvision_computes_without_its_large_stem(cls, reference, train):
    ours = build_model(cls(), (3, 16, 16), 10, seed=0).double().train(train)
    theirs = reference(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.double().train(train).load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # The same convolutions in float64; only the mean over the pixels is summed in another order.
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    for (name, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("init", ["uniform", "xavier_normal"])
def test_initialisation_leaves_norms_at_one_and_zero_and_sets_the_only_bias(init):
    layout = describe(ResNet18(width=4, init=init), (3, 32, 32), 10)
    state = build_model(ResNet18(width=4, init=init), (3, 32, 32), 10, seed=0).state_dict()
    assert [e.name for e in layout.entries if e.role == "bias"] == ["fc.bias"]
    assert torch.equal(state["fc.bias"], torch.full((10,), 0.01))
    for entry in layout.entries:
        if entry.role == "norm_scale":
            assert torch.equal(state[entry.name], torch.ones(entry.shape))
        if entry.role == "norm_shift":
            assert torch.equal(state[entry.name], torch.zeros(entry.shape))


def test_widths_change_shapes_only():
    names = [[e.name for e in describe(ResNet50(width=w), (3, 32, 32), 10).entries] for w in (2, 8)]
    assert names[0] == names[1]
