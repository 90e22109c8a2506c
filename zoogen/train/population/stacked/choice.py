"""Which variant of each layer is fastest here: measured once per shape and device, remembered on disk."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from zoogen.core.errors import UserError, suggest
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

    Raises:
        UserError: ``wanted`` names an unknown layer, kind or variant.
    """
    _check(tuned, wanted)
    known = Remembered(cache)
    told = []
    for layer in tuned:
        if variant := wanted.get(layer.name) or wanted.get(layer.kind):
            layer.variant = variant
        elif layer.seen is not None:
            question = _question(layer, models, batch, precision, device)
            seconds = known.get(question, layer.variants)
            if seconds is None:
                seconds = _measure(layer, models, batch, precision, device)
                known.put(question, seconds)
            layer.variant = min(seconds, key=lambda name: seconds[name])
            told.append(f"{layer.name} {', '.join(f'{n} {s * 1e3:.2f} ms' for n, s in _ranked(seconds))}")
    known.save()
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


def _question(layer: Tuned, models: int, batch: int, precision: str, device: torch.device) -> str:
    """All that the answer depends on, as text."""
    place = f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    order = "in order" if layer.in_order else "in any order"
    sizes = f"{models} models, batch {batch}, {precision}, {order}"
    return f"{layer} {layer.seen}, {sizes}, {place}, torch {torch.__version__}"


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


class Remembered:
    """Measured seconds by question, kept in a JSON file; an unreadable one is replaced, with a warning."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._new: dict[str, dict[str, float]] = {}
        self._answers: dict[str, dict[str, float]] = {}
        if path is not None and path.exists():
            try:
                self._answers = _read(path)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("%s cannot be read and is written anew: %s: %s", path, type(error).__name__, error)

    def get(self, question: str, variants: Sequence[str]) -> dict[str, float] | None:
        """Seconds per variant, or None where not all that is known to be there makes sense."""
        answer = self._answers.get(question)
        return answer if answer and set(answer) <= set(variants) else None

    def put(self, question: str, seconds: dict[str, float]) -> None:
        self._new[question] = seconds

    def save(self) -> None:
        """Write what was added; whole or not at all."""
        if self._path is None or not self._new:
            return
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            self._answers |= _read(self._path)  # what others wrote meanwhile
        content = {"seconds": dict(sorted({**self._answers, **self._new}.items()))}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self._path.parent, prefix=self._path.name, delete=False
            ) as file:
                json.dump(content, file, indent=1)
            Path(file.name).replace(self._path)
        except OSError as error:
            log.warning("measured variants are not remembered: %s: %s", self._path, error)


def _read(path: Path) -> dict[str, dict[str, float]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        str(question): {str(name): float(seconds) for name, seconds in answer.items()}
        for question, answer in content["seconds"].items()
    }
