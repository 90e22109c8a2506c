"""torch's global generators, lent to a network for a while and given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def borrowed_generators(device: torch.device) -> Iterator[None]:
    """Restore the generators of the CPU and of ``device`` at the end."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else [], device_type="cuda"):
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``; cheap enough for every step, unlike ``torch.manual_seed``."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
