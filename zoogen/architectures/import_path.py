"""Any ``torch.nn.Module`` by the import path of its factory: the way to train a network of one's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from zoogen.architectures.fit import check_fit
from zoogen.core.errors import UserError, suggest
from zoogen.core.frozen import FrozenDict, freeze, thaw
from zoogen.core.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn


@ARCHITECTURES.register("import")
@dataclass(frozen=True)
class ImportedModule:
    """The network that a function or class of an importable package makes.

    The factory is called with ``arguments``, and with ``input_shape`` and ``outputs`` where its signature names them.
    It draws its initial weights from torch's generator, so that they follow from the model's seed. Its code runs when
    a network is built, never when a zoo is opened or described.

    Attributes:
        path: ``package.module:factory``.
        arguments: Keyword arguments of the factory; they are part of the model's identity, the factory's code is not.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=FrozenDict)

    per_model: ClassVar[frozenset[str]] = frozenset()
    runs_code: ClassVar[bool] = True
    registered_name: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", freeze(self.arguments, "arguments"))

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network, (B, *input_shape) -> (B, outputs). Imports and runs the factory's code.

        Raises:
            UserError: the factory cannot be found, does not take the arguments, or makes no network for this task.
        """
        from torch import nn

        factory = _find(self.path)
        network = factory(**_arguments(factory, self.path, thaw(self.arguments), input_shape, outputs))
        if not isinstance(network, nn.Module):
            raise UserError(f"{self.path} gives a {type(network).__name__}, expected a torch.nn.Module")
        check_fit(network, input_shape, outputs, self.path)
        return network


def _find(path: str) -> Callable[..., Any]:
    module_name, colon, name = path.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f"architecture 'import': the path {path!r} is not of the form package.module:factory")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"architecture 'import': cannot import {module_name!r}: {error}\n"
            "install the package in this environment, or add its folder to PYTHONPATH"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f"architecture 'import': {module_name} has no function or class {name!r}\n{suggest(name, known)}"
        )
    return factory


def _arguments(
    factory: Callable[..., Any], path: str, arguments: dict[str, Any], input_shape: tuple[int, ...], outputs: int
) -> dict[str, Any]:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions written in C have none
        return arguments
    for name, value in (("input_shape", input_shape), ("outputs", outputs)):
        # Only by name: a factory with **kwargs may hand them on to someone who refuses unknown ones.
        parameter = signature.parameters.get(name)
        if parameter is None or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        if name in arguments:
            raise UserError(f"{path}: the task sets {name!r}; leave it out of the arguments")
        arguments[name] = value
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{path}{signature} cannot be called with {sorted(arguments)}: {error}") from error
    return arguments
