"""Layers with multiplicative Gaussian noise on every weight (sparse variational dropout) and their KL term.

Molchanov et al. 2017 (arXiv:1701.05369), with the constants of the published twins (adapted there from pytorch_ard).
w: weight, alpha = sigma2 / w**2 the variance of its noise relative to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoogen.train.sparsify.methods import VariationalDropout
from zoogen.train.sparsify.noise import Noise

K1, K2, K3 = 0.63576, 1.8732, 1.48695
"""Of the approximation of the KL term (arXiv:1701.05369, equation 14)."""

TINY = 1e-15
"""Keeps logarithms and square roots off zero."""


def log_alpha(weight: Tensor, log_sigma2: Tensor, bound: float) -> Tensor:
    """log sigma2 - 2 log(\\|w\\| + 1e-15), clamped to [-bound, bound]."""
    return (log_sigma2 - 2 * torch.log(weight.abs() + TINY)).clamp(-bound, bound)


def kl_divergence(log_alpha: Tensor) -> Tensor:
    """KL divergence of each weight's posterior from the log-uniform prior, in nats, approximated; of any shape."""
    return K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha) + 0.5 * nn.functional.softplus(-log_alpha)


def kl_slope(log_alpha: Tensor) -> Tensor:
    """Derivative of ``kl_divergence`` by log alpha, element by element, without autograd.

    Of ``exp`` alone, as torch's sigmoid and softplus round the last elements of a tensor otherwise than the others: a
    model's steps would depend on how many models are trained together.
    """
    inner = (K2 + K3 * log_alpha).exp()
    return -K1 * K3 / (2 + inner + 1 / inner) - 0.5 / (1 + log_alpha.exp())


class _Variational:
    """What both kinds of layers do.

    In training the outputs are drawn from the Gaussian that the noise of the weights makes of them (local
    reparameterisation); in evaluation weights with log alpha at or beyond the threshold are 0.
    """

    weight: Any  # declared by the layers of torch
    bias: Any
    log_sigma2: nn.Parameter
    noise: Noise
    training: bool
    bound: float
    threshold: float

    def _become(self, layer: Any, method: VariationalDropout, bound: float) -> None:
        """Take over a layer's tensors and settings."""
        self.weight, self.bias = layer.weight, layer.bias
        start = torch.full_like(layer.weight.detach(), method.log_sigma2)
        self.log_sigma2 = nn.Parameter(start)
        self.bound = bound
        self.threshold = method.threshold
        self.noise = Noise()

    def extra_repr(self) -> str:
        settings: str = super().extra_repr()  # type: ignore[misc]
        return f"{settings}, bound={self.bound}, threshold={self.threshold}"

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer without noise."""
        raise NotImplementedError

    def noisy_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Log sigma2 and log alpha of the bias; None where it has no noise."""
        return None, None

    def alphas(self) -> list[Tensor]:
        """Log alpha of everything that has noise."""
        _, of_bias = self.noisy_bias()
        own = log_alpha(self.weight, self.log_sigma2, self.bound)
        return [own] if of_bias is None else [own, of_bias]

    def forward(self, inputs: Tensor) -> Tensor:
        own = log_alpha(self.weight, self.log_sigma2, self.bound)
        _, of_bias = self.noisy_bias()
        if not self.training:
            weight = torch.where(own < self.threshold, self.weight, 0)
            bias = self.bias
            if bias is not None and of_bias is not None:
                bias = torch.where(of_bias < self.threshold, bias, 0)
            return self.product(inputs, weight, bias)
        mean = self.product(inputs, self.weight, self.bias)
        of_bias = None if of_bias is None or self.bias is None else of_bias.exp() * self.bias**2
        variance = self._of_squares(inputs, own.exp() * self.weight**2, of_bias)
        # Rounding may take a sum of squares below zero where an implementation subtracts.
        noise = torch.sqrt(variance.clamp(min=0) + TINY) * self.noise.draw(mean)
        return mean + noise.to(mean.dtype)

    def _of_squares(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of squared inputs; not in float16, whose smallest number is larger than many variances."""
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            with torch.autocast(kind, enabled=False):
                return self.product(inputs.float() ** 2, weight, bias)
        return self.product(inputs**2, weight, bias)


class VariationalLinear(_Variational, nn.Linear):
    """``nn.Linear`` with noise on its weights; its bias has none."""

    def __init__(self, layer: nn.Linear, method: VariationalDropout) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._become(layer, method, method.clamp_linear)

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(inputs, weight, bias)


class _VariationalConvolution(_Variational):
    log_sigma2_bias: nn.Parameter | None

    def _take(self, layer: Any, method: VariationalDropout) -> None:
        for name in _SETTINGS:
            setattr(self, name, getattr(layer, name))
        self._become(layer, method, method.clamp_conv)
        start = None if layer.bias is None else torch.full_like(layer.bias.detach(), method.log_sigma2)
        self.log_sigma2_bias = None if start is None else nn.Parameter(start)

    def noisy_bias(self) -> tuple[Tensor | None, Tensor | None]:
        if self.bias is None or self.log_sigma2_bias is None:
            return None, None
        return self.log_sigma2_bias, log_alpha(self.bias, self.log_sigma2_bias, self.bound)

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(inputs, weight, bias)  # type: ignore[attr-defined]


_SETTINGS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding",
    "groups", "padding_mode", "_reversed_padding_repeated_twice",
)  # fmt: skip


class VariationalConv1d(_VariationalConvolution, nn.Conv1d):
    """``nn.Conv1d`` with noise on weights and bias."""

    def __init__(self, layer: nn.Conv1d, method: VariationalDropout) -> None:
        nn.Module.__init__(self)
        self._take(layer, method)


class VariationalConv2d(_VariationalConvolution, nn.Conv2d):
    """``nn.Conv2d`` with noise on weights and bias."""

    def __init__(self, layer: nn.Conv2d, method: VariationalDropout) -> None:
        nn.Module.__init__(self)
        self._take(layer, method)


Variational = VariationalLinear | VariationalConv1d | VariationalConv2d

_KINDS: dict[type[nn.Module], Any] = {
    nn.Linear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
}


def convert(module: nn.Module, method: VariationalDropout) -> nn.Module:
    """Put a noisy layer into the place of each linear layer and convolution; names of tensors stay."""
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and type(child) in _KINDS:  # exactly these: subclasses may mean something else
                if child not in replaced:
                    replaced[child] = _KINDS[type(child)](child, method).train(child.training)
                parent._modules[name] = replaced[child]
    return replaced.get(module) or _itself(module, method)


def _itself(module: nn.Module, method: VariationalDropout) -> nn.Module:
    return _KINDS[type(module)](module, method) if type(module) in _KINDS else module


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Torch's transformer layers evaluate in one go from the weights of the layers in them: here they call these."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def variational_layers(module: nn.Module) -> list[Any]:
    """The noisy layers in module order."""
    return [layer for layer in module.modules() if isinstance(layer, _Variational)]


def kl_term(layers: list[Any]) -> Tensor:
    """The KL divergence of all weights and noisy biases together, a scalar."""
    return torch.stack([kl_divergence(own).sum() for layer in layers for own in layer.alphas()]).sum()
