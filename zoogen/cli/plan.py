"""``zoogen plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoogen.cli.options import json_option, overrides_option
from zoogen.cli.terminal import tell
from zoogen.core.words import duration, in_bytes

if TYPE_CHECKING:
    from zoogen.plan import Plan, Summary


@click.command(short_help="Show what a build would train and store.")
@click.argument("blueprints", nargs=-1, required=True, type=click.Path(path_type=Path))
@overrides_option
@click.option("--calibrate", is_flag=True, help="Also estimate the time on this machine from a short run.")
@json_option
def plan(blueprints: tuple[Path, ...], overrides: tuple[str, ...], calibrate: bool, as_json: bool) -> None:
    """Show what BLUEPRINTS (files, or folders of them) would train and store: models, states, steps, bytes.

    Needs no data; trains nothing.
    """
    from zoogen.blueprint import load
    from zoogen.plan import make_plan

    found: list[tuple[Summary, float | None]] = []
    for path in _files(blueprints):
        made = make_plan(load(path, overrides))
        found.append((made.summary, _seconds(made) if calibrate else None))
    tell(json.dumps(_as_json(found), indent=1) if as_json else _as_text(found))


def _files(paths: tuple[Path, ...]) -> list[Path]:
    from zoogen.blueprint.twins import is_recipe

    files: list[Path] = []
    for path in paths:
        own = [p for p in sorted(path.rglob("*.yaml")) if not is_recipe(p)] if path.is_dir() else [path]
        if not own:
            raise click.UsageError(f"{path} holds no blueprint (*.yaml)")
        files += own
    return files


def _seconds(made: Plan) -> float:
    from zoogen.build.calibrate import estimate_seconds

    return estimate_seconds(made)


def _as_json(found: list[tuple[Summary, float | None]]) -> dict[str, object]:
    zoos = [{**s.to_json(), **({"seconds": seconds} if seconds is not None else {})} for s, seconds in found]
    keys = ("models", "states", "cohorts", "shards", "optimizer_steps", "total_bytes")
    return {"zoos": zoos, "total": {"zoos": len(zoos), **{k: sum(int(z[k]) for z in zoos) for k in keys}}}


def _as_text(found: list[tuple[Summary, float | None]]) -> str:
    timed = any(seconds is not None for _, seconds in found)
    head = ["zoo", "models", "states", "cohorts", "shards", "steps", "size", *(["time"] if timed else [])]
    rows = []
    for s, seconds in found:
        row = [f"{s.name} v{s.version}", f"{s.models:,}", f"{s.states:,}", f"{s.cohorts:,}", f"{s.shards:,}"]
        rows.append(
            [*row, f"{s.optimizer_steps:,}", in_bytes(s.total_bytes), *([duration(seconds or 0)] if timed else [])]
        )
    if len(found) > 1:
        sums = [sum(values) for values in zip(*(_counts(s) for s, _ in found), strict=True)]
        total = [f"{len(found)} zoos", *(f"{n:,}" for n in sums[:-1]), in_bytes(sums[-1])]
        rows.append(total + ([duration(sum(seconds or 0 for _, seconds in found))] if timed else []))
    text = table(head, rows)
    return text if len(found) > 1 else f"{text}\n\n{_details(found[0][0])}"


def described(summary: Summary) -> str:
    """One plan in full."""
    return _as_text([(summary, None)])


def _counts(s: Summary) -> list[int]:
    return [s.models, s.states, s.cohorts, s.shards, s.optimizer_steps, s.total_bytes]


def _details(s: Summary) -> str:
    lines = ["factors: " + ", ".join(f"{key} ({n})" for key, n in s.factors.items())]
    lines.append(f"bytes: weights {in_bytes(s.weight_bytes)}, optimizer states {in_bytes(s.optimizer_bytes)}")
    if s.prediction_bytes:
        lines[-1] += f", test predictions {in_bytes(s.prediction_bytes)} before compression"
    head = ["architecture", "task", "parameters", "batch", "epochs", "models", "states", "steps", "weights"]
    rows = []
    for k in s.kinds:
        row = [k["architecture"], k["task"], f"{k['parameters']:,}", str(k["batch_size"]), str(k["epochs"])]
        row += [f"{k[n]:,}" for n in ("models", "states", "optimizer_steps")]
        rows.append([*row, in_bytes(k["weight_bytes"])])
    return "\n".join([*lines, "", table(head, rows)])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Aligned columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    left = [i == 0 or not any(row[i][:1].isdigit() for row in rows) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
