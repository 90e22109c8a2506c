"""A twin recipe: how the models of a zoo are made sparse. YAML with the same checks as a blueprint's.

``method`` may give a grid for any of its keys; every combination makes a twin of every chosen parent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import StringConstraints

from zoogen.blueprint.build import checkpoint_policy, resources
from zoogen.blueprint.check import INVALID, Checker
from zoogen.blueprint.fields import FieldSpec, fields_of
from zoogen.blueprint.forms import FormReader, Grid, Plain
from zoogen.blueprint.nodes import MapNode, Node, ScalarNode, show
from zoogen.blueprint.overrides import apply
from zoogen.blueprint.problems import Position, Problems, Source
from zoogen.blueprint.read import read_file, read_yaml
from zoogen.blueprint.records import CheckpointPolicy
from zoogen.blueprint.sections import ResourceKeys
from zoogen.core.errors import UserError, suggest
from zoogen.core.records import Resources
from zoogen.core.registry import SPARSIFIERS


@dataclass(frozen=True)
class TwinHead:
    """What the twin zoo is.

    Attributes:
        twins: Its name. [default: the parent's, a dash, the method's]
        version: Its version. [default: the parent's]
        description: Free text for its card.
    """

    twins: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)] | None = None
    version: Annotated[int, Ge(1)] | None = None
    description: str = ""


@dataclass(frozen=True)
class ParentKeys:
    """Which checkpoints twins start from.

    Attributes:
        epoch: A stored epoch; each model's ``last``; or its ``best`` by validation accuracy.
        where: Predicate on the parent zoo's models; by default all.
    """

    epoch: Literal["last", "best"] | Annotated[int, Ge(0)] = "last"
    where: str | None = None


@dataclass(frozen=True)
class TwinTrainingKeys:
    """How twins train on; optimizer, batch size and all the rest are those of each twin's own parent.

    Attributes:
        epochs: Of sparse training. [default: 15 for pruning, 25 for variational dropout]
        lr_scale: Times the parent's learning rate.
        schedule: ``constant``: that learning rate throughout; ``parent``: the parent's schedule over these epochs.
    """

    epochs: Annotated[int, Ge(1)] | None = None
    lr_scale: Annotated[float, Gt(0)] = 1.0
    schedule: Literal["constant", "parent"] = "constant"


@dataclass(frozen=True)
class TwinCheckpointKeys:
    """Which epochs are stored, as in a blueprint; epoch 0 is the twin before its first step.

    Attributes:
        initial: Store epoch 0 (default: yes, unless ``epochs`` lists what is wanted).
        every: Store every k-th epoch (default 1, or none where ``epochs`` or ``last`` is given).
        epochs: Store these epochs.
        last: Store the last n epochs.
        test_predictions: Keep the predicted class of every test sample.
        evaluate_train: Also evaluate on the first n training samples, or on ``all``.
        log_alpha: Keep log alpha of every weight, under variational dropout.
    """

    initial: bool | None = None
    every: Annotated[int, Ge(1)] | None = None
    epochs: tuple[Annotated[int, Ge(0)], ...] = ()
    last: Annotated[int, Ge(0)] = 0
    test_predictions: bool = False
    evaluate_train: Annotated[int, Ge(0)] | Literal["all"] = 0
    log_alpha: bool = False


SECTIONS: Mapping[str, type] = {
    "parents": ParentKeys,
    "training": TwinTrainingKeys,
    "checkpoints": TwinCheckpointKeys,
    "resources": ResourceKeys,
}
KEYS = (*fields_of(TwinHead), "method", *SECTIONS)


@dataclass(frozen=True)
class TwinRecipe:
    """A recipe that passed every check.

    Attributes:
        name, version: Of the twin zoo; None: after its parent.
        description: Free text.
        text, overrides: As given.
        methods: Every combination of the method's grids, the first key varying slowest; all of one class.
        epochs: Of sparse training.
        parents: Which checkpoints twins start from.
        lr_scale, schedule: See ``TwinTrainingKeys``.
        checkpoints, log_alpha: What is stored.
        resources, cohort_size: As in a blueprint; None: each parent's.
    """

    name: str | None
    version: int | None
    description: str
    text: str
    overrides: tuple[str, ...]
    methods: tuple[Any, ...]
    epochs: int
    parents: ParentKeys
    lr_scale: float
    schedule: Literal["constant", "parent"]
    checkpoints: CheckpointPolicy
    log_alpha: bool
    resources: Resources | None
    cohort_size: int | None


def is_recipe(path: Path) -> bool:
    """Whether a YAML file is a twin recipe rather than a blueprint: it has a ``method``."""
    text = read_file(path)
    root = read_yaml(text, Source(str(path), tuple(text.splitlines())), Problems())
    return isinstance(root, MapNode) and "method" in root


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> TwinRecipe:
    """Read and check a recipe file; ``overrides`` are ``key=value`` texts on top of it.

    Raises:
        BlueprintError: with every problem, each with its place.
        EnvironmentFault: the file may not be read.
    """
    path = Path(path)
    return loads_recipe(read_file(path), str(path), overrides)


def loads_recipe(text: str, source: str = "<text>", overrides: Sequence[str] = ()) -> TwinRecipe:
    """Check a recipe given as text; ``source`` is what messages call it.

    Raises:
        BlueprintError: with every problem, each with its place.
    """
    problems = Problems()
    origin = Source(source, tuple(text.splitlines()))
    at = Position(origin)
    root = read_yaml(text, origin, problems) or MapNode(at, {})
    if not isinstance(root, MapNode):
        problems.add(root.position, f"a twin recipe is a mapping of keys, got {show(root)}", "start with: method:")
        problems.raise_any()
    assert isinstance(root, MapNode)
    if "zoo" in root and "method" not in root:
        help = "`zoogen build` grows it; a recipe makes twins of a zoo that is there, and starts with: method:"
        problems.add(root.position, "this is a blueprint, not a twin recipe", help)
        problems.raise_any()
    found = _Reading(apply(root, overrides, problems), problems).recipe(text, tuple(overrides))
    problems.raise_any()
    assert found is not None
    return found


class _Reading:
    def __init__(self, root: MapNode, problems: Problems) -> None:
        self._root = root
        self._problems = problems
        self._check = Checker(problems)
        self._forms = FormReader(problems)

    def recipe(self, text: str, overrides: tuple[str, ...]) -> TwinRecipe | None:
        for key, _ in self._root:
            if key.value not in KEYS:
                self._problems.add(key.position, f"unknown key {key.raw!r} in a twin recipe", suggest(key.raw, KEYS))
        head = self._typed(self._root, TwinHead, "", only_known=True)
        parts = {name: self._section(name, keys) for name, keys in SECTIONS.items()}
        methods = self._methods()
        if self._problems or methods is None:
            return None
        training = TwinTrainingKeys(**parts["training"])
        epochs = training.epochs or (15 if methods[0].masked else 25)
        self._check_rounds(methods, epochs)
        log_alpha = parts["checkpoints"].pop("log_alpha", False)
        policy = checkpoint_policy({**parts["checkpoints"], "optimizer": "none"})
        self._check_stored(policy, epochs, log_alpha and methods[0].masked)
        own, cohort = resources(parts["resources"])
        return TwinRecipe(
            name=head.get("twins"),
            version=head.get("version"),
            description=head.get("description", ""),
            text=text,
            overrides=overrides,
            methods=methods,
            epochs=epochs,
            parents=ParentKeys(**parts["parents"]),
            lr_scale=training.lr_scale,
            schedule=training.schedule,
            checkpoints=policy,
            log_alpha=log_alpha,
            resources=own if parts["resources"] else None,
            cohort_size=cohort,
        )

    def _section(self, name: str, keys: type) -> dict[str, Any]:
        node = self._root.get(name)
        if node is None:
            return {}
        if not isinstance(node, MapNode):
            help = f"write {name}: {{{next(iter(fields_of(keys)))}: ...}}"
            self._problems.add(node.position, f"{name} must be a mapping, got {show(node)}", help)
            return {}
        return self._typed(node, keys, f" in {name}")

    def _typed(self, node: MapNode, keys: type, owner: str, *, only_known: bool = False) -> dict[str, Any]:
        specs = fields_of(keys)
        found = {}
        for key, value in node:
            if key.value in specs:
                found[str(key.value)] = self._check.typed(specs[str(key.value)], value, owner)
            elif not only_known:
                self._problems.add(key.position, f"unknown key {key.raw!r}{owner}", suggest(key.raw, specs))
        return {name: value for name, value in found.items() if value is not INVALID}

    def _methods(self) -> tuple[Any, ...] | None:
        node = self._root.get("method")
        example = "write method: {name: magnitude, sparsity: {grid: [0.5, 0.9]}}, or give --method"
        if not isinstance(node, MapNode):
            what = "missing key 'method'" if node is None else f"method must be a mapping, got {show(node)}"
            self._problems.add((node or self._root).position, what, example)
            return None
        name = node.get("name")
        if not isinstance(name, ScalarNode) or not isinstance(name.value, str):
            self._problems.add((name or node).position, "method needs a name", suggest("", SPARSIFIERS.names()))
            return None
        try:
            cls = SPARSIFIERS.get(name.value)
        except UserError as error:
            message, _, help = str(error).partition("\n")
            self._problems.add(name.position, message, help)
            return None
        return self._combinations(cls, node, fields_of(cls))

    def _combinations(self, cls: type, node: MapNode, specs: Mapping[str, FieldSpec]) -> tuple[Any, ...] | None:
        name = cls.registered_name  # type: ignore[attr-defined]
        owner = f" for method {name!r}"
        values: dict[str, list[Any]] = {}
        for key, value in node:
            if key.value == "name":
                continue
            if key.value not in specs:
                self._problems.add(key.position, f"unknown key {key.raw!r}{owner}", suggest(key.raw, specs))
                continue
            values[str(key.value)] = [self._check.typed(specs[str(key.value)], n, owner) for n in self._items(value)]
        for spec in specs.values():
            if spec.required and spec.name not in values:
                help = f"it is {spec.words}; write {spec.name}: {{grid: [0.5, 0.9]}}, or give --{spec.name}"
                self._problems.add(node.position, f"missing key {spec.name!r}{owner}", help)
        if self._problems:
            return None
        return tuple(cls(**dict(zip(values, choice, strict=True))) for choice in itertools.product(*values.values()))

    def _items(self, node: Node) -> tuple[Node, ...]:
        form = self._forms.read(node)
        if isinstance(form, Grid):
            return form.items
        if isinstance(form, Plain):
            return (form.node,)
        self._problems.add(node.position, "a twin recipe knows plain values and grids", "write {grid: [...]}")
        return ()

    def _check_stored(self, policy: CheckpointPolicy, epochs: int, useless_log_alpha: bool) -> None:
        node = self._root.get("checkpoints") or self._root
        if not policy.recording(epochs).epochs:
            message = f"no checkpoint would be stored of a training of {epochs} epochs"
            self._problems.add(node.position, message, "list an epoch that is reached, or leave checkpoints out")
        if useless_log_alpha:
            message = "pruned twins have no log alpha to keep"
            help = "leave checkpoints.log_alpha out, or make twins by method.name: variational-dropout"
            self._problems.add(node.position, message, help)

    def _check_rounds(self, methods: Sequence[Any], epochs: int) -> None:
        for method in methods:
            if method.rounds > epochs:
                message = f"{method.rounds} rounds of pruning do not fit into {epochs} epochs"
                at = self._root["method"].position
                self._problems.add(at, message, "raise training.epochs, or lower method.rounds")
