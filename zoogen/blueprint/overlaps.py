"""Coupled lists may describe one model twice; such a blueprint is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

from zoogen.blueprint.nodes import ListNode, MapNode, distinct
from zoogen.blueprint.problems import Problems
from zoogen.blueprint.records import Stratum

# Pairs are compared within a group; the plan, which has all ids, finds what lies beyond.
MAX_GROUP = 1000


def refuse_overlaps(strata: Sequence[Stratum], root: MapNode, problems: Problems) -> None:
    """Record the first two strata that share a cell. Only coupled lists can make such: all other structural choices
    stand in the cell themselves."""
    coupled = root.get("coupled")
    if not isinstance(coupled, MapNode):
        return
    names = [str(key.value) for key, _ in coupled]
    tables = [_values(stratum) for stratum in strata]
    for group in _groups(tables):
        if len(group) > MAX_GROUP:
            continue
        for a, b in combinations(group, 2):
            if all(tables[a][key] & tables[b].get(key, frozenset()) for key in tables[a]):
                differing = [n for n in names if strata[a].choice[n] != strata[b].choice[n]]
                first, second = (", ".join(f"{n}[{strata[i].choice[n]}]" for n in differing) for i in (a, b))
                entries = coupled.get(differing[-1])
                assert isinstance(entries, ListNode)
                at = entries.items[strata[b].choice[differing[-1]]].position
                message = f"the coupled entries {first} and {second} give the same cells"
                problems.add(at, message, "equal cells would be one model; let the entries differ in a value")
                return


def _values(stratum: Stratum) -> dict[str, frozenset[Any]]:
    """Every setting with the values it takes in the stratum; a draw counts as one value."""
    parts = {
        "architecture": stratum.architecture,
        "task": stratum.task,
        "training": stratum.training,
        "training.optimizer": stratum.training.optimizer,
        "training.schedule": stratum.training.schedule,
    }
    found: dict[str, frozenset[Any]] = {}
    for path, part in parts.items():
        if path != "training":
            found[f"{path}.name"] = frozenset([part.registered_name])
        for field in fields(part):
            if f"{path}.{field.name}" not in parts:
                found[f"{path}.{field.name}"] = frozenset([distinct(getattr(part, field.name))])
    for stream in ("init", "order", "augment", "dropout"):
        found[f"seeds.{stream}"] = frozenset([None])
    for factor in stratum.factors:
        draw = factor.draw
        values = [("draw", draw.kind, *map(distinct, draw.bounds))] if draw else map(distinct, factor.values)
        found[factor.key] = frozenset(values)
    return found


def _groups(tables: Sequence[dict[str, frozenset[Any]]]) -> list[list[int]]:
    """Indices of strata with equal values in all settings that take one value in every stratum."""
    single = [key for key in tables[0] if all(len(t.get(key, ())) <= 1 for t in tables)] if tables else []
    keys = sorted({key for t in tables for key in t if key in single or key not in tables[0]})
    groups: dict[Any, list[int]] = {}
    for i, table in enumerate(tables):
        signature = tuple((k, table[k]) for k in keys if k in table and len(table[k]) == 1 and k in single)
        groups.setdefault(signature, []).append(i)
    return list(groups.values())
