"""What a validated blueprint says: strata of cells that share every structural choice, and the policies around them.

A *structural* choice decides which other keys exist or what they are: a name, an entry of a ``coupled`` list, a key
that another value depends on. Within one stratum the remaining factors are independent, so the planner may multiply
them out without looking at cells one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zoogen.core.recipe import Training
from zoogen.core.records import KeepOptimizer, Recording, Resources


@dataclass(frozen=True)
class Draw:
    """A value drawn anew for every grid point and draw index (``draws`` of them per grid point).

    ``bounds`` are (low, high) for the three number kinds (``integers``: high excluded; ``log_uniform``: both positive)
    and the options for ``choice``.
    """

    kind: Literal["uniform", "log_uniform", "integers", "choice"]
    bounds: tuple[Any, ...]


@dataclass(frozen=True)
class Factor:
    """One key that varies within a stratum: a grid (``values``, typed, in the order of the file) or a random draw.

    ``key`` is dotted: ``architecture.dropout``, ``training.optimizer.lr``, ``task.split_seed``, ``seeds.init``.
    """

    key: str
    values: tuple[Any, ...] = ()
    draw: Draw | None = None


@dataclass(frozen=True)
class SeedPolicy:
    """Seeds of every grid point: a fixed list, the same for all, or ``draw`` fresh ones in [0, below) for each.

    ``apart`` sets single streams (init, order, augment, dropout) to a seed of their own where no factor does.
    """

    values: tuple[int, ...] | range = ()
    draw: int = 0
    below: int = 0
    apart: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.draw or len(self.values)


@dataclass(frozen=True)
class CheckpointPolicy:
    """Which epochs are stored: the union of ``initial`` (epoch 0), every k-th, the listed ones and the last n.

    The final epoch is always stored, unless ``epochs`` lists what is wanted.
    """

    initial: bool = True
    every: int | None = 1
    epochs: tuple[int, ...] = ()
    last: int = 0
    optimizer: KeepOptimizer = "last"
    test_predictions: bool = False
    evaluate_train: int = 0

    def recording(self, epochs: int) -> Recording:
        """The policy for a training of ``epochs`` epochs."""
        wanted = set(self.epochs)
        if self.every is not None:
            wanted |= set(range(self.every, epochs + 1, self.every))
        wanted |= set(range(max(1, epochs - self.last + 1), epochs + 1)) if self.last else set()
        if not self.epochs:
            wanted.add(epochs)
            if self.initial:
                wanted.add(0)
        stored = tuple(sorted(e for e in wanted if e <= epochs))
        return Recording(stored, self.optimizer, self.test_predictions, self.evaluate_train)


@dataclass(frozen=True)
class ModelSplit:
    """Shares of *models* for learning on the zoo; a model's side is a hash of its root ancestor's id."""

    train: float = 0.7
    val: float = 0.15
    test: float = 0.15


@dataclass(frozen=True)
class Stratum:
    """Cells that share every structural choice.

    Attributes:
        choice: Values of the structural factors, by dotted key or by a coupled list's name (the position).
        architecture, task, training: Instances with every factor at its first value (draws: at their lower bound).
        factors: What varies within the stratum, in the order of the file; the first varies slowest.
        checkpoints, resources: As resolved for this stratum.
        cohort_size: Largest number of models trained together, or None for the planner's choice.
    """

    choice: Mapping[str, Any]
    architecture: Any
    task: Any
    training: Training
    factors: tuple[Factor, ...]
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    resources: Resources = field(default_factory=Resources)
    cohort_size: int | None = None


@dataclass(frozen=True)
class Blueprint:
    """A blueprint that passed every check.

    Attributes:
        name, version: Of the zoo.
        text: The file as given.
        overrides: ``--set`` values applied on top, as given.
        strata: In the order of the file; cells of different strata differ.
        draws: Random draws per grid point (1 unless a key is drawn).
        seeds: Seeds of each grid point and draw.
        axes: ``load`` and ``temperature`` -> dotted factor key.
        description: Free text for the zoo's card.
    """

    name: str
    version: int
    text: str
    overrides: tuple[str, ...]
    strata: tuple[Stratum, ...]
    draws: int
    seeds: SeedPolicy
    model_split: ModelSplit
    axes: Mapping[str, str]
    description: str = ""
