"""``zoogen status``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoogen.cli.options import json_option, zoo_argument
from zoogen.cli.terminal import tell
from zoogen.core.words import counted


@click.command(short_help="Show how far the build of a zoo is.")
@zoo_argument
@json_option
def status(zoo: Path, as_json: bool) -> None:
    """Show how far the build of ZOO is: models by status, unfinished cohorts, what each failed model failed of."""
    from zoogen.build.status import read_status

    found = read_status(zoo)
    if as_json:
        tell(json.dumps(found.to_json(), indent=1))
        return
    tell(f"{found.name} v{found.version} at {zoo}: {counted(found.models, 'planned model')}")
    for name, count in found.by_status.items():
        tell(f"  {name:<10} {count:>9,}")
    tell(f"shards: {found.sealed:,} of {found.shards:,} sealed")
    if found.builder:
        tell(f"being built by {found.builder}")
    for cohort, epoch, epochs, models in found.unfinished:
        tell(f"unfinished: cohort {cohort} ({counted(models, 'model')}) stands at epoch {epoch} of {epochs}")
    for model_id, reason in found.failed.items():
        tell(f"failed: {model_id}: {reason}")
