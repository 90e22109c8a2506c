"""Twins of a zoo: recipe + parent zoo -> plan, then the same way as any build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoogen.blueprint.twins import TwinRecipe, load_recipe, loads_recipe
from zoogen.build.parents import ParentZoo
from zoogen.build.pipeline import BuildOptions, Outcome, Reporter, grow
from zoogen.core.errors import UserError
from zoogen.plan import Plan
from zoogen.plan.twins import parents_of, plan_twins
from zoogen.schedule import Executor, StopFlag


@dataclass(frozen=True)
class SparsifyOptions:
    """What ``zoogen sparsify`` was asked for.

    Attributes:
        parent: Folder of the zoo.
        recipe: A recipe file, or None.
        text: The recipe where no file is given.
        overrides: ``key=value`` on top of it.
        allow: Import paths whose code may run.
        build: How to build; its blueprint and overrides are not looked at.
    """

    parent: Path
    recipe: Path | None
    text: str
    overrides: Sequence[str]
    build: BuildOptions
    allow: Sequence[str] = field(default_factory=tuple)


def read_recipe(options: SparsifyOptions) -> TwinRecipe:
    """The recipe, checked.

    Raises:
        BlueprintError: with everything that is wrong with it.
    """
    if options.recipe is not None:
        return load_recipe(options.recipe, options.overrides)
    return loads_recipe(options.text, "zoogen sparsify", options.overrides)


def plan_of(options: SparsifyOptions) -> tuple[Plan, ParentZoo]:
    """What would be trained; writes nothing.

    Raises:
        UserError: the recipe is wrong, the parent zoo is missing or unfinished, or nothing is left to choose.
        IntegrityError: the parent zoo is damaged.
    """
    recipe = read_recipe(options)
    parent = ParentZoo(options.parent, options.allow)
    plan = plan_twins(recipe, parent.plan, parent.choose(recipe.parents))
    parent.shards_of(parents_of(plan))
    return plan, parent


def sparsify(options: SparsifyOptions, executor: Executor, reporter: Reporter, stop: StopFlag) -> Outcome:
    """Make the twins of a zoo that its recipe describes; those that are stored already are kept.

    Raises:
        UserError, EnvironmentFault, IntegrityError, Incomplete: as ``build``, and what ``plan_of`` raises; twins would
            lie in their parents' folder.
    """
    plan, parent = plan_of(options)
    out = options.build.out or beside(parent.path, plan)
    if parent.path.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out} is the parents' zoo, or in it, and that is never written\nchoose another: --out DIR")
    described = parent.described(parent.check(parents_of(plan)), out)
    with executor:
        executor.start()
        return grow(plan, replace(options.build, out=out), executor, reporter, stop, parent=(parent, described))


def beside(parent: Path, plan: Plan) -> Path:
    """Where twins go by default: beside their parent."""
    return parent.absolute().parent / f"{plan.blueprint.name}-v{plan.blueprint.version}"
