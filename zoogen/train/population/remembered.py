"""Measurements kept between builds: small JSON files in the cache, one per question; losing one costs a moment."""

from __future__ import annotations

import json
import logging
import os
import platform
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch

from zoogen.core.canonical import canonical_json, digest

log = logging.getLogger("zoogen")


def recall(cache: Path, question: dict[str, Any]) -> Any:
    """The answer kept for a question, None where there is none; a damaged file is told once and made anew."""
    path = _file(cache, question)
    try:
        told = json.loads(path.read_bytes())
        if told["digest"] != digest(canonical_json([question, told["answer"]])):
            raise ValueError("its digest does not fit")
        return told["answer"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be used (%s); it is measured anew", path, error)
        with suppress(OSError):
            path.unlink()
        return None


def remember(cache: Path, question: dict[str, Any], answer: Any) -> None:
    """Keep an answer; where the cache cannot be written, the question is asked again another time."""
    path = _file(cache, question)
    told = {"question": question, "answer": answer, "digest": digest(canonical_json([question, answer]))}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(json.dumps(told, indent=1))
        Path(file.name).replace(path)


def _file(cache: Path, question: dict[str, Any]) -> Path:
    return cache / "choices" / f"{digest(canonical_json(question))}.json"


def machine(device: str) -> dict[str, Any]:
    """What a measurement depends on beside what is measured: the device, the cores, the versions."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor()
    return {
        "device": name,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "zoogen": _version(),
    }


def _version() -> str:
    try:
        return version("zoogen")
    except PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
