"""What a figure was measured on, and how several runs are summed up."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version


def machine() -> dict[str, str]:
    """Processor, cores, system and the versions that matter."""
    cpu = platform.processor() or "unknown"
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - a device of the kernel, not a file of ours
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    libraries = {name: version(name) for name in ("zoogen", "torch", "ray", "h5py", "pandas", "numpy")}
    return {"cpu": cpu, "cores": str(os.cpu_count()), "system": platform.platform(), **libraries}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and number of runs."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
