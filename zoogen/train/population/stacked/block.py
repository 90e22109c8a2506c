"""A block of models in training: everything a step reads and writes, in tensors that stay where they are in memory.

Shape suffixes: M models, P parameters of a row, T trainable ones, B samples of a batch, b of a micro-batch, C outputs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from zoogen.core.contracts import TaskData
from zoogen.train.population.engine import Rows
from zoogen.train.population.stacked.dropout import Draws
from zoogen.train.population.stacked.epoch import Epoch
from zoogen.train.population.stacked.graph import Replayed
from zoogen.train.population.stacked.losses import StackedLoss
from zoogen.train.population.stacked.network import StackedNetwork
from zoogen.train.population.stacked.optimizers import counts_steps, state_names, step
from zoogen.train.precision import mixed
from zoogen.train.sparsify.variational import kl_slope


class Block:
    """Trains the models of ``epoch``, and others whose steps have the same program, one epoch after another."""

    def __init__(self, network: StackedNetwork, data: TaskData, device: torch.device, epoch: Epoch, rows: Rows) -> None:
        weights_MP = rows.weights
        self._network = network
        self._data = data
        self._device = device
        self._training = epoch.jobs[0].training
        self._kind = type(self._training.optimizer)
        self.key = block_key(epoch, rows)

        models = len(weights_MP)
        layout = network.layout
        self._inputs, self._targets = data.tensors("train", device)
        self._loss = StackedLoss(data, epoch.smoothing, device)
        self._given = {name: torch.empty_like(tensor) for name, tensor in epoch.tensors.items()}
        self._dropping = [int(name.rpartition("_")[2]) for name in self._given if name.startswith("dropout_keys")]

        self._trained, self._gradients, self._scratch = weights_MP.new_empty(3, models, layout.trainable)
        momentum = bool({"momentum", "momentum_MS"} & self._given.keys())
        self._masks: list[tuple[Tensor, Tensor]] = []  # of a tensor's gradients
        self._state = {name: torch.empty_like(self._trained) for name in state_names(self._kind, momentum)}
        if counts_steps(self._kind):
            self._state["step"] = torch.empty(models, sum(e.trainable for e in layout.entries), device=device)

        self._leaves: list[Tensor] = []
        self._gradient_parts: list[Tensor] = []
        self._tensors: dict[str, Tensor] = {}
        for e in layout.entries:
            if e.trainable:
                own, gradient = (
                    row.narrow(1, e.offset, e.size).view(models, *e.shape) for row in (self._trained, self._gradients)
                )
                self._leaves.append(own.detach().requires_grad_())
                self._gradient_parts.append(gradient)
                self._tensors[e.name] = self._leaves[-1]
            else:
                # Not in one row: autograd would take a running statistic that moves for a change of its neighbours.
                dtype = weights_MP.dtype if e.dtype == "float32" else getattr(torch, e.dtype)
                self._tensors[e.name] = torch.empty(models, *e.shape, dtype=dtype, device=device)

        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._loss_sums = torch.zeros(models, dtype=torch.float64, device=device)
        self._hits = torch.zeros(models, dtype=torch.int64, device=device)
        self._norms = torch.zeros(models, dtype=weights_MP.dtype, device=device)
        self._replayed: dict[int, Replayed] = {}

    @torch.no_grad()
    def load(self, epoch: Epoch, rows: Rows) -> None:
        """Begin an epoch with these models, whose steps have this block's program."""
        assert self.key == block_key(epoch, rows)
        self._load_masks(rows.kept)
        for name, tensor in epoch.tensors.items():
            self._given[name].copy_(tensor)
        for name, own in self._network.views(rows.weights, rows.side).items():
            self._tensors[name].copy_(own)
        for name, state in self._state.items():
            if name in rows.optimizer:
                state.copy_(rows.optimizer[name])
            else:
                state.zero_()
        for counter in (self._at, self._loss_sums, self._hits):
            counter.zero_()

    def _load_masks(self, kept_MW: Tensor | None) -> None:
        if kept_MW is None:
            return
        prunable = self._network.layout.prunable
        if not self._masks:
            parts = [self._gradients.narrow(1, e.offset, e.size) for e in prunable]
            self._masks = [(part, torch.empty_like(part)) for part in parts]
        for (_, mask), own in zip(self._masks, kept_MW.split([e.size for e in prunable], 1), strict=True):
            mask.copy_(own)

    def rows(self) -> Rows:
        """The models as they stand, copied out."""
        side_dtypes = self._network.layout.side_dtypes
        return Rows(
            self._row("float32"),
            {dtype: self._row(dtype) for dtype in side_dtypes},
            {name: state.clone() for name, state in self._state.items()},
        )

    def _row(self, dtype: str) -> Tensor:
        entries = self._network.layout.entries
        parts = [self._tensors[e.name].detach().reshape(-1, e.size) for e in entries if e.dtype == dtype]
        return torch.cat(parts, dim=1)

    def measured(self, samples: int) -> dict[str, Tensor]:
        """Mean loss, accuracy and last gradient norm of the epoch, float64 [M] on the CPU."""
        found = {
            "train_loss": self._loss_sums / samples,
            "train_acc": self._hits.double() / samples,
            "grad_norm": self._norms.double(),
        }
        return {name: values.cpu() for name, values in found.items()}

    def step(self, size: int) -> None:
        """The next optimizer step, on a batch of ``size`` samples per model."""
        if size not in self._replayed:
            self._replayed[size] = Replayed(partial(self._step, size), self._device)
        self._replayed[size]()

    def _step(self, size: int) -> None:
        """Reads and writes this block's tensors only, and never waits for the device."""
        inputs_MB, targets_MB = self._batch(size)
        self._network.masks.start_step({layer: self._draws(layer) for layer in self._dropping})
        micro = self._training.micro_batch or size
        for noise, keys_MS in zip(self._network.noises, self._given.get("noise_keys_LMS", ()), strict=True):
            noise.start_step(keys_MS.index_select(1, self._at))
        self._gradients.zero_()
        for inputs_Mb, targets_Mb in zip(inputs_MB.split(micro, 1), targets_MB.split(micro, 1), strict=True):
            self._backward(inputs_Mb, targets_Mb, 1 / size)
        if "kl_weights_M" in self._given:
            self._penalise(self._given["kl_weights_M"])
        with torch.no_grad():
            self._update()
        self._at.add_(1)

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Prepared inputs [M, B, ...] and targets [M, B] of the step at hand."""
        given = self._given
        places_B = self._at * self._training.batch_size + torch.arange(size, device=self._device)
        rows_MB = given["order_MN"].index_select(1, places_B)
        inputs_MB = self._inputs.index_select(0, rows_MB.flatten()).unflatten(0, rows_MB.shape)
        targets_MB = self._targets.index_select(0, rows_MB.flatten()).view_as(rows_MB)
        steps_M = (given["first_step"] + self._at).expand(len(rows_MB))
        inputs_MB = self._data.augment(inputs_MB, given["augment_keys_M"], steps_M)
        return as_seen(self._data, inputs_MB, self._trained.dtype), targets_MB

    def _draws(self, layer: int) -> Draws:
        given = self._given
        keys = given[f"dropout_keys_{layer}"].index_select(1, self._at)
        return Draws(keys, given[f"dropout_thresholds_{layer}"], given[f"dropout_scales_{layer}"])

    def _backward(self, inputs_Mb: Tensor, targets_Mb: Tensor, share: float) -> None:
        """Add the gradients of ``share`` times the sum of each model's losses."""
        with mixed(self._training.precision, self._device):
            outputs_MbC = self._network(self._tensors, inputs_Mb, training=True)
            losses_Mb = self._loss(outputs_MbC, targets_Mb)
        found = torch.autograd.grad(losses_Mb, self._leaves, torch.full_like(losses_Mb, share))
        self._loss_sums += losses_Mb.detach().double().sum(1)
        self._hits += (outputs_MbC.detach().argmax(2) == targets_Mb).sum(1)
        for part, gradient in zip(self._gradient_parts, found, strict=True):
            part.add_(gradient)

    def _penalise(self, weights_M: Tensor) -> None:
        """Add the gradients of each model's share of its KL divergence."""
        alphas = self._network.alphas(self._tensors)
        slopes = [
            weights_M.to(own.dtype).view(-1, *(1 for _ in own.shape[1:])) * kl_slope(own.detach()) for own in alphas
        ]
        found = torch.autograd.grad(alphas, self._leaves, slopes, allow_unused=True)
        for part, gradient in zip(self._gradient_parts, found, strict=True):
            if gradient is not None:
                part.add_(gradient)

    def _update(self) -> None:
        given = self._given
        for gradients, mask in self._masks:
            gradients.mul_(mask)
        torch.linalg.vector_norm(self._gradients, dim=1, out=self._norms)
        if "clip_M1" in given:
            # As torch.nn.utils.clip_grads_with_norm_.
            share_M1 = given["clip_M1"] / (self._norms.double()[:, None] + 1e-6)
            self._gradients.mul_(share_M1.clamp(max=1).to(self._gradients.dtype))
        settings = {**given, "lr": given["lr_MS"].index_select(1, self._at)}
        if "momentum_MS" in given:
            name = "momentum" if "momentum_buffer" in self._state else "beta1"
            settings[name] = given["momentum_MS"].index_select(1, self._at)
        nesterov = getattr(self._training.optimizer, "nesterov", False)
        step(self._kind, nesterov, self._trained, self._gradients, self._state, settings, self._scratch)


def block_key(epoch: Epoch, rows: Rows) -> tuple[object, ...]:
    """Blocks of equal keys can take each other's models."""
    return (tuple(rows.weights.shape), rows.weights.dtype, rows.kept is None, *epoch.program)


def as_seen(data: TaskData, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Prepared inputs; numbers in the dtype of the weights, indices as they are."""
    prepared = data.prepare(inputs)
    return prepared.to(dtype) if prepared.is_floating_point() else prepared
