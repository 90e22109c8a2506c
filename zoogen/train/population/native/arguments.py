"""The C struct ``Args`` of prelude.h, filled with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor


@lru_cache(maxsize=4)
def struct(lanes: int) -> type[ctypes.Structure]:
    """The struct for a number of lanes; field for field that of prelude.h."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    fields: list[tuple[str, Any]] = [
        ("inputs", pointer * lanes),
        ("order", pointer),
        ("n_order", integer),
        ("gathered", integer),
        ("targets", pointer * lanes),
        ("lut", pointer),
        *((name, integer) for name in ("first", "samples", "optimizer", "nesterov")),
        *((name, pointer) for name in ("activations", "slopes")),
        *((name, pointer) for name in ("weights", "gradients", "first_moment", "second_moment", "updates")),
        *((name, pointer) for name in ("rates", "momenta")),
        *((name, pointer) for name in ("beta1", "beta2", "eps", "decay", "smoothing", "clip")),
        *((name, pointer) for name in ("dropout_thresholds", "dropout_scales", "dropout_keys")),
        ("key_steps", integer),
        ("masks", pointer),
        *((name, pointer) for name in ("loss_sums", "gradient_norms", "hits", "outputs", "scratch")),
        *((name, pointer) for name in ("noise_keys", "kl_weights")),
    ]
    return type("Args", (ctypes.Structure,), {"_fields_": fields})


class Arguments:
    """Holds the tensors whose memory the struct points to."""

    def __init__(self, lanes: int, **values: Tensor | int | Sequence[Tensor] | None) -> None:
        self.struct = struct(lanes)()
        self._held: dict[str, Any] = {}
        self.set(**values)

    def set(self, **values: Tensor | int | Sequence[Tensor] | None) -> None:
        """Fill fields: numbers, contiguous tensors, one tensor per lane, or None for a null pointer."""
        for name, value in values.items():
            self._held[name] = value
            if isinstance(value, (list, tuple)):
                assert all(t.is_contiguous() for t in value)
                field = type(getattr(self.struct, name))
                setattr(self.struct, name, field(*(t.data_ptr() for t in value)))
            elif isinstance(value, Tensor):
                assert value.is_contiguous(), name
                setattr(self.struct, name, value.data_ptr())
            else:
                setattr(self.struct, name, value)
