"""``zoogen verify``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from zoogen.cli.options import json_option, zoo_argument
from zoogen.cli.terminal import tell
from zoogen.core.errors import Incomplete, IntegrityError
from zoogen.core.words import counted

_MAKERS = "`zoogen build` (of twins: `zoogen sparsify`; of an imported zoo: `zoogen import`)"


@click.command(short_help="Prove that a zoo is complete and undamaged.")
@zoo_argument
@click.option("--quick", is_flag=True, help="Check sizes, structure and completeness, but read no weights.")
@click.option("--move-damaged", is_flag=True, help="Move damaged shards aside, so that the next build makes them anew.")
@json_option
def verify(zoo: Path, quick: bool, move_damaged: bool, as_json: bool) -> None:
    """Prove from files alone that ZOO is complete and undamaged.

    Exit code 0: every planned model is stored once and every byte is the one that was sealed; 3: something planned is
    not stored yet; 4: something is damaged.
    """
    from zoogen.store.verify import verify as run
    from zoogen.store.zoo import ZooFolder

    report = run(zoo, deep=not quick)
    open_models = report.counts.get("planned", 0) - report.counts.get("scheduled", 0)
    if as_json:
        tell(json.dumps({**asdict(report), "complete": report.complete and not open_models}, indent=1))
    else:
        for kind, found in (("damaged", report.damaged), ("missing", report.missing), ("stale", report.stale)):
            for what in found:
                tell(f"{kind}: {what}")
        if open_models:
            tell(f"not trained yet: {open_models} of {report.counts['planned']} planned models")
        tell(_verdict(zoo, report, quick, open_models))
    if move_damaged:
        for shard_id in report.damaged_shards():
            tell(f"moved aside: {ZooFolder(zoo).remove_damaged(shard_id)}", err=True)
    if report.damaged:
        sys.exit(IntegrityError.exit_code)
    if not report.complete or open_models:
        sys.exit(Incomplete.exit_code)


def _verdict(zoo: Path, report, quick: bool, open_models: int) -> str:
    counts = report.counts
    if report.damaged:
        return (
            f"{zoo}: damaged; `zoogen verify --move-damaged {zoo}` moves damaged shards aside, "
            f"the next {_MAKERS} makes them anew"
        )
    if report.missing or report.stale or open_models:
        return f"{zoo}: not complete; {_MAKERS} goes on"
    how = "sizes and structure are right" if quick else "every digest is right"
    found = f"{counted(counts['models'], 'model')}, {counted(counts['states'], 'state')}"
    return f"{zoo}: complete; {found} in {counted(counts['shards'], 'shard')}, {how}"
