"""From an architecture to its network and its layout, alike in every room that needs one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from zoogen.core.canonical import canonical_json
from zoogen.core.contracts import Architecture
from zoogen.core.errors import UserError, ZoogenError
from zoogen.core.layout import Layout, describe_module
from zoogen.core.registry import ARCHITECTURES
from zoogen.core.streams import torch_seed

if TYPE_CHECKING:
    from torch import nn


def build_model(architecture: Architecture, input_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """The network with the initial weights of ``seed``: float32, on the CPU, in train mode.

    Equal seeds give equal weights; torch's global generators, default dtype and default device are left as they were.

    Raises:
        UserError: the architecture does not fit the input shape.
    """
    import torch

    with torch.random.fork_rng(devices=[]), _plain_defaults("cpu"):
        # torch.manual_seed would also reseed the generators of every GPU, which nothing here restores.
        torch.default_generator.manual_seed(torch_seed(seed))
        return architecture.build(input_shape, outputs)


def describe(architecture: Architecture, input_shape: tuple[int, ...], outputs: int) -> Layout:
    """The layout of an architecture's network; takes no memory for weights, and is remembered.

    Raises:
        UserError: the architecture does not fit the input shape, or cannot be built.
    """
    return _describe(canonical_json(ARCHITECTURES.describe(architecture)), tuple(input_shape), outputs)


@lru_cache(maxsize=1024)
def _describe(identity: bytes, input_shape: tuple[int, ...], outputs: int) -> Layout:
    architecture = ARCHITECTURES.restore(json.loads(identity))
    try:
        with _plain_defaults("meta"):
            return describe_module(architecture.build(input_shape, outputs))
    except ZoogenError:
        raise
    except Exception as error:
        if "overflow" in str(error):  # more elements than can be counted: no memory is to be looked for
            told = f"{architecture.registered_name!r} for inputs of shape {input_shape} and {outputs} outputs"
            raise UserError(f"architecture {told} is too large: {error}") from error
        # A factory may compute with its tensors, which have no values on the meta device. What is wrong with the
        # architecture itself, the real construction raises again.
        return describe_module(_really_built(architecture, input_shape, outputs))


def _really_built(architecture: Architecture, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    try:
        return build_model(architecture, input_shape, outputs, seed=0)
    except (ZoogenError, MemoryError):
        raise
    except Exception as error:  # out of a factory of the user's
        told = ARCHITECTURES.describe(architecture)
        raise UserError(
            f"architecture {told} cannot be built for inputs of shape {input_shape} and {outputs} outputs: "
            f"{type(error).__name__}: {error}\n"
            "change its arguments, or mend the code it names"
        ) from error


@contextmanager
def _plain_defaults(device: str) -> Iterator[None]:
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(dtype)
