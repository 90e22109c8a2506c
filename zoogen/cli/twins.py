"""``zoogen twins``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoogen.cli.options import json_option, zoo_argument
from zoogen.cli.terminal import tell
from zoogen.core.errors import UserError


@click.group(short_help="Look at the twins that sparsify made.")
def twins() -> None:
    """Look at the sparse twins that `zoogen sparsify` made."""


@twins.command()
@zoo_argument
@click.argument("twin", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where it goes. [default: <ZOO>-twins-report]")
@json_option
def report(zoo: Path, twin: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Compare the twins of ZOO with their parents and with each other: accuracy, agreement, layers over sparsity.

    TWIN are folders of twin zoos of ZOO; without any, those beside it. Pictures (PNG and SVG), the numbers behind them
    (Parquet) and a page with all of it (report.md) go to a folder; the table is also printed. Twins that are not
    finished, or diverged, are counted and left out.
    """
    from zoogen.dataset import open_zoo
    from zoogen.report.twins import twins_report

    opened = open_zoo(zoo)
    folder = out or opened.path.resolve().with_name(f"{opened.path.resolve().name}-twins-report")
    _check_free(folder)
    found = twins_report(opened, opened.twins(*twin))
    page = found.write(folder)
    tell(json.dumps(found.to_json(), indent=1) if as_json else str(found))
    tell(f"report: {page}", err=True)


def _check_free(folder: Path) -> None:
    """Refuse a file, and a place within a zoo, whose bytes nothing but a build may change."""
    from zoogen.store.zoo import MANIFEST_FILE

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder with --out DIR")
    place = folder.resolve()
    inside = [p for p in (place, *place.parents) if (p / MANIFEST_FILE).is_file()]
    if inside:
        raise UserError(f"{folder} lies in the zoo {inside[0]}; choose a folder of its own with --out DIR")
