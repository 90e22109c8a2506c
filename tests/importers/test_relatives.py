"""Families by shared bytes, against a look at every pair, and their cost where many models share a little."""

from __future__ import annotations

import random
import sys
import tracemalloc
from itertools import combinations

import pytest

from zoogen.importers import relatives
from zoogen.importers.relatives import Prints, kin_of


def prints(tensors, size=None):
    return Prints(repr(sorted(tensors.items())), size or sum(tensors.values()), tensors)


def families(models):
    return {key: kin.family for key, kin in kin_of(models, []).items()}


def by_all_pairs(models):
    """The same families by the definition: tensors of the same owners count together, from 1 % of the smallest."""
    owners = {}
    for key, own in models.items():
        for name in own.tensors:
            owners.setdefault(name, []).append(key)
    together = {}
    for name, keys in owners.items():
        together[tuple(keys)] = together.get(tuple(keys), 0) + models[keys[0]].tensors[name]
    family = {key: key for key in models}
    order = list(models)
    for pair in combinations(order, 2):
        shared = sum(
            size
            for keys, size in together.items()
            if set(pair) <= set(keys) and size >= 0.01 * min(models[key].size for key in keys)
        )
        if shared >= 0.1 * min(models[key].size for key in pair):
            one, other = sorted((family[key] for key in pair), key=order.index)
            family = {key: one if own == other else own for key, own in family.items()}
    return family


@pytest.mark.parametrize("seed", range(60))
def test_families_are_those_of_a_look_at_every_pair(seed):
    draw = random.Random(seed)
    shared = {f"t{i}": draw.choice([5, 12, 30, 45, 60, 90]) for i in range(draw.choice([3, 8]))}
    models = {}
    for key in "abcdefghijkl":
        own = {name: size for name, size in shared.items() if draw.random() < draw.choice([0.2, 0.6])}
        models[key] = prints({**own, f"own {key}": draw.choice([300, 900, 1500, 4000])})
    if seed % 3 == 0:  # the last checkpoint is a part of all
        models["a"] = prints(dict(models["a"].tensors), size=draw.choice([100, 400]))
    assert families(models) == by_all_pairs(models)


def cost(call):
    """What it returns, the lines of ``relatives`` that it ran, and its peak of memory in bytes."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename == relatives.__file__ else None

    before = sys.gettrace()
    tracemalloc.start()
    sys.settrace(trace)
    try:
        found = call()
    finally:
        sys.settrace(before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, lines, peak


def test_thousands_of_models_that_share_a_little_are_not_compared_pair_by_pair():
    """All share 5 %, every seventh 3 %, and some pairs of neighbours 6 %, which make them relatives."""
    count = 3000
    models = {}
    for i in range(count):
        tensors = {"all": 50, f"seventh {i % 7}": 30, f"own {i}": 860}
        models[f"m{i}"] = prints(tensors | ({f"pair {i // 2}": 60} if i // 2 % 3 == 0 else {}))
    found, lines, peak = cost(lambda: families(models))
    assert found == {f"m{i}": f"m{i - i % 2 if i // 2 % 3 == 0 else i}" for i in range(count)}
    assert lines < 200 * count  # of 4.5 million pairs
    assert peak < 3000 * count  # bytes
