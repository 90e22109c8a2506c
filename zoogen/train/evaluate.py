"""Full evaluation of one network on one part of a task's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from zoogen.core.contracts import PartName, TaskData

# Input elements of one batch: bounds memory (the widest activations of the networks at hand are about 100 times
# larger), and on a CPU keeps them in its caches.
_ELEMENTS = {"cpu": 2**19, "cuda": 2**22}


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    loss: Mean loss in nats (float64 sum of float32 losses); NaN without samples.
    acc: Share of samples classified correctly; NaN without samples.
    acc_per_class: float64 [C], NaN for a class without samples.
    predictions: int64 [N], the class with the largest output of each sample.
    """

    loss: float
    acc: float
    acc_per_class: np.ndarray
    predictions: np.ndarray


# Not inference_mode: what a task caches while it prepares a batch is used for training later.
@torch.no_grad()
def evaluate(
    network: Callable[[Tensor], Tensor],
    data: TaskData,
    part: PartName,
    device: torch.device,
    *,
    first: int = -1,
    label_smoothing: float = 0.0,
) -> Evaluation:
    """Evaluate on the ``first`` samples of a part (-1: all), in their order, in large batches.

    Args:
        network: Raw inputs of a batch, as ``data.tensors`` gives them, to outputs [B, C]; already in eval mode.
        label_smoothing: Of the reported loss.
    """
    inputs, targets = data.tensors(part, device)
    if first >= 0:
        inputs, targets = inputs[:first], targets[:first]
    if len(inputs) == 0:
        return Evaluation(np.nan, np.nan, np.full(data.outputs, np.nan), np.empty(0, dtype=np.int64))
    size = max(1, _ELEMENTS.get(device.type, _ELEMENTS["cpu"]) // prod(inputs.shape[1:]))
    losses, classes = [], []
    for inputs_B, targets_B in zip(inputs.split(size), targets.split(size), strict=True):
        outputs_BC = network(inputs_B)
        losses.append(data.loss(outputs_BC, targets_B, label_smoothing))
        classes.append(outputs_BC.argmax(1))
    predictions = torch.cat(classes)
    hits = (predictions == targets).double()
    per_class = torch.zeros(2, data.outputs, dtype=torch.float64, device=device)
    per_class[0].index_add_(0, targets, hits)
    per_class[1].index_add_(0, targets, torch.ones_like(hits))
    return Evaluation(
        loss=torch.cat(losses).double().mean().item(),
        acc=hits.mean().item(),
        acc_per_class=(per_class[0] / per_class[1]).cpu().numpy(),
        predictions=predictions.cpu().numpy(),
    )
