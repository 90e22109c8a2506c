"""``zoogen schema``."""

from __future__ import annotations

import json

import click

from zoogen.cli.terminal import tell


@click.command(short_help="Print the JSON Schema of a blueprint.")
def schema() -> None:
    """Print the JSON Schema of a blueprint, so that editors complete and check it.

    In VS Code with the YAML extension: zoogen schema > zoogen.schema.json, then put
    `# yaml-language-server: $schema=zoogen.schema.json` on the first line of a blueprint.
    """
    from zoogen.blueprint import schema as make

    tell(json.dumps(make(), indent=1))
