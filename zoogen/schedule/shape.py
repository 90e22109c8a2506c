"""The shape of a worker: what it takes of a machine."""

from __future__ import annotations

import math

from zoogen.core.errors import UserError
from zoogen.core.records import Resources

Shape = tuple[float, float]
"""CPUs and GPUs."""


def shape_of(resources: Resources) -> Shape:
    """What to ask Ray for: it takes fractions up to one and whole numbers above, so those are rounded up.

    Raises:
        UserError: no CPU is asked for.
    """
    cpus, gpus = (math.ceil(n) if n > 1 else n for n in (resources.cpus, resources.gpus))
    if cpus <= 0:
        raise UserError(f"resources.cpus is {cpus}: a worker needs a share of a core, e.g. 0.1 beside a GPU")
    return float(cpus), float(gpus)


def how_many(shape: Shape, node: Shape) -> int:
    """Workers of this shape that an empty node holds."""
    # The small term: 1 / 0.1 workers fit, whatever the last bit of the quotient says.
    return min(math.floor(have / wanted + 1e-9) for wanted, have in zip(shape, node, strict=True) if wanted)


def in_words(shape: Shape) -> str:
    """``2 CPU and 0.5 GPU``."""
    cpus, gpus = shape
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
