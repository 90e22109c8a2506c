"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

blueprint_argument = click.argument("blueprint", type=click.Path(path_type=Path))
zoo_argument = click.argument("zoo", type=click.Path(path_type=Path))
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the blueprint, e.g. training.epochs=3; may be given several times.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
