"""``zoogen build``."""

from __future__ import annotations

from pathlib import Path

import click

from zoogen.cli.building import Building, building_options
from zoogen.cli.options import blueprint_argument, overrides_option


@click.command(short_help="Train and store the models of a blueprint.")
@blueprint_argument
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Where the zoo goes. [default: zoos/<name>-v<version>]"
)
@overrides_option
@click.option("--where", metavar="PREDICATE", help='Build only models that match, e.g. "lr < 0.01 and seed in [1, 2]".')
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Build only a uniform sample of N models of the plan (a pilot); always the same ones.",
)
@building_options
def build(
    blueprint: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    where: str | None,
    sample: int | None,
    building: Building,
) -> None:
    """Train every model BLUEPRINT describes and store its checkpoints.

    Models already stored are skipped, so the same command resumes an interrupted build, and a blueprint with more
    seeds, values or epochs extends its zoo. A model that fails is listed at the end with its id and cause; the others
    finish; the exit code is 1.
    """
    from zoogen.build.pipeline import build as run_build

    options = building.options(blueprint=blueprint, out=out, overrides=overrides, where=where, sample=sample)
    building.run(lambda runner, shown, stop: run_build(options, runner, shown, stop))
