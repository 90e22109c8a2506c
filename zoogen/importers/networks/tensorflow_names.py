"""``layout.csv`` of the Small CNN Zoo: which numbers of a row are which variable, in TensorFlow's names and axes.

A row per variable: ``varname`` (``sequential/conv2d_1/kernel:0``), ``start_idx``, ``end_idx`` (not included), ``size``
and ``shape`` (``(3, 3, 16, 16)``). Kernels of convolutions are [height, width, in, out], of dense layers [in, out].
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.importers.containers.files import Files
from zoogen.importers.records.model_rows import read_rows, whole_number
from zoogen.importers.tensors.state_dicts import layout_of_tensors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_MOST_VARIABLES = 1_000
_COLUMNS = ("varname", "start_idx", "end_idx", "shape")
_VARIABLE = re.compile(r"(?:[\w.-]+/)*(conv2d|dense)(?:_(\d{1,3}))?/(kernel|bias)(?::0)?", re.ASCII)
_SHAPE = re.compile(r"\(\d{1,9}(,\d{1,9})*,?\)", re.ASCII)
# Axes of a kernel as torch has them: [out, in, height, width] and [out, in].
_AXES = {("conv2d", "kernel"): (3, 2, 0, 1), ("dense", "kernel"): (1, 0)}
_DIMENSIONS = {("conv2d", "kernel"): 4, ("dense", "kernel"): 2, ("conv2d", "bias"): 1, ("dense", "bias"): 1}


@dataclass(frozen=True)
class Variable:
    """A slice of a row that is one tensor.

    Attributes:
        name: By our names: ``conv2.weight``, ``fc.bias``.
        start, end: Of the slice.
        shape: As TensorFlow has it.
        axes: Order in which torch has them.
    """

    name: str
    start: int
    end: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def tensor(self, row: np.ndarray) -> Tensor:
        """The tensor that a row [columns] holds, in torch's order of axes, on its own memory."""
        import torch

        values = row[self.start : self.end].reshape(self.shape).transpose(self.axes)
        return torch.from_numpy(values.copy(order="C"))


def read_variables(files: Files, name: str, columns: int) -> tuple[Variable, ...]:
    """The variables of a row of ``columns`` numbers, in the order of the network, weight before bias.

    Raises:
        IntegrityError: the file is damaged, names a variable of another kind of layer, or its slices are not the whole
            row, each number once.
    """
    table = read_rows(files, name, _MOST_VARIABLES)
    if missing := [c for c in _COLUMNS if c not in table.columns]:
        raise _refused(files, name, f"has no column {missing[0]!r}")
    found = [_variable(files, name, dict(zip(table.columns, row, strict=True))) for row in table.rows]
    end = 0
    for variable in sorted(found, key=lambda v: v.start):
        if variable.start != end:
            what = "overlaps the variable before it" if variable.start < end else f"leaves {end:,} on to no variable"
            raise _refused(
                files, name, f"is no division of a row: {variable.name} begins at {variable.start:,}, {what}"
            )
        end = variable.end
    if end != columns:
        raise _refused(files, name, f"is for {end:,} numbers, a row has {columns:,}")
    if len({v.name for v in found}) < len(found):
        raise _refused(files, name, "has a variable twice")
    return tuple(sorted(found, key=lambda v: (v.name.startswith("fc"), _number(v.name), v.name.endswith("bias"))))


def layout_of(variables: Sequence[Variable]) -> Layout:
    """How the tensors lie in a row of ours; without their network."""
    import torch

    tensors = {v.name: torch.empty(tuple(v.shape[a] for a in v.axes), device="meta") for v in variables}
    return layout_of_tensors(tensors, {n: t for n, t in tensors.items() if n.endswith(".weight")})


def _variable(files: Files, name: str, row: Mapping[str, str]) -> Variable:
    match = _VARIABLE.fullmatch(row["varname"])
    if match is None:
        wanted = "expected kernels and biases of conv2d and dense layers (sequential/conv2d/kernel:0)"
        raise _refused(files, name, f"names {row['varname']!r:.100}; {wanted}")
    kind = (match[1], match[3])
    told = row["shape"].replace(" ", "")
    shape = tuple(int(n) for n in told.strip("(),").split(",")) if _SHAPE.fullmatch(told) else ()
    start, end = whole_number(row["start_idx"]), whole_number(row["end_idx"])
    size = whole_number(row["size"]) if "size" in row else math.prod(shape)
    if len(shape) != _DIMENSIONS[kind] or 0 in shape:
        raise _refused(files, name, f"gives {row['varname']} the shape {row['shape']:.100}, which a {kind[1]} has not")
    if start is None or end is None or end - start != math.prod(shape) or size != end - start:
        said = f"{row['start_idx']:.20} to {row['end_idx']:.20}"
        raise _refused(files, name, f"gives {row['varname']} the numbers {said}, and the shape {row['shape']:.100}")
    return Variable(_our_name(match), start, end, shape, _AXES.get(kind, (0,)))


def _our_name(match: re.Match[str]) -> str:
    """Keras numbers layers of a kind from the second on: conv2d, conv2d_1 -> conv1, conv2; dense -> fc."""
    number = int(match[2] or 0) + 1
    owner = f"conv{number}" if match[1] == "conv2d" else f"fc{number if number > 1 else ''}"
    return f"{owner}.{'weight' if match[3] == 'kernel' else 'bias'}"


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name.partition(".")[0]) or 1)


def _refused(files: Files, name: str, why: str) -> IntegrityError:
    return IntegrityError(f"{files.name}: {name} {why}\nget the file from its source")
