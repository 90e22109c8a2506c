"""On a GPU a step is recorded once and replayed: Python and the launches of hundreds of small kernels vanish."""

from __future__ import annotations

from collections.abc import Callable

import torch

_WARM_UP = 3
"""Calls that run as they are: libraries choose their algorithms and reserve memory, which cannot be recorded."""


class Replayed:
    """A function of tensors that stay where they are in memory, called again and again; anywhere but on a GPU plainly.

    Args:
        function: Reads and writes the same tensors at every call and never waits for the device.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._calls = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._device.type != "cuda":
            self._function()
        elif self._calls < _WARM_UP:
            self._beside()
        else:
            if self._graph is None:
                self._graph = self._recorded()
            self._graph.replay()
        self._calls += 1

    def _recorded(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._function()  # does not run
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):  # hidden by the recording that it broke off
                raise error.__context__ from None
            raise
        return graph

    def _beside(self) -> None:
        """On a stream of its own, as what comes before a recording must run."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._function()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
