"""Where the windows of a convolution or a pooling lie on an image."""

from __future__ import annotations

from collections.abc import Iterator

Pair = tuple[int, int]
"""(vertical, horizontal)"""


def windows(kernel: Pair, stride: Pair, dilation: Pair, size: Pair) -> Iterator[tuple[Pair, tuple[slice, slice]]]:
    """Each position within a window, row by row, and the image rows and columns it meets in ``size`` windows."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            starts = i * dilation[0], j * dilation[1]
            rows, columns = (
                slice(at, at + (n - 1) * step + 1, step) for at, n, step in zip(starts, size, stride, strict=True)
            )
            yield (i, j), (rows, columns)
