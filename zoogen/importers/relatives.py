"""Copies and relatives among foreign models, by digests of their tensors and by what their records say.

Models of one family stay on one side of the model split: a copy, or a fine-tuned head on the same frozen body, would
give away in training what is to be predicted in the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from zoogen.importers.source import SourceModel

RELATED = 0.1
"""Share of the smaller model's bytes, in tensors of equal digest, from which two models are relatives."""

_TRIVIAL = 0.01  # tables of positions or indices, which every model of an architecture has


@dataclass(frozen=True)
class Prints:
    """What one model is told by.

    Attributes:
        whole: Of names, dtypes, shapes and bytes of all tensors of its last checkpoint.
        size: Bytes of these tensors.
        tensors: Digest -> bytes, of all its checkpoints.
    """

    whole: str
    size: int
    tensors: Mapping[str, int]


@dataclass(frozen=True)
class Kin:
    """A model among the others of its source.

    Attributes:
        digest: Equal for copies; None: its tensors could not be read.
        shared: Share of its bytes, over all checkpoints, in tensors that another model has too.
        family: Key of the first model of its family, perhaps its own.
    """

    digest: str | None
    shared: float | None
    family: str


@runtime_checkable
class Comparing(Protocol):
    """A source that tells copies and relatives; reads all tensors once, in blocks."""

    def kin(self, models: Sequence[SourceModel]) -> Mapping[str, Kin]:
        """By key."""
        ...


def kin_of(prints: Mapping[str, Prints | None], lineage: Iterable[tuple[str, str]]) -> dict[str, Kin]:
    """Families: copies, models that share a tenth of their bytes, and what the lineage joins.

    Args:
        prints: By key, in the order of the source.
        lineage: Pairs of a key and a name (a base model, a repository); equal names join.
    """
    families = _Families()
    for key, name in lineage:
        families.join(f"key {key}", f"name {name}")
    read = {key: own for key, own in prints.items() if own is not None}
    for key, own in read.items():
        families.join(f"key {key}", f"digest {own.whole}")
    owners: dict[str, list[str]] = {}
    for key, own in read.items():
        for digest in own.tensors:
            owners.setdefault(digest, []).append(key)
    _join_sharing(read, owners, families)
    first: dict[str, str] = {}
    for key in prints:
        first.setdefault(families.root(f"key {key}"), key)
    return {key: _kin(own, owners, first[families.root(f"key {key}")]) for key, own in prints.items()}


def _kin(own: Prints | None, owners: Mapping[str, Sequence[str]], family: str) -> Kin:
    if own is None:
        return Kin(None, None, family)
    shared = sum(size for digest, size in own.tensors.items() if len(owners[digest]) > 1)
    return Kin(own.whole, shared / max(1, sum(own.tensors.values())), family)


def _join_sharing(read: Mapping[str, Prints], owners: Mapping[str, Sequence[str]], families: _Families) -> None:
    """Join all that share ``RELATED`` of the smaller one's bytes, without a look at every pair."""
    together: Counter[tuple[str, ...]] = Counter()
    for digest, keys in owners.items():
        if len(keys) > 1:
            together[tuple(keys)] += read[keys[0]].tensors[digest]
    parts: list[tuple[str, ...]] = []
    parts_of: dict[str, list[int]] = {}
    for keys, size in together.items():
        least = min(read[key].size for key in keys)
        if size >= RELATED * least:  # which relates the smallest of them to each of the others
            families.join_all(keys)
        elif size >= _TRIVIAL * least:
            for key in keys:
                parts_of.setdefault(key, []).append(len(parts))
            parts.append(keys)
    _join_sums(read, [together[keys] for keys in parts], parts_of, families)


def _join_sums(
    read: Mapping[str, Prints], sizes: Sequence[int], parts_of: Mapping[str, Sequence[int]], families: _Families
) -> None:
    """Join models by parts that only together are large enough.

    Args:
        read: By key.
        sizes: Bytes of each part, which is too small for any of its models to be joined by it alone.
        parts_of: Key -> its parts.
    """
    alike: dict[frozenset[int], list[str]] = {}
    for key, parts in parts_of.items():
        alike.setdefault(frozenset(parts), []).append(key)
    holders: dict[int, list[frozenset[int]]] = {}
    for own in alike:
        for part in own:
            holders.setdefault(part, []).append(own)
    # Of two sets of models with the same parts, the smallest model in both is related to all of them or no two are.
    bounds = {own: RELATED * min(read[key].size for key in keys) for own, keys in alike.items()}
    for own, enough in bounds.items():
        # What shares only the commonest parts, which are not enough, need not be looked at.
        rare, common = sorted(own, key=lambda part: len(holders[part])), 0
        while rare and (common := common + sizes[rare[-1]]) < enough:
            rare.pop()
        for other in {other for part in rare for other in holders[part]}:
            if len(alike[own]) == len(alike[other]) == 1 and families.joined(alike[own][0], alike[other][0]):
                continue
            if sum(sizes[part] for part in own & other) >= enough:
                families.join_all([*alike[own], *alike[other]])
                for whole in (own, other):
                    del alike[whole][1:]  # one stands for all of them from now on


class _Families:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, name: str) -> str:
        while (above := self._above.setdefault(name, name)) != name:
            self._above[name] = name = self._above[above]
        return name

    def joined(self, one: str, other: str) -> bool:
        return self.root(f"key {one}") == self.root(f"key {other}")

    def join_all(self, keys: Sequence[str]) -> None:
        for key in keys[1:]:
            self.join(f"key {keys[0]}", f"key {key}")

    def join(self, one: str, other: str) -> None:
        self._above[self.root(one)] = self.root(other)
