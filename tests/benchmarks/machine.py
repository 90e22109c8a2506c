"""What a figure was measured on, and how several runs are summed up."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
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


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def told(values: Sequence[float], form: Callable[[float], str] = "{:,.0f}".format) -> str:
    """Median and range, in words."""
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"
