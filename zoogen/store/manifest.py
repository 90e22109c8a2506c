"""What ``zoo.json`` must look like; what a version before did not write may be absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REQUIRED = ("name", "version")
_KINDS: dict[str, type] = {
    "name": str,
    "version": int,
    "description": str,
    "factors": list,
    "axes": dict,
    "parents": list,
    "architectures": dict,
    "tasks": dict,
    "layouts": dict,
    "blueprints": list,
    "imported": dict,
    "software": dict,
}
_ENTRIES: dict[str, dict[str, type]] = {
    "architectures": {"name": str, "input_shape": list, "outputs": int, "layout": str},
    "tasks": {"name": str, "input_shape": list, "outputs": int, "sizes": list},
    "layouts": {"entries": list},
    "parents": {"name": str, "version": int, "path": str, "shards": dict},
    "blueprints": {"text": str, "digest": str},
}
_PARTS = 3  # of a task: train, val, test


def check_manifest(told: Mapping[str, Any]) -> None:
    """Refuse a manifest whose parts are of other kinds than those that are written.

    Raises:
        ValueError: says which.
    """
    _check(told, {name: kind for name, kind in _KINDS.items() if name in told or name in _REQUIRED}, "")
    if not all(type(name) is str for name in told.get("factors", ())):
        raise ValueError("'factors' is no list of names")
    for section, kinds in _ENTRIES.items():
        found = told.get(section, {})
        for name, entry in found.items() if isinstance(found, dict) else enumerate(found):
            if not isinstance(entry, dict):
                raise ValueError(f"{section} {name!r:.60} is no mapping")
            _check(entry, kinds, f"{section} {name!r:.60}: ")
    for name, task in told.get("tasks", {}).items():
        if len(task["sizes"]) != _PARTS or not all(type(size) is int for size in task["sizes"]):
            raise ValueError(f"tasks {name!r:.60}: 'sizes' are no three numbers")


def _check(told: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for name, kind in kinds.items():
        if type(told.get(name)) is not kind:  # a boolean is no number
            raise ValueError(f"{where}{name!r} is missing or no {kind.__name__}")
