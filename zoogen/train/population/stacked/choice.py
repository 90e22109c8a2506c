"""Which variant of each layer is fastest here: measured once per shape and device, remembered on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoogen.core.errors import UserError, suggest
from zoogen.train.population.remembered import machine, recall, remember
from zoogen.train.population.stacked.graph import Replayed
from zoogen.train.population.stacked.layers import Tuned
from zoogen.train.precision import matrix_arithmetic, mixed

log = logging.getLogger("zoogen")

_ROUNDS = 3
_HOPELESS = 3.0
"""A variant whose first run takes this many times the best so far is not run again."""


def choose(
    tuned: Sequence[Tuned],
    wanted: Mapping[str, str],
    *,
    models: int,
    batch: int,
    precision: str,
    device: torch.device,
    cache: Path | None,
) -> None:
    """Set the variant of every layer that has several: as wanted, as measured before, or as measured now.

    Args:
        wanted: Variant by layer name, or by kind (``conv1d``, ``conv2d``, ``max_pool``).
        models, batch: Sizes to measure for; samples of one forward pass.
        cache: Folder of what was measured before.

    Raises:
        UserError: ``wanted`` names an unknown layer, kind or variant.
    """
    _check(tuned, wanted)
    told = []
    for layer in tuned:
        if variant := wanted.get(layer.name) or wanted.get(layer.kind):
            layer.variant = variant
        elif layer.seen is not None:
            question = _question(layer, models, batch, precision, device)
            seconds = None if cache is None else recall(cache, question)
            if seconds is None:
                seconds = _measure(layer, models, batch, precision, device)
                if cache is not None:
                    remember(cache, question, seconds)
            layer.variant = min(seconds, key=lambda name: seconds[name])
            told.append(f"{layer.name} {', '.join(f'{n} {s * 1e3:.2f} ms' for n, s in _ranked(seconds))}")
    if told:
        log.info("stacked layers for %d models, batch %d on %s: %s", models, batch, device.type, "; ".join(told))


def _ranked(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: item[1])


def _check(tuned: Sequence[Tuned], wanted: Mapping[str, str]) -> None:
    variants = {layer.kind: layer.variants for layer in tuned} | {layer.name: layer.variants for layer in tuned}
    for name, variant in wanted.items():
        if name not in variants:
            if name in _KINDS:
                continue  # a kind that this network does not have
            raise UserError(
                f"variants: the network has no layer or kind {name!r} to choose for\n{suggest(name, variants)}"
            )
        if variant not in variants[name]:
            raise UserError(f"variants: unknown variant {variant!r} of {name!r}\n{suggest(variant, variants[name])}")


_KINDS = ("conv1d", "conv2d", "max_pool")


def _question(layer: Tuned, models: int, batch: int, precision: str, device: torch.device) -> dict[str, Any]:
    """All that the answer depends on."""
    return {
        "layer": f"{layer} {layer.seen}",
        "variants": list(layer.variants),
        "in_order": layer.in_order,
        "models": models,
        "batch": batch,
        "precision": precision,
        "machine": machine(str(device)),
    }


def _measure(layer: Tuned, models: int, batch: int, precision: str, device: torch.device) -> dict[str, float]:
    """Seconds of a forward and backward pass of each variant that fits into memory."""
    found: dict[str, float] = {}
    with matrix_arithmetic(precision):
        for variant in layer.variants:
            try:
                run = _workload(layer, variant, models, batch, precision, device)
                found[variant] = _seconds(run, device, min(found.values(), default=float("inf")))
            except torch.OutOfMemoryError:
                continue
    if not found:
        raise torch.OutOfMemoryError(f"layer {layer.name!r} does not fit into memory with {models} models")
    return found


def _workload(
    layer: Tuned, variant: str, models: int, batch: int, precision: str, device: torch.device
) -> Callable[[], None]:
    assert layer.seen is not None
    rng = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device)

    inputs = normal(models, batch, *layer.seen.inputs).requires_grad_(layer.seen.gradient)
    tensors = [None if shape is None else normal(models, *shape).requires_grad_() for shape in layer.seen.tensors]
    moved = [t for t in (inputs, *tensors) if t is not None and t.requires_grad]

    def run() -> None:
        with mixed(precision, device):
            outputs = layer.compute(variant, inputs, *tensors)
        if moved:
            torch.autograd.grad(outputs, moved, torch.ones_like(outputs))

    return run


def _seconds(run: Callable[[], None], device: torch.device, best: float) -> float:
    """The shortest of a few runs, after one to warm up."""
    replayed = Replayed(run, device)
    if device.type == "cuda":
        for _ in range(4):  # the last of them records
            replayed()
    first = _timed(replayed, device)
    if first > _HOPELESS * best:
        return first
    return min(_timed(replayed, device) for _ in range(_ROUNDS))


def _timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
