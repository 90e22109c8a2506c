"""The network that trains a job: its architecture's, with the layers that its sparsification method needs."""

from __future__ import annotations

from torch import nn

from zoogen.core.modules import build_model
from zoogen.core.records import Job
from zoogen.train.sparsify.methods import VariationalDropout
from zoogen.train.sparsify.variational import convert


def build_network(job: Job, seed: int | None = None) -> nn.Module:
    """Float32, on the CPU, in train mode, with the initial weights of the job's seed (or of ``seed``).

    Raises:
        UserError: the architecture does not fit the task.
    """
    own = job.seeds.init if seed is None else seed
    module = build_model(job.architecture, job.task.input_shape, job.task.outputs, own)
    method = job.training.sparsify
    return convert(module, method) if isinstance(method, VariationalDropout) else module
