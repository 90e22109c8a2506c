"""Every layer the stacked engine takes, in float64 against torch, from the same states; and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoogen.train.optimizers import SGD, Adam
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.stacked.engine import StackedEngine

# Of torch itself, where a border is uneven.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

OPTIMIZERS = [SGD(lr=0.01), SGD(lr=0.03)]


def stacked(**further):
    return lambda job, data: StackedEngine(job, data, torch.device("cpu"), **further)


# Nothing is measured: the choice would depend on the machine.
PLAIN = {"conv1d": "unfold", "conv2d": "unfold", "max_pool": "native"}


def images(layer: nn.Module, after: int, *more: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), *more, nn.Flatten(), nn.Linear(after, 4))


def sequences(layer: nn.Module, after: int) -> nn.Module:
    """[B, 2, 64]"""
    return nn.Sequential(nn.Flatten(2), layer, nn.Tanh(), nn.Flatten(), nn.Linear(after, 4))


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 8), *layers, nn.Linear(8, 4))


class Viewed(nn.Module):
    """`view` needs the values of a sample side by side in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.second = nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Conv2d(2, 3, 3)
        self.a, self.b = nn.Linear(27, 4), nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.pool(self.first(x)).view(len(x), -1)) + self.b(self.second(x).view(len(x), -1))


CONVOLUTIONS = {
    "viewed": Viewed,
    "plain": lambda: images(nn.Conv2d(2, 5, 3), 180),
    "behind-another": lambda: images(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2)), 75),
    "uneven-kernel": lambda: images(nn.Conv2d(2, 3, (5, 2), bias=False), 3 * 28),
    "strided": lambda: images(nn.Conv2d(2, 4, 3, stride=2, padding=1), 64),
    "strided-unevenly": lambda: images(nn.Conv2d(2, 4, (3, 4), stride=(3, 2), padding=(0, 2)), 4 * 2 * 5),
    "stride-beyond-kernel": lambda: images(nn.Conv2d(2, 4, 1, stride=3), 36),
    "dilated": lambda: images(nn.Conv2d(2, 3, 3, padding=2, dilation=2), 192),
    "same": lambda: images(nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), 192),
    "valid": lambda: images(nn.Conv2d(2, 3, 3, padding="valid"), 108),
    "reflect": lambda: images(nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), 3 * 8 * 10),
    "circular": lambda: images(nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), 192),
    "replicate": lambda: images(nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), 192),
    "grouped": lambda: images(nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 9, 3, groups=3)), 9 * 36),
    "depthwise": lambda: images(nn.Conv2d(2, 4, 3, padding=1, groups=2), 256),
    "1d": lambda: sequences(nn.Conv1d(2, 4, 5, stride=2, padding=1), 4 * 31),
    "1d-same": lambda: sequences(nn.Conv1d(2, 3, 4, padding="same", dilation=2), 192),
    "1d-circular": lambda: sequences(nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), 3 * 66),
    "1d-grouped": lambda: sequences(nn.Conv1d(2, 4, 3, groups=2), 4 * 62),
}


@pytest.mark.parametrize("variant", ["grouped", "unfold", "shifted", "loop"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_variant_of_a_convolution_is_torchs(oracle, kind, variant):
    chosen = {"conv1d": variant, "conv2d": variant}
    oracle.agree(stacked(variants=chosen), oracle.jobs(CONVOLUTIONS[kind], OPTIMIZERS), oracle.images(), epochs=1)


class PoolOfParts(nn.Module):
    """A pooling of what lies strangely in memory, and of one image without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.pool(x.transpose(2, 3))
        one = self.pool(x[0])
        return self.fc((turned + one).flatten(1))


POOLINGS = {
    "plain": lambda: images(nn.Conv2d(2, 3, 3), 27, nn.MaxPool2d(2)),
    "with-a-rest": lambda: images(nn.Conv2d(2, 3, 2), 27, nn.MaxPool2d(2)),
    "overlapping": lambda: images(nn.Conv2d(2, 3, 3), 27, nn.MaxPool2d(3, 2, 1)),
    "up-to-the-border": lambda: images(nn.Conv2d(2, 3, 2), 48, nn.MaxPool2d(2, ceil_mode=True)),
    "up-to-the-border-padded": lambda: images(nn.Conv2d(2, 3, 2), 48, nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "uneven": lambda: images(nn.Conv2d(2, 3, 3), 3 * 3 * 4, nn.MaxPool2d((2, 3), stride=(2, 1))),
    "dilated": lambda: images(nn.Conv2d(2, 3, 3), 48, nn.MaxPool2d(2, 1, dilation=2)),
    "behind-relu": lambda: images(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), 27, nn.MaxPool2d(2)),  # equal zeros
    "1d": lambda: sequences(nn.Sequential(nn.Conv1d(2, 3, 3), nn.MaxPool1d(3, 2, padding=1)), 93),
    "of-parts": PoolOfParts,
}


@pytest.mark.parametrize("variant", ["native", "slices"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_every_variant_of_max_pooling_is_torchs(oracle, kind, variant):
    chosen = PLAIN | {"max_pool": variant}
    oracle.agree(stacked(variants=chosen), oracle.jobs(POOLINGS[kind], OPTIMIZERS), oracle.images(), epochs=1)


class Residual(nn.Module):
    """Another branch beside the convolution, which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(torch.relu(x + self.conv(torch.tanh(self.conv(x)))))
        return self.fc(y.flatten(1))


class InPlace(nn.Module):
    """What changes a layer's output in place: activations and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.pool, self.act = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU(inplace=True)
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        y = self.norm(self.second(x))
        y += x
        return self.fc(self.act(self.pool(self.act(y)).sub_(0.1)).flatten(1))


@pytest.mark.parametrize("variant", ["grouped", "unfold", "shifted", "loop"])
@pytest.mark.parametrize("pool", ["native", "slices"])
def test_outputs_may_be_changed_in_place(oracle, variant, pool):
    chosen = {"conv2d": variant, "max_pool": pool}
    oracle.agree(stacked(variants=chosen), oracle.jobs(InPlace, OPTIMIZERS), oracle.images(), epochs=1)


class Tied(nn.Module):
    """One weight under two names, and one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(128, 16), nn.Linear(128, 16), nn.Linear(16, 4)
        self.b.weight = self.a.weight
        self.again = self.out

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y = torch.tanh(self.a(x)) * torch.sigmoid(self.b(x))
        return self.out(y) + self.again(y.square())


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.body[0].weight.requires_grad_(False)
        self.scale = nn.Parameter(torch.full((3, 1, 1), 2.0), requires_grad=False)
        self.fc = nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.body(x) * self.scale).relu().flatten(1))


class Buffers(nn.Module):
    """Buffers of one's own: one changed in place, one replaced, one of bool, one of integers, one outside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 4)
        self.register_buffer("mean", torch.zeros(128))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("mask", torch.arange(128) % 3 > 0)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 128), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
                self.largest = torch.maximum(self.largest, x.max().to(self.largest.dtype))
                self.calls += 1
        return self.fc(torch.where(self.mask, (x - self.mean) * self.scale, x / (1 + self.largest)))


class Attention(nn.Module):
    """Multi-head attention with and without weights, and torch's attention function; [B, 2, 8, 8] as 8 tokens."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(16, heads, batch_first=True)
        self.second = nn.MultiheadAttention(16, heads, batch_first=True, bias=False)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 1, 3).flatten(2)
        x = x + self.first(x, x, x)[0]
        x = self.norm(x + self.second(x, x, x, need_weights=False)[0])
        return self.fc(functional.scaled_dot_product_attention(x, x, x, is_causal=True).mean(1))


def transformer(norm_first: bool, dropout: float = 0.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=dropout, batch_first=True, norm_first=norm_first)
    return nn.Sequential(
        nn.Unflatten(2, (4, 2)), nn.Flatten(3), nn.Flatten(1, 2),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


LAYERS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)),
    "avg-pool": lambda: images(nn.Conv2d(2, 3, 3), 27, nn.AvgPool2d(2)),
    "avg-pool-padded": lambda: images(nn.Conv2d(2, 3, 3), 27, nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "avg-pool-1d": lambda: sequences(nn.Sequential(nn.Conv1d(2, 3, 3), nn.AvgPool1d(3)), 60),
    "adaptive-pool": lambda: images(nn.Conv2d(2, 3, 3), 12, nn.AdaptiveAvgPool2d(2)),
    "adaptive-pool-1d": lambda: sequences(nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(5)), 15),
    "padding": lambda: images(
        nn.Sequential(nn.ReflectionPad2d(1), nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(2, 2, 3)), 180
    ),
    "batch-norm": lambda: images(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 108),
    "batch-norm-first": lambda: images(nn.BatchNorm2d(2), 128),
    "batch-norm-plain": lambda: images(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), 108),
    "batch-norm-of-all": lambda: images(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=None)), 108),
    "batch-norm-untracked": lambda: images(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), 108
    ),
    "batch-norm-eps": lambda: images(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.1, momentum=0.7)), 108),
    "batch-norm-flat": lambda: flat(nn.BatchNorm1d(8)),
    "batch-norm-1d": lambda: sequences(nn.BatchNorm1d(2), 128),
    "layer-norm": lambda: images(nn.Sequential(nn.Conv2d(2, 3, 3), nn.LayerNorm([6, 6])), 108),
    "layer-norm-plain": lambda: flat(nn.LayerNorm(8, elementwise_affine=False)),
    "rms-norm": lambda: flat(nn.RMSNorm(8)),
    "group-norm": lambda: images(nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6)), 216),
    "residual": Residual,
    "tied": Tied,
    "frozen": Frozen,
    "buffers": Buffers,
    "attention": Attention,
    "transformer": lambda: transformer(norm_first=False),
    "transformer-norm-first": lambda: transformer(norm_first=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_torchs(oracle, kind):
    oracle.agree(stacked(variants=PLAIN), oracle.jobs(LAYERS[kind], OPTIMIZERS), oracle.images())


ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink,
    nn.Tanhshrink, nn.PReLU,
]  # fmt: skip


SETTINGS = {nn.Softmax: (1,), nn.LogSoftmax: (1,), nn.Threshold: (0.1, 0.2), nn.ReLU: (True,)}


class Activations(nn.Module):
    """Side by side on the same values, so that one network tells of all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 6)
        own = [kind(*arguments) for kind, arguments in SETTINGS.items()]
        self.acts = nn.ModuleList([*(kind() for kind in ACTIVATIONS), *own, nn.GLU()])  # GLU halves
        self.out = nn.Linear(6 * len(self.acts) - 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1)) * 3
        return self.out(torch.cat([act(x + i / 10) for i, act in enumerate(self.acts)], 1))


def test_every_activation_is_torchs(oracle):
    oracle.agree(stacked(), oracle.jobs(Activations, OPTIMIZERS), oracle.images(), epochs=2)


class Words(nn.Module):
    """Embeddings, one with an entry that is never trained, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(11, 6, padding_idx=3), nn.Embedding(8, 6)
        self.register_buffer("places", torch.arange(8), persistent=False)
        self.fc = nn.Linear(48, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc((self.word(tokens) + self.word(10 - tokens) * self.place(self.places)).flatten(1))


def test_embeddings_are_torchs(oracle):
    jobs = oracle.jobs(Words, [SGD(lr=0.1, weight_decay=0.1), SGD(lr=0.3)])
    oracle.agree(stacked(), jobs, oracle.tokens())


def dropouts(p: float) -> nn.Module:
    """One layer in two places, one with an odd number of elements, one on an image."""
    shared = nn.Dropout(p)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Dropout(p / 2), nn.Flatten(),
        nn.Linear(108, 7), shared, nn.Tanh(), shared, nn.Linear(7, 4),
    )  # fmt: skip


@pytest.mark.parametrize("micro_batch", [None, 3, 4])
def test_dropout_masks_are_those_of_the_plain_trainer_with_rates_per_model(oracle, micro_batch):
    jobs = oracle.jobs(dropouts, [SGD(lr=0.1)] * 4, dropout=[0.3, 0.0, 0.7, 1.0], micro_batch=micro_batch)
    oracle.agree(stacked(variants=PLAIN), jobs, oracle.images())


def test_dropout_in_a_transformer_is_torchs_where_its_attention_drops_nothing(oracle):
    def make() -> nn.Module:
        network = transformer(norm_first=False, dropout=0.2)
        for layer in network[3].layers:
            layer.self_attn.dropout = 0.0
        return network

    oracle.agree(stacked(), oracle.jobs(make, [Adam(lr=1e-3)] * 2), oracle.images(), epochs=2)


class Fickle(nn.Module):
    """Branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.dropout(x.flatten(1), 0.5, self.training))


class Drawn(nn.Module):
    """Random features that are no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(128, 4), persistent=False)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) @ self.features)


class DropsConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.ones(128), persistent=False)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) + self.drop(self.place))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(16, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x.reshape(len(x), 8, 16))[0][:, -1])


def hooked() -> nn.Module:
    network = flat(nn.ReLU())
    network[1].register_forward_hook(lambda *_: None)
    return network


def unused() -> nn.Module:
    network = flat(nn.ReLU())
    network[1].register_parameter("extra", nn.Parameter(torch.ones(3)))
    return network


REFUSED = {
    r"layer '2' \(Dropout2d\)": lambda: flat(nn.Dropout2d(0.1)),
    r"layer '2' \(AlphaDropout\)": lambda: flat(nn.AlphaDropout(0.1)),
    r"layer 'lstm' \(LSTM\)": Recurrent,
    r"layer '2.up' \(ConvTranspose2d\)": lambda: flat(nn.ModuleDict({"up": nn.ConvTranspose2d(2, 2, 3)})),
    r"layer '2.linear' \(ParametrizedLinear\)": lambda: flat(
        nn.ModuleDict({"linear": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))})
    ),
    r"layer '3.layers.0.self_attn' \(MultiheadAttention\) draws its dropout": lambda: transformer(False, 0.1),
    r"layer '2' \(MaxPool1d\) returns indices": lambda: flat(nn.MaxPool1d(2, return_indices=True)),
    r"layer '0' \(Embedding\) has max_norm": lambda: nn.Sequential(nn.Embedding(4, 4, max_norm=1.0)),
    r"layer '1' \(Linear\) has hooks": hooked,
    "parameter '1.extra' gets no gradient": unused,
    "data-dependent control flow": Fickle,
    "random": Random,
    "tensor 'features' differs between seeds": Drawn,
    "the same for all": DropsConstants,
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_batched_is_refused_with_its_reason(oracle, reason):
    (job,) = oracle.jobs(REFUSED[reason], [SGD(lr=0.1)])
    with pytest.raises(Unsupported, match=reason):
        stacked()(job, oracle.images())


def test_a_network_that_differs_in_more_than_its_dropout_is_refused(oracle):
    (job,), (other,) = (oracle.jobs(lambda act=act: flat(act()), [SGD(lr=0.1)]) for act in (nn.ReLU, nn.Tanh))
    data = oracle.images()
    with pytest.raises(Unsupported, match="network of model m0 differs"):
        stacked()(job, data).train_epoch([other], oracle.start([other], data), 0, lambda: False)
