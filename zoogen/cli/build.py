"""``zoogen build``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from zoogen.cli.options import blueprint_argument, overrides_option


@click.command()
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
@click.option("--until", type=click.IntRange(0), metavar="EPOCH", help="Stop every model at this epoch, resumably.")
@click.option(
    "--executor",
    type=click.Choice(["ray", "serial"]),
    default="ray",
    show_default=True,
    help="'serial' trains in this process, without Ray.",
)
@click.option("--address", metavar="HOST:PORT", help="Use a running Ray cluster instead of starting a local one.")
@click.option("--cpus", type=click.IntRange(1), help="Cores the local Ray may use. [default: all]")
@click.option("--gpus", type=click.IntRange(0), help="GPUs the local Ray may use. [default: all]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the task data. [default: $ZOOGEN_DATA]")
@click.option("--download", is_flag=True, help="Fetch missing task data.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="'auto' uses the GPU for cohorts whose resources ask for one.",
)
@click.option(
    "--trainer",
    type=click.Choice(["auto", "plain", "population"]),
    default="auto",
    show_default=True,
    help="'population' trains many models as one program; 'auto' measures which is faster.",
)
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    metavar="NAME=VARIANT",
    help="Fix a choice within the population trainer, e.g. engine=stacked or conv2d=unfold. Repeatable.",
)
def build(
    blueprint: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    where: str | None,
    sample: int | None,
    until: int | None,
    executor: str,
    address: str | None,
    cpus: int | None,
    gpus: int | None,
    data: Path | None,
    download: bool,
    device: str,
    trainer: Literal["auto", "plain", "population"],
    kernels: tuple[str, ...],
) -> None:
    """Train every model BLUEPRINT describes and store its checkpoints.

    Models already stored are skipped, so the same command resumes an interrupted build, and a blueprint with more
    seeds, values or epochs extends its zoo. A model that fails is listed at the end with its id and cause; the others
    finish; the exit code is 1.
    """
    from zoogen.build.pipeline import BuildOptions
    from zoogen.build.pipeline import build as run_build
    from zoogen.build.programs import Wish
    from zoogen.cli.progress import reporter
    from zoogen.schedule import Executor, SerialExecutor, StopFlag, stop_on_signals

    wish = Wish(trainer, _named(kernels))
    options = BuildOptions(blueprint, out, overrides, where, sample, until, data, download, device, wish)
    runner: Executor
    if executor == "serial":
        for name, value in (("--address", address), ("--cpus", cpus), ("--gpus", gpus)):
            if value is not None:
                raise click.UsageError(f"{name} goes with --executor ray")
        runner = SerialExecutor()
    else:
        runner = _ray(address, cpus, gpus)
    stop = StopFlag()
    with stop_on_signals(stop), reporter(stop) as shown:
        outcome = run_build(options, runner, shown, stop)
    click.echo(_closing(outcome))
    sys.exit(outcome.exit_code)


def _named(kernels: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kernel in kernels:
        name, equals, variant = kernel.partition("=")
        if not (name and equals and variant):
            raise click.UsageError(f"--kernel {kernel}: write NAME=VARIANT")
        if found.setdefault(name, variant) != variant:
            raise click.UsageError(f"--kernel {name} is given twice")
    return found


def _ray(address: str | None, cpus: int | None, gpus: int | None):
    from zoogen.core.errors import EnvironmentFault

    if address is not None and (cpus is not None or gpus is not None):
        raise click.UsageError("--cpus and --gpus size the local Ray; a cluster (--address) has its own")
    try:
        from zoogen.schedule.ray import RayExecutor
    except ImportError as error:
        raise EnvironmentFault(
            f"Ray cannot be imported ({error})\ninstall it (pip install 'ray[tune]'), or build with --executor serial"
        ) from error
    # Slurm and spot machines kill what has not stopped after about 30 s.
    return RayExecutor(address, cpus=cpus, gpus=gpus, grace_seconds=20.0)


def _closing(outcome) -> str:
    """The last words of a build."""
    parts = [f"{outcome.trained} trained"]
    parts += [f"{outcome.diverged} diverged"] if outcome.diverged else []
    parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    parts += [
        f"{outcome.open} still to train (the same command without --where, --sample or --until trains them)"
    ] * bool(outcome.open)
    rate = f", {outcome.model_steps / outcome.seconds:,.0f} model-steps/s" if outcome.model_steps else ""
    lines = [f"{outcome.path}: {outcome.planned} models: {', '.join(parts)} ({outcome.seconds:.1f} s{rate})"]
    shown = list(outcome.failed.items())[:10]
    lines += [f"failed {model_id}: {reason}" for model_id, reason in shown]
    if len(outcome.failed) > len(shown):
        lines.append(f"... and {len(outcome.failed) - len(shown)} more; `zoogen status {outcome.path}` lists them")
    return "\n".join(lines)
