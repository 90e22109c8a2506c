"""A blueprint file -> ``Blueprint``: read, override, expand into strata, check each; all problems in one error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from zoogen.blueprint.build import Builder, Part, checkpoint_policy, resources
from zoogen.blueprint.check import Checker
from zoogen.blueprint.expand import MAX_STRATA, CaseUse, Chosen, Variant, coupled_entries, strata, variants
from zoogen.blueprint.forms import FormReader, Plain
from zoogen.blueprint.head import VARIANT_REQUIRED, missing_key, read_axes, read_head, read_seeds, read_split
from zoogen.blueprint.limits import check_cells, check_draws, check_epochs, factor_keys
from zoogen.blueprint.nodes import MapNode, ScalarNode, plain, show
from zoogen.blueprint.overlaps import refuse_overlaps
from zoogen.blueprint.overrides import apply
from zoogen.blueprint.problems import Position, Problems, Source
from zoogen.blueprint.read import read_file, read_yaml
from zoogen.blueprint.records import Blueprint, Factor, Stratum
from zoogen.blueprint.sections import REQUIRED, SECTIONS, home, is_section, leaves
from zoogen.core.recipe import Training


def load(path: Path, overrides: Sequence[str] = ()) -> Blueprint:
    """Read and check a blueprint file.

    Args:
        overrides: ``key=value`` texts, applied in order on top of the file.

    Raises:
        BlueprintError: with every problem of the file, each with its place.
        EnvironmentFault: the file may not be read.
    """
    path = Path(path)
    return loads(read_file(path), str(path), overrides)


def loads(text: str, source: str = "<text>", overrides: Sequence[str] = ()) -> Blueprint:
    """Check a blueprint given as text; ``source`` is what messages call it.

    Raises:
        BlueprintError: with every problem of the text, each with its place.
    """
    problems = Problems()
    origin = Source(source, tuple(text.removeprefix("\ufeff").splitlines()))
    root = read_yaml(text.removeprefix("\ufeff"), origin, problems)
    if not isinstance(root, MapNode):
        what = "the blueprint is empty" if root is None else f"a blueprint is a mapping of keys, got {show(root)}"
        problems.add(Position(origin) if root is None else root.position, what, "start with: zoo: my-zoo")
        problems.raise_any()
    assert isinstance(root, MapNode)
    if "method" in root and "zoo" not in root:
        help = f"make its twins of a zoo: zoogen sparsify ZOO --recipe {source}"
        problems.add(root.position, "this is a twin recipe, not a blueprint", help)
        problems.raise_any()
    blueprint = _Loading(apply(root, overrides, problems), problems).blueprint(text, tuple(overrides))
    problems.raise_any()
    assert blueprint is not None
    return blueprint


class _Loading:
    def __init__(self, root: MapNode, problems: Problems) -> None:
        self.root, self.problems = root, problems
        self.checker = Checker(problems)
        self.forms = FormReader(problems)

    def blueprint(self, text: str, overrides: tuple[str, ...]) -> Blueprint | None:
        """The blueprint, or None where problems were recorded."""
        head = read_head(self.root, self.checker)
        policy = read_seeds(self.root, self.checker)
        split = read_split(self.root, self.checker)
        chosen = self._expand(bool(overrides))
        cells = [one for _, one in chosen]
        axes = read_axes(self.root, factor_keys(cells), self.checker)
        check_draws(cells, self.root, head.get("draws", 1), self.problems)
        if policy:
            check_cells(cells, policy.count, head.get("draws", 1), self.root, self.problems)
        check_epochs(cells, self.problems)
        found = self._build(chosen)
        if self.problems or policy is None:
            return None
        refuse_overlaps(found, self.root, self.problems)
        policy = replace(policy, apart=self.apart)
        return Blueprint(
            name=head["zoo"],
            version=head["version"],
            text=text,
            overrides=overrides,
            strata=tuple(found),
            draws=head.get("draws", 1),
            seeds=policy,
            model_split=split,
            axes=axes,
            description=head.get("description", ""),
        )

    def _expand(self, overridden: bool) -> list[tuple[Variant, Chosen]]:
        use = CaseUse()

        def every():
            for variant in variants(self.root, self.problems):
                for name in VARIANT_REQUIRED:
                    if name not in variant.root:
                        message, help = missing_key(name)
                        self.problems.add(self.root.position, message, help)
                keys = leaves(variant.root, self.forms, self.problems)
                for chosen in strata(variant, keys, use, self.problems):
                    yield variant, chosen

        before = len(self.problems.found)
        found = list(islice(every(), MAX_STRATA + 1))
        if len(found) > MAX_STRATA:
            names = ", ".join(found[-1][1].choice)
            self.problems.add(
                self.root.position,
                f"more than {MAX_STRATA:,} combinations of structural choices ({names})",
                "names, coupled lists and keys that others depend on (by) are structural: shorten their lists",
            )
            return []
        # A narrowed grid (--set) leaves cases unused on purpose; after other problems an unused case may be their echo.
        if not overridden and len(self.problems.found) == before:
            use.report(self.problems)
        return found

    def _build(self, chosen: list[tuple[Variant, Chosen]]) -> list[Stratum]:
        builder = Builder(self.checker, _rivals(chosen))
        built = [self._stratum(builder, variant, one) for variant, one in chosen]
        return [stratum for stratum in built if stratum is not None]

    def _stratum(self, builder: Builder, variant: Variant, chosen: Chosen) -> Stratum | None:
        parts: dict[str, Part | None] = {}
        for path in SECTIONS:
            top, node = variant.root.get(path.split(".")[0]), home(variant.root, path)
            # What is missing, no mapping or a value form is recorded already.
            absent = top is None and path.split(".")[0] in REQUIRED
            wrong = [n for n in (top, node) if n is not None and not is_section(n, path)]
            parts[path] = None if absent or wrong else builder.part(path, chosen, variant.root)
        whole = {path: part for path, part in parts.items() if part is not None}
        if len(whole) < len(parts):
            return None
        training = Training(
            **whole["training"].values,
            optimizer=whole["training.optimizer"].instance,
            schedule=whole["training.schedule"].instance,
        )
        own, cohort = resources(whole["resources"].values)
        stratum = Stratum(
            choice={key: _chosen_value(key, value, whole) for key, value in chosen.choice.items()},
            architecture=whole["architecture"].instance,
            task=whole["task"].instance,
            training=training,
            factors=self._factors(chosen, whole),
            checkpoints=checkpoint_policy(whole["checkpoints"].values),
            resources=own,
            cohort_size=cohort,
        )
        self._check_recording(stratum)
        return stratum

    def _factors(self, chosen: Chosen, parts: Mapping[str, Part]) -> tuple[Factor, ...]:
        """In the order of the file; a stream's seed that differs between strata is a factor of one value."""
        found = []
        for path, leaf in chosen.leaves.items():
            part = parts[leaf.section]
            if path in part.factors:
                found.append(part.factors[path])
            elif leaf.section == "seeds" and leaf.name not in self.apart and part.values[leaf.name] is not None:
                found.append(Factor(path, (part.values[leaf.name],)))
        return tuple(found)

    @cached_property
    def apart(self) -> dict[str, int]:
        """Streams with one seed for the whole zoo: plain in the base, untouched by coupled lists."""
        if any("seeds" in entry for entry in coupled_entries(self.root)):
            return {}
        found = {}
        for path, leaf in leaves(self.root, self.forms, self.problems).items():
            if leaf.section == "seeds" and isinstance(leaf.form, Plain):
                value = self.checker.typed(SECTIONS["seeds"].specs()[leaf.name], leaf.form.node, " in seeds")
                if isinstance(value, int):
                    found[path.removeprefix("seeds.")] = value
        return found

    def _check_recording(self, stratum: Stratum) -> None:
        """Every training length must leave something behind."""
        for epochs in _all_epochs(stratum):
            if not stratum.checkpoints.recording(epochs).epochs:
                at = self.root.entries["checkpoints"][0].position if "checkpoints" in self.root else self.root.position
                message = f"no checkpoint would be stored of a training of {epochs} epochs"
                self.problems.add(at, message, "list an epoch that is reached, or leave checkpoints out")


def _all_epochs(stratum: Stratum) -> tuple[int, ...]:
    for factor in stratum.factors:
        if factor.key == "training.epochs":
            if factor.draw is None:
                return factor.values
            low, high = factor.draw.bounds[0], factor.draw.bounds[-1]
            return factor.draw.bounds if factor.draw.kind == "choice" else (low, high - 1)
    return (stratum.training.epochs,)


def _rivals(chosen: list[tuple[Variant, Chosen]]) -> dict[str, tuple[str, ...]]:
    """Section -> registered names it takes anywhere in the blueprint."""
    found = {}
    for path, section in SECTIONS.items():
        if section.registry is None:
            continue
        forms = [one.leaves[f"{path}.name"].form for _, one in chosen if f"{path}.name" in one.leaves]
        names = dict.fromkeys(
            plain(form.node) for form in forms if isinstance(form, Plain) and isinstance(form.node, ScalarNode)
        )
        known = section.registry.names()
        found[path] = tuple(name for name in names if name in known)
    return found


def _chosen_value(key: str, value: Any, parts: Mapping[str, Part]) -> Any:
    """The typed value of a structural factor; a coupled list's stays the position of its entry."""
    if isinstance(value, int):
        return value
    section, _, name = key.rpartition(".")
    if name == "name":
        return parts[section].instance.registered_name
    return parts[section].values[name]
