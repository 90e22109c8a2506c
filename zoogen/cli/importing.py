"""``zoogen import``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--from", "kind", metavar="KIND", help="Layout of SOURCE: ray-tune or torch. [default: recognised]")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Where the zoo goes.")
def import_(source: Path, kind: str | None, out: Path) -> None:
    """Read a published zoo, a folder or a zip or tar as it was downloaded, into a zoo of this format.

    Nothing is unpacked, and no code in it runs. What cannot be read (trials without checkpoints, damaged files) is left
    out, said and recorded. The same command goes on where it was interrupted.
    """
    from zoogen.build.importing import import_zoo

    click.echo(str(import_zoo(source, kind, out, lambda text: click.echo(text, err=True))))
