"""Random numbers from counters: a draw depends on (seed, stream, step, layer, position) and on nothing else.

So a model gets the same batches, crops and dropout masks alone, in any cohort, on any device and after a resume; there
is no generator state to store. The counter function is Squares (Widynski 2020, arXiv:2004.06278): five rounds of
squaring a 64-bit counter times key; integer multiplication wraps alike in torch on CPU and CUDA.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Stream = Literal["init", "order", "augment", "dropout", "noise", "mask", "mixture"]

_MASK32 = 0xFFFFFFFF


def stream_key(seed: int, stream: Stream) -> int:
    """The 63-bit odd key of one model's stream, from its seed: two seeds or streams share no key in practice."""
    data = f"zoogen/{stream}/{seed}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1 | 1


def torch_seed(seed: int) -> int:
    """The seed to give torch's generator before a model is constructed (stream ``init``).

    torch's CPU generator keeps only 32 bits of a seed. Smaller seeds are passed on as they are, so that no two of them
    share their initial weights and ``torch.manual_seed(seed)`` gives the same ones; larger ones are hashed to 32 bits.
    """
    return seed if 0 <= seed <= _MASK32 else stream_key(seed, "init") >> 16 & _MASK32


def bits(key: Tensor | int, counter: Tensor) -> Tensor:
    """64 random bits per counter, as int64 (Squares, five rounds).

    Args:
        key: A stream key, or int64 keys that broadcast against ``counter`` (one per model).
        counter: int64 counters, any shape.
    """
    x = counter * key
    y = x
    z = y + key
    x = _rotate(x * x + y)
    x = _rotate(x * x + z)
    x = _rotate(x * x + y)
    t = x * x + z
    x = _rotate(t)
    return t ^ _shift32(x * x + y)


def subkey(key: Tensor | int, step: Tensor | int, layer: int = 0) -> Tensor | int:
    """The key of one (step, layer) within a stream: odd, 63 bits.

    Args:
        key: One stream key, or int64 keys.
        step: One step, or int64 steps that broadcast against the keys, on their device.
        layer: Below 2**16.

    Returns:
        An int where key and step are, else int64 of their common shape.
    """
    import torch

    place = (torch.as_tensor(step, dtype=torch.int64) << 16) + layer
    if not isinstance(key, int):
        place = place.to(key.device)
    found = bits(key, place) & 0x7FFFFFFFFFFFFFFF | 1
    return int(found) if isinstance(key, int) and isinstance(step, int) else found


def uniform(key: Tensor | int, counter: Tensor) -> Tensor:
    """float32 in [0, 1), a multiple of 2**-24, from the high bits."""
    import torch

    return ((bits(key, counter) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def permutation(key: int, n: int) -> Tensor:
    """A random order of ``range(n)`` (int64 [n]): the ranks of n 64-bit draws; on a tie the lower index first."""
    import torch

    return torch.argsort(bits(key, torch.arange(n, dtype=torch.int64)), stable=True)


def _shift32(x: Tensor) -> Tensor:
    return (x >> 32) & _MASK32  # torch shifts arithmetically; the mask makes it a logical shift


def _rotate(x: Tensor) -> Tensor:
    return _shift32(x) | (x << 32)
