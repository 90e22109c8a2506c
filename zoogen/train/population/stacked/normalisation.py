"""Batch norm with statistics of each model's own: one batch norm over the channels of all models side by side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoogen.train.population.stacked.crossing import on_stack


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """``layer.forward`` under ``vmap``; running statistics move as torch moves them."""
    layer._check_input_dim(inputs)
    if not layer.training and layer.running_mean is not None:
        known = partial(_by_known_statistics, layer.eps)
        return on_stack(known, inputs, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    outputs, mean, var = on_stack(partial(_by_batch_statistics, layer.eps), inputs, layer.weight, layer.bias)
    if layer.training and layer.track_running_stats and layer.running_mean is not None:
        _move(layer, mean, var)
    return outputs


@torch.no_grad()
def _move(layer: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    share: float | Tensor | None = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if share is None:  # the mean over all batches
            share = 1 / layer.num_batches_tracked.to(layer.running_mean.dtype)
    share = 0.0 if share is None else share
    for running, new in ((layer.running_mean, mean), (layer.running_var, var)):
        running.copy_(share * new + (1 - share) * running)


def _by_batch_statistics(
    eps: float, inputs: Tensor, weight_MC: Tensor | None, bias_MC: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised inputs, and mean and unbiased variance [M, C] of this batch."""
    models = len(inputs) if weight_MC is None else len(weight_MC)
    channels, unfold = _side_by_side(inputs.expand(models, *inputs.shape[1:]))
    dtype = torch.promote_types(inputs.dtype, torch.float32)  # under autocast the inputs are narrower
    # With momentum 1 what torch writes into running statistics is those of the batch.
    mean, var = (torch.zeros(channels.shape[1], dtype=dtype, device=inputs.device) for _ in range(2))
    weight, bias = (None if t is None else t.flatten() for t in (weight_MC, bias_MC))
    outputs = functional.batch_norm(channels, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)
    return unfold(outputs), mean.view(models, -1), var.view(models, -1)


def _by_known_statistics(
    eps: float,
    inputs: Tensor,
    mean_MC: Tensor,
    var_MC: Tensor,
    weight_MC: Tensor | None,
    bias_MC: Tensor | None,
) -> Tensor:
    inputs = inputs.expand(len(mean_MC), *inputs.shape[1:])
    channels, unfold = _side_by_side(inputs)
    weight, bias = (None if t is None else t.flatten() for t in (weight_MC, bias_MC))
    return unfold(functional.batch_norm(channels, mean_MC.flatten(), var_MC.flatten(), weight, bias, eps=eps))


def _side_by_side(inputs_MBC: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """[M, B, C, ...] with the channels of all models on axis 1; and the way back.

    Samples stay in front where they lie so in memory; where channels do, samples count as pixels. Either way nothing
    is copied.
    """
    models, samples, n_channels, *image = inputs_MBC.shape
    pixels = inputs_MBC.flatten(3) if image else inputs_MBC[..., None]
    if pixels.stride(2) > pixels.stride(1):
        channels = pixels.transpose(1, 2).reshape(1, models * n_channels, samples * pixels.shape[3])

        def unfold(outputs: Tensor) -> Tensor:
            return outputs.view(models, n_channels, samples, *image).transpose(1, 2)

        return channels, unfold
    channels = pixels.transpose(0, 1).reshape(samples, models * n_channels, pixels.shape[3])
    return channels, lambda outputs: outputs.view(samples, models, n_channels, *image).transpose(0, 1)
