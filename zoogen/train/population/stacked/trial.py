"""A network is tried out, two models with two samples each, before a cohort is entrusted to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zoogen.core.contracts import TaskData
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.stacked.block import as_seen
from zoogen.train.population.stacked.dropout import Draws, thresholds_and_scales
from zoogen.train.population.stacked.losses import StackedLoss
from zoogen.train.population.stacked.network import StackedNetwork
from zoogen.train.precision import mixed


def try_out(network: StackedNetwork, data: TaskData, device: torch.device, precision: str) -> None:
    """Train and evaluate once, for nothing but the shapes that layers see and what goes wrong.

    Raises:
        Unsupported: ``vmap`` cannot batch the network, or a parameter takes no part in it.
    """
    with _refusing(network):
        try:
            found = _gradients(network, data, device, precision)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            for layer in network.tuned:
                layer.in_order = True
            found = _gradients(network, data, device, precision)
    for name, gradient in found.items():
        if gradient is None:
            # Torch leaves it where it is, without weight decay and without a step counted.
            raise Unsupported(f"parameter {name!r} gets no gradient")


def _gradients(
    network: StackedNetwork, data: TaskData, device: torch.device, precision: str
) -> dict[str, Tensor | None]:
    layout = network.layout
    inputs, targets = data.tensors("train", device)
    two = torch.arange(2, device=device) % len(targets)
    inputs_B, targets_B = as_seen(data, inputs[two], torch.float32), targets[two]
    state = network.module.state_dict()
    rows = {dtype: layout.flatten(state, dtype).expand(2, -1).clone() for dtype in ("float32", *layout.side_dtypes)}
    loss = StackedLoss(data, (0.0, 0.0), device)
    network.masks.start_step({layer: _draws(device) for layer in range(network.dropouts)})
    for noise in network.noises:
        noise.start_step(torch.tensor([[1], [3]], device=device))
    with torch.no_grad(), mixed(precision, device):
        loss(network(network.views(rows["float32"], rows), inputs_B, training=False), targets_B.expand(2, -1))
    # Last, so that layers have seen what needs a gradient.
    tensors = {name: own.clone() for name, own in network.views(rows["float32"], rows).items()}
    for e in layout.entries:
        tensors[e.name].requires_grad_(e.trainable)
    with mixed(precision, device):
        outputs = network(tensors, inputs_B.expand(2, *inputs_B.shape), training=True)
        losses = loss(outputs, targets_B.expand(2, -1))
    names = [e.name for e in layout.entries if e.trainable]
    gradients = torch.autograd.grad(losses.sum(), [tensors[n] for n in names], allow_unused=True)
    return dict(zip(names, gradients, strict=True))


def _draws(device: torch.device) -> Draws:
    """Of two models that drop every second value."""
    keys = torch.tensor([[1], [3]], device=device)
    thresholds, scales = thresholds_and_scales((0.5, 0.5))
    return Draws(keys, thresholds.to(device), scales.to(device))


@contextmanager
def _refusing(network: StackedNetwork) -> Iterator[None]:
    """Turn whatever goes wrong into ``Unsupported``: what is wrong with the network itself, the plain trainer says."""
    entered = [""]
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
        for name, layer in network.module.named_modules()
    ]
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unsupported(f"at or after layer {entered[-1]!r}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
