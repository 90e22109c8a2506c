"""``zoogen info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoogen.cli.options import json_option, zoo_argument
from zoogen.cli.terminal import tell


@click.command(short_help="Summarise a zoo.")
@zoo_argument
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw the accuracy trajectories (.png or .svg).")
@json_option
def info(zoo: Path, picture: Path | None, as_json: bool) -> None:
    """Summarise ZOO: models, factors, sizes, accuracies per factor value."""
    from zoogen.dataset import open_zoo
    from zoogen.report import summary, trajectories_picture

    opened = open_zoo(zoo)
    found = summary(opened)
    tell(json.dumps(found.to_json(), indent=1) if as_json else str(found))
    if picture is not None:
        trajectories_picture(opened, picture)
        tell(f"accuracy trajectories: {picture}", err=True)
