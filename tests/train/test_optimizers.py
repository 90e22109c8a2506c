import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from zoogen.core.registry import OPTIMIZERS
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop

# Plain per-tensor updates of torch, the settings written out by hand.
CASES = {
    "sgd": (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, foreach=False)),
    "sgd-all": (
        SGD(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.02, foreach=False),
    ),
    "adam": (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01, foreach=False)),
    "adam-all": (
        Adam(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, foreach=False),
    ),
    "adamw": (AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False)),
    "adamw-all": (
        AdamW(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, foreach=False),
    ),
    "rmsprop": (RMSprop(lr=0.01), lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=False)),
    "rmsprop-all": (
        RMSprop(lr=0.01, alpha=0.9, eps=1e-3, momentum=0.7, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3, momentum=0.7, weight_decay=0.1, foreach=False),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_an_entry_moves_weights_as_the_torch_optimizer_of_its_name(case, dtype, rtol):
    entry, reference = CASES[case]
    start = torch.randn(33, generator=torch.Generator().manual_seed(0), dtype=dtype)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = entry.build([ours]), reference([theirs])
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        gradient = torch.randn(33, generator=rng, dtype=dtype)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(ours.data, start)
    # Fused kernels round in another order; 20 steps add up a few roundings of numbers of size 1.
    torch.testing.assert_close(ours.data, theirs.data, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_per_model_fields_are_the_numbers_of_an_entry(name):
    entry = OPTIMIZERS.get(name)(lr=0.1)
    numbers = {f.name for f in dataclasses.fields(entry) if type(getattr(entry, f.name)) is float}
    assert entry.per_model == numbers
    assert OPTIMIZERS.describe(entry) == {"name": name, "lr": 0.1}


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_the_learning_rate_must_be_given(name):
    with pytest.raises(TypeError, match="lr"):
        OPTIMIZERS.get(name)()


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="momentum above 0"):
        SGD(lr=0.1, nesterov=True)


def test_the_registries_load_without_torch():
    code = (
        "import sys; from zoogen.core.registry import OPTIMIZERS, SCHEDULES; "
        "assert OPTIMIZERS.names() and SCHEDULES.names(); "
        "from zoogen.train import metrics; "
        "OPTIMIZERS.get('adam')(lr=1.0); SCHEDULES.get('one_cycle')().at(3, 0.1, 10, 5); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
