"""Try a network that zoogen did not write on two samples of zeros, before anything trains on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoogen.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def check_fit(network: nn.Module, input_shape: tuple[int, ...], outputs: int, name: str) -> None:
    """Hold a newly built network against the contract: (2, *input_shape) -> (2, outputs), trained in float32.

    Its parameters and buffers stay as they were.

    Raises:
        UserError: it fails on this input, gives another shape, or has trainable parameters of another dtype.
        Exception: it fails on the meta device, which need not mean that it fails elsewhere.
    """
    import torch
    from torch.func import functional_call

    for parameter_name, parameter in network.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"{name}: {parameter_name} is {parameter.dtype}, but weights are trained and stored in float32"
            )
    inputs_B = torch.zeros(2, *input_shape)
    try:
        with torch.no_grad():
            # On copies of the buffers, because a batch norm in train mode (as built) counts and averages.
            buffers = {buffer_name: buffer.clone() for buffer_name, buffer in network.named_buffers()}
            outputs_BC = functional_call(network, buffers, (inputs_B,))
    except Exception as error:
        if inputs_B.is_meta:  # tensors without values: whoever described the network tries it again with real ones
            raise
        raise UserError(
            f"{name} fails on the task's input of shape {input_shape}: {error}\n"
            "set its arguments to fit, resize the images in the task, or choose another architecture"
        ) from error
    if not isinstance(outputs_BC, torch.Tensor):
        raise UserError(
            f"{name} gives a {type(outputs_BC).__name__}, expected one tensor of {outputs} scores per sample\n"
            "only classifiers can be trained; switch auxiliary outputs off by its arguments (e.g. aux_logits: false)"
        )
    if outputs_BC.shape != (2, outputs):
        raise UserError(f"{name} gives shape {tuple(outputs_BC.shape)} for two samples, the task needs (2, {outputs})")
