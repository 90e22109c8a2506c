"""Jobs that no blueprint lists -> groups that one program could train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoogen.core.canonical import canonical_json
from zoogen.core.records import Recording, Resources
from zoogen.plan.cells import Group, Parts, Varying, may_vary, with_value
from zoogen.plan.table import settings


@dataclass(frozen=True)
class Given:
    """A model that is there already.

    Attributes:
        model_id: Its id.
        parts: Architecture, task and training.
        seed: Of all its random streams.
        side: Of the model split.
    """

    model_id: str
    parts: Parts
    seed: int
    side: str


def groups_of(given: Sequence[Given]) -> tuple[Group, ...]:
    """Models that differ only in what a cohort may mix, together; in the order of the first of each group."""
    found: dict[bytes, list[tuple[Given, dict]]] = {}
    for one in given:
        flat = settings(_group([one], one.parts, ()))
        fixed = {key: value for key, value in flat.items() if not may_vary(one.parts, key)}
        found.setdefault(canonical_json(fixed), []).append((one, flat))
    return tuple(_together(members) for members in found.values())


def _together(members: Sequence[tuple[Given, dict]]) -> Group:
    parts = members[0][0].parts
    varying = []
    for key in members[0][1]:
        if not may_vary(parts, key):
            continue
        column = [flat[key] for _, flat in members]
        values = tuple(dict.fromkeys(column))
        if len(values) > 1:
            place = {value: code for code, value in enumerate(values)}
            codes = np.array([place[value] for value in column], dtype=np.int32)
            varying.append(Varying(key, values, codes))
    for one in varying:
        parts = with_value(parts, one.key, one.values[0])
    return _group([one for one, _ in members], parts, tuple(varying))


def _group(given: Sequence[Given], parts: Parts, varying: tuple[Varying, ...]) -> Group:
    return Group(
        *parts,
        Recording((parts[2].epochs,), optimizer="none"),
        Resources(),
        None,
        varying,
        np.array([one.seed for one in given], dtype=np.int64),
        {},
        np.array([one.model_id for one in given], dtype="S32"),
        sides=np.array([one.side for one in given]),
    )
