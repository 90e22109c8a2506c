"""Arithmetic threads of one worker process, so that workers on one machine do not fight for cores."""

from __future__ import annotations

import os
import sys

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def limit_threads(count: int) -> None:
    """Let torch, OpenMP, MKL and OpenBLAS of this process use ``count`` threads.

    Libraries read the variables when they are loaded, so this comes before torch is imported; a torch that is loaded
    already is told directly.
    """
    for name in _VARIABLES:
        os.environ[name] = str(count)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
