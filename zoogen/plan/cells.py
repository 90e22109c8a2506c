"""Cells of a blueprint: every combination of factor values, draws and seeds, with its model id.

Cells come in groups that differ only in factors a cohort may mix (learning rate, dropout rate, initialisation, seeds).
Within a group the constant part of the identity is encoded once, each factor value once, and a cell costs one join and
one hash; no object is made per cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoogen.blueprint.records import Blueprint, Factor, SeedPolicy, Stratum
from zoogen.core.canonical import canonical_json, digest
from zoogen.core.recipe import Training
from zoogen.core.records import Job, Parent, Recording, Resources, Seeds
from zoogen.plan.draws import draw_seeds, draw_values
from zoogen.plan.identity import settings_identity

_STREAMS = ("init", "order", "augment", "dropout")


@dataclass(frozen=True)
class Varying:
    """One key that differs within a group: ``values[codes[i]]`` is its value in cell i."""

    key: str
    values: tuple[Any, ...]
    codes: np.ndarray


@dataclass(frozen=True)
class Group:
    """Cells that one program could train: all settings equal but the ``varying`` ones and the seeds.

    Attributes:
        architecture, task, training: With the varying fields at their first value.
        recording, resources, cohort_size: As the blueprint says for these cells.
        seeds: int64 [cells], the seed of each cell.
        apart: Streams set apart by the blueprint for all cells; a varying ``seeds.<stream>`` goes before it.
        ids: bytes [cells] of 32 hex digits (dtype S32), the model ids.
        parents: Of each cell, for twins; empty where models start anew.
        sides: Side of the model split of each cell, where their source says it; None: by the hash of the root's id.
    """

    architecture: Any
    task: Any
    training: Training
    recording: Recording
    resources: Resources
    cohort_size: int | None
    varying: tuple[Varying, ...]
    seeds: np.ndarray
    apart: Mapping[str, int]
    ids: np.ndarray
    parents: tuple[tuple[Parent, ...], ...] = ()
    sides: np.ndarray | None = None

    @property
    def roots(self) -> np.ndarray:
        """Ids of the oldest ancestors of the cells (S32): their own where they have no parents."""
        if not self.parents:
            return self.ids
        return np.array([parents[0].model_id for parents in self.parents], dtype="S32")

    def __len__(self) -> int:
        return len(self.seeds)

    def job(self, cell: int) -> Job:
        """The job of the group's cell number ``cell``."""
        parts = (self.architecture, self.task, self.training)
        apart = dict(self.apart)
        for varying in self.varying:
            value = varying.values[varying.codes[cell]]
            if varying.key.startswith("seeds."):
                apart[varying.key.removeprefix("seeds.")] = value
            else:
                parts = with_value(parts, varying.key, value)
        seed = int(self.seeds[cell])
        seeds = Seeds(**{stream: apart.get(stream, seed) for stream in _STREAMS})
        return Job(self.ids[cell].decode(), *parts, seeds, self.parents[cell] if self.parents else ())


Parts = tuple[Any, Any, Training]


def with_value(parts: Parts, key: str, value: Any) -> Parts:
    """(architecture, task, training) with one dotted key set."""
    architecture, task, training = parts
    section, _, name = key.partition(".")
    if section == "architecture":
        return replace(architecture, **{name: value}), task, training
    if section == "task":
        return architecture, replace(task, **{name: value}), training
    part, _, field = name.partition(".")
    if field:
        inner = replace(getattr(training, part), **{field: value})
        return architecture, task, replace(training, **{part: inner})
    return architecture, task, replace(training, **{name: value})


def groups(blueprint: Blueprint) -> Iterator[Group]:
    """All groups of a blueprint, in the order of its strata and factors (the first factor varies slowest)."""
    for stratum in blueprint.strata:
        yield from _stratum_groups(stratum, blueprint)


def _stratum_groups(stratum: Stratum, blueprint: Blueprint) -> Iterator[Group]:
    own: Parts = (stratum.architecture, stratum.task, stratum.training)
    shared = [f for f in stratum.factors if f.draw is None and not may_vary(own, f.key)]
    drawn = [f for f in stratum.factors if f.draw is not None]
    mixed = [f for f in stratum.factors if f.draw is None and may_vary(own, f.key)]
    for combination in itertools.product(*(f.values for f in shared)):
        parts = own
        for factor, value in zip(shared, combination, strict=True):
            parts = with_value(parts, factor.key, value)
        varying = _grid(mixed)
        if not drawn:
            yield _group(parts, varying, stratum, blueprint.seeds)
            continue
        cells, values = _draw(parts, varying, drawn, blueprint)
        yield from _drawn_groups(parts, varying, drawn, cells, values, stratum, blueprint)


def may_vary(parts: Parts, key: str) -> bool:
    """Whether models of one cohort may differ in ``key``."""
    section, _, name = key.partition(".")
    if section == "seeds":
        return True
    owner: Any = dict(zip(("architecture", "task", "training"), parts, strict=True))[section]
    if section == "training" and "." in name:
        part, _, name = name.partition(".")
        owner = getattr(owner, part)
    return name in getattr(owner, "per_model", frozenset())


def _grid(factors: Sequence[Factor]) -> tuple[Varying, ...]:
    """The full product of grid factors as one code array per factor, the first varying slowest."""
    shape = tuple(len(f.values) for f in factors)
    codes = np.unravel_index(np.arange(int(np.prod(shape, dtype=np.int64))), shape) if shape else ()
    return tuple(Varying(f.key, f.values, c.astype(np.int32)) for f, c in zip(factors, codes, strict=True))


def _draw(
    parts: Parts, varying: tuple[Varying, ...], drawn: Sequence[Factor], blueprint: Blueprint
) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """For every point of the grid its draws: the point's index per drawn cell, and the drawn joint values."""
    hidden = {f.key for f in drawn}
    points = len(varying[0].codes) if varying else 1
    values: list[tuple[Any, ...]] = []
    for point in range(points):
        own = parts
        streams = {}
        for v in varying:
            value = v.values[v.codes[point]]
            if v.key.startswith("seeds."):
                streams[v.key] = value
            else:
                own = with_value(own, v.key, value)
        flat = {k: v for k, v in settings_identity(*own).items() if k not in hidden} | streams
        values += draw_values(digest(canonical_json(flat)).encode(), drawn, blueprint.draws)
    return np.repeat(np.arange(points), blueprint.draws), values


def _drawn_groups(
    parts: Parts,
    varying: tuple[Varying, ...],
    drawn: Sequence[Factor],
    cells: np.ndarray,
    values: list[tuple[Any, ...]],
    stratum: Stratum,
    blueprint: Blueprint,
) -> Iterator[Group]:
    """Part drawn cells by the drawn values that a cohort may not mix (widths, say); the others vary within a group."""
    fixed = [i for i, f in enumerate(drawn) if not may_vary(parts, f.key)]
    free = [i for i in range(len(drawn)) if i not in fixed]
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for cell, value in enumerate(values):
        by_kind.setdefault(tuple(value[i] for i in fixed), []).append(cell)
    for kind, members in by_kind.items():
        own = parts
        for i, value in zip(fixed, kind, strict=True):
            own = with_value(own, drawn[i].key, value)
        grid = [Varying(v.key, v.values, v.codes[cells[members]]) for v in varying]
        for i in free:
            column = [values[m][i] for m in members]
            table = tuple(dict.fromkeys(column))
            place = {value: code for code, value in enumerate(table)}
            grid.append(Varying(drawn[i].key, table, np.array([place[v] for v in column], dtype=np.int32)))
        yield _group(own, tuple(grid), stratum, blueprint.seeds)


def _group(parts: Parts, varying: tuple[Varying, ...], stratum: Stratum, seeds: SeedPolicy) -> Group:
    """Multiply the points by their seeds and hash every cell."""
    for v in varying:  # representatives: the first value of everything that varies
        if not v.key.startswith("seeds."):
            parts = with_value(parts, v.key, v.values[0])
    encoder = _Encoder(parts, varying, seeds.apart)
    points = len(varying[0].codes) if varying else 1
    count = seeds.count
    digests: list[str] = []
    all_seeds = np.empty(points * count, dtype=np.int64)
    fixed = list(seeds.values)
    for point in range(points):
        codes = [v.codes[point] for v in varying]
        own = draw_seeds(encoder.point(codes), count, seeds.below) if seeds.draw else fixed
        all_seeds[point * count : (point + 1) * count] = own
        digests += encoder.ids(codes, own)
    return Group(
        *parts,
        stratum.checkpoints.recording(parts[2].epochs),
        stratum.resources,
        stratum.cohort_size,
        tuple(Varying(v.key, v.values, np.repeat(v.codes, count)) for v in varying),
        all_seeds,
        seeds.apart,
        np.array(digests, dtype="S32"),
    )


class _Encoder:
    """Puts the canonical JSON of cells together from fragments ``"key":value`` that are encoded once."""

    def __init__(self, parts: Parts, varying: tuple[Varying, ...], apart: Mapping[str, int]) -> None:
        flat = settings_identity(*parts) | {"parents": []}
        self._varying = varying
        self._apart = apart
        slots: list[tuple[str, bytes | int]] = []
        for key, value in flat.items():
            slots.append((key, _fragment(key, value)))
        self._tables: list[list[bytes]] = []
        for number, v in enumerate(varying):
            if v.key.startswith("seeds."):
                self._tables.append([])
                continue
            slots = [s for s in slots if s[0] != v.key] + [(v.key, number)]
            encoded = (settings_identity(*with_value(parts, v.key, value)) for value in v.values)
            self._tables.append([_fragment(v.key, e[v.key]) if v.key in e else b"" for e in encoded])
        # Keys sort as in canonical JSON; "seeds" divides what stands before and after it.
        self._before = [slot for _, slot in sorted(s for s in slots if s[0] < "seeds")]
        self._after = [slot for _, slot in sorted(s for s in slots if s[0] > "seeds")]

    def _text(self, slots: Sequence[bytes | int], codes: Sequence[int]) -> bytes:
        parts = (self._tables[s][codes[s]] if isinstance(s, int) else s for s in slots)
        return b",".join(p for p in parts if p)

    def point(self, codes: Sequence[int]) -> bytes:
        """Digest of a grid point without its seeds; seeds set apart by a factor belong to the point."""
        streams = b"".join(
            b"%s=%d;" % (v.key.encode(), v.values[codes[n]])
            for n, v in enumerate(self._varying)
            if v.key.startswith("seeds.")
        )
        return digest(self._text(self._before, codes) + streams + self._text(self._after, codes)).encode()

    def ids(self, codes: Sequence[int], seeds: Sequence[int]) -> list[str]:
        apart = dict(self._apart)
        for number, v in enumerate(self._varying):
            if v.key.startswith("seeds."):
                apart[v.key.removeprefix("seeds.")] = v.values[codes[number]]
        before = b"{" + self._text(self._before, codes) + b',"seeds":['
        after = b"]," + self._text(self._after, codes) + b"}"
        if not apart:
            return [digest(b"%b%d,%d,%d,%d%b" % (before, s, s, s, s, after)) for s in seeds]
        return [digest(before + b",".join(b"%d" % apart.get(stream, s) for stream in _STREAMS) + after) for s in seeds]


def _fragment(key: str, value: Any) -> bytes:
    return canonical_json({key: value})[1:-1]
