"""One model in training: an ``nn.Module``, its ``torch.optim`` optimizer, its schedule and its random streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoogen.core import streams
from zoogen.core.contracts import PartName, TaskData
from zoogen.core.errors import EnvironmentFault, Incomplete, UserError
from zoogen.core.layout import Layout, describe_module
from zoogen.core.records import Job, Resources
from zoogen.train.dropout import DropoutStream, replace_dropout
from zoogen.train.evaluate import Evaluation, evaluate
from zoogen.train.generators import borrowed_generators, seed_generators
from zoogen.train.network import build_network
from zoogen.train.optimizer_state import flat_state, load_flat_state
from zoogen.train.precision import check_precision, loss_scale, matrix_arithmetic, mixed
from zoogen.train.sparsify.masks import first_mask
from zoogen.train.sparsify.noise import NoiseStream
from zoogen.train.sparsify.variational import kl_term, layer_by_layer, variational_layers


@dataclass(frozen=True)
class Snapshot:
    """A model at the end of an epoch, copied, on its device.

    Attributes:
        epoch: Epochs completed.
        weights: float32 [P], in the order of the layout.
        side: Rows of the other dtypes.
        optimizer: Flat optimizer state by name (``optimizer_state``), and ``grad_scaler`` [2] for float16.
        metrics: ``TRAINING_METRICS`` of this epoch; empty at epoch 0.
        kept: bool [W], which prunable weights are left, for a model that is pruned.
    """

    epoch: int
    weights: Tensor
    side: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    kept: Tensor | None = None

    @property
    def finite(self) -> bool:
        """Weights and training loss are finite."""
        return math.isfinite(self.metrics.get("train_loss", 0.0)) and bool(self.weights.isfinite().all())


class TrainedModel:
    """Trains one job epoch by epoch; each epoch depends on the state before it and its number only."""

    def __init__(self, job: Job, data: TaskData, device: torch.device, resources: Resources) -> None:
        check_precision(job.training.precision, device)
        self.job = job
        self._data = data
        self._device = device
        self._channels_last = resources.channels_last
        self._compiled = resources.compile
        self.steps_per_epoch = job.training.steps_per_epoch(data.size("train"))

        module = build_network(job)
        self.layout = describe_module(module)
        _check_trainable(self.layout)
        dropouts = replace_dropout(module)
        self._dropout = DropoutStream(job.seeds.dropout, dropouts, device)
        self._noisy = variational_layers(module)
        self._noise = NoiseStream(job.seeds.dropout, [layer.noise for layer in self._noisy])
        self._order_key = streams.stream_key(job.seeds.order, "order")
        self._augment_key_1 = torch.tensor([streams.stream_key(job.seeds.augment, "augment")], device=device)

        module.to(device=device)
        if self._channels_last:
            module.to(memory_format=torch.channels_last)
        self.module: nn.Module = module
        self._forward: Callable[[Tensor], Tensor] = module
        if self._compiled:
            # A new key each step would compile a new program each step.
            for layer in dropouts:
                layer.masks.draw = torch.compiler.disable(layer.masks.draw)  # type: ignore[method-assign]
            for layer in self._noisy:
                layer.noise.draw = torch.compiler.disable(layer.noise.draw)
            self._forward = torch.compile(module)
        tensors = self._tensors()
        self._parameters = [tensors[e.name] for e in self.layout.entries if e.trainable]
        self._start_optimizer()
        kept = first_mask(job, self.layout, self.layout.flatten(tensors).cpu().numpy())
        self._set_mask(None if kept is None else torch.from_numpy(kept))

    def _tensors(self) -> dict[str, Tensor]:
        """By name, as they are now: a network may have put a new tensor into the place of a buffer."""
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    def _start_optimizer(self) -> None:
        training = self.job.training
        self._optimizer = training.optimizer.build(self._parameters)
        self._schedule = training.schedule.build(
            self._optimizer, training.epochs * self.steps_per_epoch, self.steps_per_epoch
        )
        self._scaler = loss_scale(training.precision, self._device)

    @torch.no_grad()
    def _set_mask(self, kept_W: Tensor | None) -> None:
        """From now on the weights that are not kept are 0, and stay so."""
        self._kept = kept_W
        self._masks: dict[str, Tensor] = {}
        if kept_W is not None:
            tensors = self._tensors()
            parts = kept_W.split([e.size for e in self.layout.prunable])
            for e, part in zip(self.layout.prunable, parts, strict=True):
                self._masks[e.name] = part.view(e.shape).to(tensors[e.name])
                tensors[e.name].masked_fill_(self._masks[e.name] == 0, 0)  # a product would leave -0.0

    @property
    def first_learning_rate(self) -> float:
        """Of the first optimizer step."""
        return self._schedule.at(0).lr

    # Training

    def train_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Train for one epoch after ``epoch`` completed ones; returns its ``TRAINING_METRICS``.

        Raises:
            Incomplete: ``should_stop()`` said so between two steps.
            EnvironmentFault: ``torch.compile`` does not work here.
        """
        if not self._compiled:
            return self._train_epoch(epoch, should_stop)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._train_epoch(epoch, should_stop)
        except TorchDynamoException as error:
            raise EnvironmentFault(
                f"torch.compile failed for architecture {self.job.architecture.registered_name!r}: {error}\n"
                "install the compiler it asks for, or set resources.compile to false"
            ) from error

    def _train_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        training, data = self.job.training, self._data
        inputs, targets = data.tensors("train", self._device)
        order = epoch_order(self._order_key, epoch, len(targets)).to(self._device)
        targets = targets[order]
        first_step = epoch * self.steps_per_epoch
        steps_S = torch.arange(first_step, first_step + self.steps_per_epoch, device=self._device)
        self._dropout.prepare(first_step, self.steps_per_epoch)
        self._noise.prepare(first_step, self.steps_per_epoch)
        penalty = self._kl_weight(epoch)
        losses, classes = [], []
        norm: Tensor | float = math.nan
        self.module.train()
        with borrowed_generators(self._device), matrix_arithmetic(training.precision):
            batches = zip(order.split(training.batch_size), targets.split(training.batch_size), strict=True)
            for step, (rows_B, targets_B) in enumerate(batches, start=first_step):
                if should_stop():
                    raise Incomplete(f"model {self.job.model_id} was stopped in epoch {epoch + 1}")
                self._dropout.start_step(step)
                self._noise.start_step(step)
                self._schedule.apply(step)
                inputs_1B = inputs.index_select(0, rows_B)[None]
                step_1 = steps_S[step - first_step : step - first_step + 1]
                inputs_B = data.augment(inputs_1B, self._augment_key_1, step_1)[0]
                losses_B, classes_B = self._backward(inputs_B, targets_B)
                losses += losses_B
                classes += classes_B
                if penalty:
                    self._scaler.scale(penalty * kl_term(self._noisy)).backward()
                norm = self._update(want_norm=step + 1 == first_step + self.steps_per_epoch)
        # One synchronisation per epoch; the mean over samples weighs batches by their size.
        return {
            "train_loss": torch.cat(losses).double().mean().item(),
            "train_acc": (torch.cat(classes) == targets).double().mean().item(),
            "learning_rate": self._schedule.at(first_step + self.steps_per_epoch - 1).lr,
            "grad_norm": float(norm),
        }

    def _kl_weight(self, epoch: int) -> float:
        method, epochs = self.job.training.sparsify, self.job.training.epochs
        return method.kl_weight(epoch, epochs, self._data.size("train")) if self._noisy else 0.0

    def _backward(self, inputs_B: Tensor, targets_B: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of the mean loss of a batch, micro-batch by micro-batch; the losses and classes of its samples."""
        training = self.job.training
        for parameter in self._parameters:
            parameter.grad = None
        losses, classes = [], []
        size = training.micro_batch or len(targets_B)
        for inputs_b, targets_b in zip(inputs_B.split(size), targets_B.split(size), strict=True):
            inputs_b = self._prepare(inputs_b)
            with mixed(training.precision, self._device):
                outputs_bC = self._forward(inputs_b)
                losses_b = self._data.loss(outputs_bC, targets_b, training.label_smoothing)
            # The gradient of their sum over the batch, divided by its size.
            share_b = torch.full_like(losses_b, 1 / len(targets_B))
            self._scaler.scale(losses_b).backward(share_b)
            losses.append(losses_b.detach())
            classes.append(outputs_bC.detach().argmax(1))
        return losses, classes

    def _update(self, want_norm: bool) -> Tensor | float:
        """One optimizer step; the norm of its gradient before clipping where it is wanted or needed, else NaN."""
        clip = self.job.training.clip_norm
        norm: Tensor | float = math.nan
        if self._masks:
            tensors = self._tensors()
            for name, mask in self._masks.items():
                gradient = tensors[name].grad
                if gradient is not None:
                    gradient.mul_(mask)
        if clip is not None or want_norm:
            self._scaler.unscale_(self._optimizer)
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if clip is not None:
                nn.utils.clip_grads_with_norm_(self._parameters, clip, norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return norm

    def _prepare(self, inputs_B: Tensor) -> Tensor:
        prepared = self._data.prepare(inputs_B)
        if self._channels_last and prepared.ndim == 4:
            prepared = prepared.contiguous(memory_format=torch.channels_last)
        return prepared

    # Evaluation

    def evaluate(self, part: PartName, *, first: int = -1, label_smoothing: float = 0.0) -> Evaluation:
        """Evaluate as the model stands, in eval mode and in the precision of its training, not compiled."""
        precision = self.job.training.precision

        def network(inputs_B: Tensor) -> Tensor:
            with mixed(precision, self._device):
                return self.module(self._prepare(inputs_B)).float()

        self.module.eval()
        shortcuts = layer_by_layer() if self._noisy else nullcontext()
        with borrowed_generators(self._device), matrix_arithmetic(precision), shortcuts:
            # A network that draws even in eval mode shall draw the same after a resume.
            seed_generators(0, self._device)
            return evaluate(network, self._data, part, self._device, first=first, label_smoothing=label_smoothing)

    # State

    def snapshot(self, epoch: int, metrics: dict[str, float]) -> Snapshot:
        """Copy the model out after ``epoch`` epochs."""
        optimizer = flat_state(self._optimizer)
        if self._scaler.is_enabled() and epoch > 0:
            scaler = self._scaler.state_dict()
            optimizer["grad_scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float32)
        tensors = self._tensors()
        return Snapshot(
            epoch=epoch,
            weights=self.layout.flatten(tensors),
            side={dtype: self.layout.flatten(tensors, dtype) for dtype in self.layout.side_dtypes},
            optimizer=optimizer,
            metrics=metrics,
            kept=self._kept,
        )

    @torch.no_grad()
    def load(self, snapshot: Snapshot) -> None:
        """Stand where ``snapshot`` was taken."""
        tensors = self._tensors()
        for name, value in self.layout.unflatten({"float32": snapshot.weights, **snapshot.side}).items():
            if name in tensors:  # named_parameters leaves out the further names of tied tensors
                tensors[name].copy_(value)
        self._set_mask(snapshot.kept)
        self._start_optimizer()
        rows = dict(snapshot.optimizer)
        scaler = rows.pop("grad_scaler", None)
        load_flat_state(self._optimizer, rows)
        if scaler is not None and self._scaler.is_enabled():
            scale, tracker = scaler.tolist()
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})


def epoch_order(order_key: int, epoch: int, samples: int) -> Tensor:
    """The order of the training samples in the epoch after ``epoch`` completed ones: int64 [samples]."""
    key = streams.subkey(order_key, epoch)
    assert isinstance(key, int)
    return streams.permutation(key, samples)


def _check_trainable(layout: Layout) -> None:
    wrong = [f"{e.name} ({e.dtype})" for e in layout.entries if e.trainable and e.dtype != "float32"]
    if wrong:
        raise UserError(f"trainable parameters must be float32; these are not: {', '.join(wrong)}")
    if not layout.trainable:
        raise UserError("the network has no trainable parameters, so there is nothing to train")
