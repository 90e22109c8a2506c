"""The parts of a blueprint and their keys; where a part takes its keys from a registry, its ``name`` decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import StringConstraints

from zoogen.blueprint.fields import FieldSpec, fields_of
from zoogen.blueprint.forms import Form, FormReader, is_form
from zoogen.blueprint.nodes import MapNode, Node, ScalarNode, show
from zoogen.blueprint.problems import Problems
from zoogen.core.errors import suggest
from zoogen.core.recipe import Training
from zoogen.core.records import KeepOptimizer
from zoogen.core.registry import ARCHITECTURES, OPTIMIZERS, SCHEDULES, TASKS, Registry

Seed = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Head:
    """What the zoo is.

    Attributes:
        zoo: Name of the zoo, also of its directory.
        version: Version of the zoo; a published version never changes.
        description: Free text for the zoo's card.
        draws: Random draws per grid point; needed exactly where some value is drawn.
    """

    zoo: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)]
    version: Annotated[int, Ge(1)]
    description: str = ""
    draws: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True)
class SeedKeys:
    """Seeds of every grid point: one of ``range``, ``list`` and ``draw``; and seeds for single streams, set apart.

    Attributes:
        range: First seed and the one after the last; the same seeds for every grid point.
        list: The same listed seeds for every grid point.
        draw: So many fresh random seeds for each grid point (needs ``below``).
        below: Drawn seeds lie in [0, below).
    """

    range: tuple[Seed, Seed] | None = None
    list: tuple[Seed, ...] | None = None
    draw: Annotated[int, Ge(1)] | None = None
    below: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class StreamKeys:
    """One stream of randomness with a seed of its own; the others follow the model's seed.

    Attributes:
        init: Initial weights.
        order: Order of the training samples.
        augment: Augmentation of the training samples.
        dropout: Dropout masks.
    """

    init: Seed | None = None
    order: Seed | None = None
    augment: Seed | None = None
    dropout: Seed | None = None


@dataclass(frozen=True)
class CheckpointKeys:
    """Which epochs are stored: the union of ``initial``, ``every``, ``epochs`` and ``last``, and the final epoch unless
    ``epochs`` lists what is wanted.

    Attributes:
        initial: Store epoch 0, the untrained model (default: yes, unless ``epochs`` lists what is wanted).
        every: Store every k-th epoch (default 1, or none where ``epochs`` or ``last`` is given).
        epochs: Store these epochs.
        last: Store the last n epochs.
        optimizer: Keep the optimizer state of no, the last, or all stored epochs.
        test_predictions: Keep the predicted class of every test sample.
        evaluate_train: Also evaluate on the first n training samples, or on ``all``.
    """

    initial: bool | None = None
    every: Annotated[int, Ge(1)] | None = None
    epochs: tuple[Annotated[int, Ge(0)], ...] = ()
    last: Annotated[int, Ge(0)] = 0
    optimizer: KeepOptimizer = "last"
    test_predictions: bool = False
    evaluate_train: Annotated[int, Ge(0)] | Literal["all"] = 0


@dataclass(frozen=True)
class ResourceKeys:
    """What one cohort takes while it trains, and how it is run; never part of a model's identity.

    Attributes:
        cpus: Cores, also the number of torch threads (at least one).
        gpus: GPUs; a fraction lets several cohorts share one.
        compile: Run the model through ``torch.compile``.
        channels_last: Keep images and convolution weights in channels-last memory order.
        cohort: Largest number of models trained together (default: chosen by the plan).
    """

    cpus: Annotated[float, Gt(0)] = 1.0
    gpus: Annotated[float, Ge(0)] = 0.0
    compile: bool = False
    channels_last: bool = False
    cohort: Annotated[int, Ge(1)] | None = None


Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class SplitKeys:
    """Shares of *models* for learning on the zoo (not of the task's samples); they sum to 1."""

    train: Share = 0.7
    val: Share = 0.15
    test: Share = 0.15


@dataclass(frozen=True)
class AxesKeys:
    """The factors that are the axes of a phase diagram.

    Attributes:
        load: Key of the factor that sets data relative to model size, e.g. ``architecture.width``.
        temperature: Key of the factor that sets training noise, e.g. ``training.batch_size``.
    """

    load: str | None = None
    temperature: str | None = None


@dataclass(frozen=True)
class Section:
    """A mapping whose values may take every form. Either ``registry`` (keys by name) or ``keys`` (a dataclass)."""

    path: str
    registry: Registry | None = None
    keys: type | None = None
    factors: bool = True  # grids and draws make factors here

    def specs(self) -> Mapping[str, FieldSpec]:
        """The fixed keys of a section without a registry; what has a section of its own is left out."""
        assert self.keys is not None
        return {n: s for n, s in fields_of(self.keys).items() if f"{self.path}.{n}" not in SECTIONS}


SECTIONS: dict[str, Section] = {
    s.path: s
    for s in (
        Section("task", registry=TASKS),
        Section("architecture", registry=ARCHITECTURES),
        Section("training", keys=Training),
        Section("training.optimizer", registry=OPTIMIZERS),
        Section("training.schedule", registry=SCHEDULES),
        Section("seeds", keys=StreamKeys),
        Section("checkpoints", keys=CheckpointKeys, factors=False),
        Section("resources", keys=ResourceKeys, factors=False),
    )
}
PLAIN_SECTIONS: dict[str, type] = {"model_split": SplitKeys, "axes": AxesKeys}
SEED_POLICY = tuple(fields_of(SeedKeys))
TOP_KEYS = (*fields_of(Head), *(p for p in SECTIONS if "." not in p), "coupled", *PLAIN_SECTIONS)
REQUIRED = ("zoo", "version", "task", "architecture", "training", "seeds")


@dataclass(frozen=True, eq=False)
class Leaf:
    """One key with its form; ``section`` is the path of the mapping it stands in."""

    section: str
    name: str
    key: ScalarNode
    form: Form

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"


def subsections(path: str) -> list[str]:
    """Names of the sections directly inside a section."""
    return [p[len(path) + 1 :] for p in SECTIONS if p.startswith(path + ".")]


def is_section(node: Node, path: str) -> bool:
    """Whether a section's node is a mapping of keys; ``draw`` is a key of seeds, elsewhere a value form."""
    return isinstance(node, MapNode) and (path == "seeds" or not is_form(node))


def home(root: MapNode, path: str) -> Node | None:
    """The node of a section."""
    node: Node | None = root
    for name in path.split("."):
        node = node.get(name) if isinstance(node, MapNode) else None
    return node


def leaves(root: MapNode, forms: FormReader, problems: Problems) -> dict[str, Leaf]:
    """Every key of every section by its dotted path, in the order of the file."""
    found: dict[str, Leaf] = {}
    for key, node in root:
        if key.value in SECTIONS:
            found.update((leaf.path, leaf) for leaf in _leaves(str(key.value), node, forms, problems))
    return found


def _leaves(path: str, node: Node, forms: FormReader, problems: Problems) -> Iterator[Leaf]:
    section = SECTIONS[path]
    if not isinstance(node, MapNode):
        example = "{name: ...}" if section.registry else "a mapping of its keys"
        problems.add(node.position, f"{path} must be a mapping, got {show(node)}", f"write {example}")
        return
    if not is_section(node, path):
        help = "vary single keys, or list whole settings under 'coupled'"
        problems.add(node.position, f"{path} as a whole cannot be a grid, draw or by", help)
        return
    inner = subsections(path)
    known = None if section.registry else {*section.specs(), *inner, *(SEED_POLICY if path == "seeds" else ())}
    for key, value in node:
        name: Any = key.value
        if not isinstance(name, str):
            problems.add(key.position, f"a key of {path} must be text, got {show(key)}")
        elif name in inner:
            yield from _leaves(f"{path}.{name}", value, forms, problems)
        elif known is not None and name not in known:
            problems.add(key.position, f"unknown key {name!r} in {path}", suggest(name, known))
        elif path == "seeds" and name in SEED_POLICY:
            continue
        else:
            yield Leaf(path, name, key, forms.read(value))
