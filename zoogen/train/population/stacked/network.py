"""The forward pass of many models at once: one skeleton of the network, called under ``vmap`` with their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoogen.core.layout import Layout, describe_module
from zoogen.core.records import Job
from zoogen.train.dropout import replace_dropout
from zoogen.train.network import build_network
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.stacked.dropout import Masks
from zoogen.train.population.stacked.layers import swap
from zoogen.train.population.stacked.noise import StackedNoise
from zoogen.train.population.stacked.supported import check_constants, check_layers
from zoogen.train.sparsify.variational import variational_layers


class StackedNetwork:
    """A network whose tensors carry a model axis.

    Attributes:
        layout: Of one model's row.
        program: What it computes, as text; alike for all models that can be trained together.
        dropouts: Number of dropout layers.
        masks: What they drop.
        noises: The noise of each variational layer, in module order.
        tuned: Layers that can be computed in several ways.

    Raises:
        Unsupported: a layer cannot be batched.
    """

    def __init__(self, example: Job, device: torch.device) -> None:
        module = _build(example, seed=0)
        check_layers(module)
        check_constants(module, _build(example, seed=1))
        self.layout: Layout = describe_module(module)
        wrong = [e.name for e in self.layout.entries if e.trainable and e.dtype != "float32"]
        if wrong or not self.layout.trainable:
            raise Unsupported(f"parameter {wrong[0]!r} is not float32" if wrong else "there is nothing to train")
        self.program = program_of(module)
        self.masks = Masks()
        self._slots = _slots(module, self.layout)
        dropouts = replace_dropout(module)
        for number, layer in enumerate(dropouts):
            layer.forward = _MaskedBy(self.masks, number, layer)  # type: ignore[method-assign]
        self.dropouts = len(dropouts)
        self._noisy = variational_layers(module)
        self.noises = [StackedNoise() for _ in self._noisy]
        for layer, noise in zip(self._noisy, self.noises, strict=True):
            layer.noise = noise
        self.tuned = swap(module)
        self.module = module.to(device)
        self._dtype = torch.float32
        self._own = [slot[leaf] for slot, leaf, _ in self._slots]
        self._buffers = {e.name for e in self.layout.entries if e.role in ("running_statistic", "buffer")}

    def __call__(self, tensors: Mapping[str, Tensor], inputs: Tensor, *, training: bool) -> Tensor:
        """Outputs [M, B, C] of prepared inputs: [M, B, ...] in training, [B, ...] for all models in evaluation.

        Args:
            tensors: Each entry of the layout by name, [M, *shape]; buffers are updated in place.
        """
        self.module.train(training)
        batched = vmap(self._one, in_dims=(0, 0 if training else None), randomness="error")
        outputs, buffers = batched(dict(tensors), inputs)
        with torch.no_grad():
            for name, after in buffers.items():
                if after.data_ptr() != tensors[name].data_ptr():
                    tensors[name].copy_(after)
        return outputs

    def _one(self, own: dict[str, Tensor], inputs_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One model's outputs, and its buffers afterwards: in-place changes and new tensors alike."""
        with self._holding(own):
            outputs = self.module(inputs_B)
            return outputs, {name: slot[leaf] for slot, leaf, name in self._slots if name in self._buffers}

    def alphas(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Log alpha of everything that has noise, as ``kl_term`` sums it up: each [M, *shape]."""
        return vmap(self._alphas)(dict(tensors))

    def _alphas(self, own: dict[str, Tensor]) -> list[Tensor]:
        with self._holding(own):
            return [alpha for layer in self._noisy for alpha in layer.alphas()]

    @contextmanager
    def _holding(self, own: Mapping[str, Tensor]) -> Iterator[None]:
        """With one model's tensors in the module.

        Not ``torch.func.functional_call``: that leaves the tensors of its last call in a layer that stands in several
        places, and looks for tied tensors anew at every call.
        """
        try:
            for slot, leaf, name in self._slots:
                slot[leaf] = own[name]
            yield
        finally:
            for (slot, leaf, _), tensor in zip(self._slots, self._own, strict=True):
                slot[leaf] = tensor

    def to(self, dtype: torch.dtype) -> None:
        """Keep constants in the dtype of the weights."""
        if dtype != self._dtype:
            self.module.to(dtype)
            self._own = [slot[leaf] for slot, leaf, _ in self._slots]
            self._dtype = dtype

    def views(self, weights_MP: Tensor, side: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each entry of the layout by name, [M, *shape], in the rows' own memory."""
        found = {}
        for e in self.layout.entries:
            rows = weights_MP if e.dtype == "float32" else side[e.dtype]
            found[e.name] = rows.narrow(1, e.offset, e.size).view(len(rows), *e.shape)
        return found


class _MaskedBy:
    """The forward pass of a dropout layer."""

    def __init__(self, masks: Masks, number: int, layer: nn.Module) -> None:
        self._masks = masks
        self._number = number
        self._layer = layer

    def __call__(self, inputs: Tensor) -> Tensor:
        return self._masks(self._number, inputs) if self._layer.training else inputs


def _build(job: Job, seed: int) -> nn.Module:
    return build_network(job, seed)


def _slots(module: nn.Module, layout: Layout) -> list[tuple[dict[str, Any], str, str]]:
    """Where the module keeps each tensor of the layout: dictionary, key there, name of the entry; tied ones repeat."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    names = {id(tensors[e.name]): e.name for e in layout.entries}
    return [
        (slot, leaf, names[id(tensor)])
        for layer in module.modules()
        for slot in (layer._parameters, layer._buffers)
        for leaf, tensor in slot.items()
        if id(tensor) in names
    ]


def program_of(module: nn.Module) -> tuple[str, ...]:
    """What a network computes, as text; the rates of dropout, which may differ between models, are left out."""
    return tuple(
        f"{name}: {type(layer).__name__}({'' if type(layer) is nn.Dropout else layer.extra_repr()})"
        for name, layer in module.named_modules(remove_duplicate=False)
    )


@contextmanager
def batchable_attention(device: torch.device) -> Iterator[None]:
    """Only the kernels of attention that ``vmap`` knows: the others would run model by model, or not at all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
