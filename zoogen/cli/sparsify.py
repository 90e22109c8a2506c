"""``zoogen sparsify``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoogen.cli.building import Building, building_options
from zoogen.cli.options import zoo_argument
from zoogen.cli.terminal import tell


@click.command(short_help="Make sparse twins of the models of a zoo.")
@zoo_argument
@click.option("--recipe", type=click.Path(path_type=Path), help="A twin recipe (YAML); the options go on top of it.")
@click.option("--method", metavar="NAME", help="magnitude, random or variational-dropout.")
@click.option("--sparsity", metavar="S[,S...]", help="Shares of weights to remove, e.g. 0.5,0.8,0.9.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of sparse training. [default: 15; 25 for variational]")
@click.option("--from-epoch", metavar="EPOCH", help="Parents' checkpoint: last, best or an epoch. [default: last]")
@click.option("--where", metavar="PREDICATE", help='Only of parents that match, e.g. "test_acc > 0.9 and seed < 10".')
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where twins go. [default: beside the parent]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other key of a recipe, e.g. method.scope=layerwise or training.lr_scale=0.1; repeatable.",
)
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only a uniform sample of N twins (a pilot).")
@click.option("--allow", multiple=True, metavar="IMPORT_PATH", help="Code of the zoo's architectures that may run.")
@click.option("--dry-run", is_flag=True, help="Show what would be trained and stored; write nothing.")
@building_options
def sparsify(
    zoo: Path,
    recipe: Path | None,
    method: str | None,
    sparsity: str | None,
    epochs: int | None,
    from_epoch: str | None,
    where: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    sample: int | None,
    allow: tuple[str, ...],
    dry_run: bool,
    building: Building,
) -> None:
    """Make sparse twins of the models of ZOO: a trajectory of sparse training from one of each parent's checkpoints.

    Twins inherit everything from their own parent: architecture, data, optimizer, learning rate, batch size, side of
    the model split. They form a zoo of their own, which every other command reads; ZOO itself is not changed. The same
    command resumes; more sparsities or parents extend.
    """
    from zoogen.build.sparsify import SparsifyOptions, plan_of
    from zoogen.build.sparsify import sparsify as run_sparsify
    from zoogen.cli.plan import described

    settings = _settings(method, sparsity, epochs, from_epoch, where)
    text = "" if recipe else "".join(f"{line}\n" for line in _as_recipe(settings))
    on_top = (*(f"{key}={value}" for key, value in settings.items() if recipe), *overrides)
    options = SparsifyOptions(
        zoo,
        recipe,
        text,
        on_top,
        building.options(blueprint=recipe or Path("blueprint.yaml"), out=out, sample=sample),
        allow,
    )
    if dry_run:
        plan, _ = plan_of(options)
        tell(described(plan.summary))
        return
    building.run(lambda runner, shown, stop: run_sparsify(options, runner, shown, stop))


def _settings(
    method: str | None, sparsity: str | None, epochs: int | None, from_epoch: str | None, where: str | None
) -> dict[str, str]:
    """The options as keys of a recipe, with their values as YAML."""
    found: dict[str, str] = {}
    if from_epoch is not None:
        found["parents.epoch"] = from_epoch
    if where is not None:
        found["parents.where"] = json.dumps(where)
    if method is not None:
        found["method.name"] = method
    if sparsity is not None:
        values = [_number(part) for part in sparsity.split(",")]
        found["method.sparsity"] = values[0] if len(values) == 1 else f"{{grid: [{', '.join(values)}]}}"
    if epochs is not None:
        found["training.epochs"] = str(epochs)
    return found


def _number(text: str) -> str:
    """As YAML reads it: ``.5`` and ``50%`` are common slips."""
    try:
        value = float(text)
    except ValueError:
        raise click.UsageError(
            f"--sparsity: {text.strip()!r} is no number; write shares between 0 and 1, separated by commas: 0.5,0.9"
        ) from None
    return repr(value)


def _as_recipe(settings: dict[str, str]) -> list[str]:
    """The recipe that says the same as the options, so that the zoo keeps how it was made."""
    sections: dict[str, list[str]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"  {name}: {value}")
    return [line for section, lines in sections.items() for line in (f"{section}:", *lines)]
