"""What every command that trains takes: where and how to run, how to show it, and how it ends."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from zoogen.cli.terminal import tell
from zoogen.core.words import counted

if TYPE_CHECKING:
    from zoogen.build.pipeline import BuildOptions

_OPTIONS = (
    click.option("--until", type=click.IntRange(0), metavar="EPOCH", help="Stop every model at this epoch, resumably."),
    click.option(
        "--executor",
        type=click.Choice(["ray", "serial"]),
        default="ray",
        show_default=True,
        help="'serial' trains in this process, without Ray.",
    ),
    click.option("--address", metavar="HOST:PORT", help="Use a running Ray cluster instead of starting a local one."),
    click.option("--cpus", type=click.IntRange(1), help="Cores the local Ray may use. [default: all]"),
    click.option("--gpus", type=click.IntRange(0), help="GPUs the local Ray may use. [default: all]"),
    click.option("--data", type=click.Path(path_type=Path), help="Folder of the task data. [default: $ZOOGEN_DATA]"),
    click.option("--download", is_flag=True, help="Fetch missing task data."),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="'auto' uses the GPU for cohorts whose resources ask for one.",
    ),
    click.option(
        "--trainer",
        type=click.Choice(["auto", "plain", "population"]),
        default="auto",
        show_default=True,
        help="'population' trains many models as one program; 'auto' measures which is faster.",
    ),
    click.option(
        "--kernel",
        "kernels",
        multiple=True,
        metavar="NAME=VARIANT",
        help="Fix a choice within the population trainer, e.g. engine=stacked or conv2d=unfold. Repeatable.",
    ),
)


@dataclass(frozen=True)
class Building:
    """Values of these options."""

    until: int | None
    executor: str
    address: str | None
    cpus: int | None
    gpus: int | None
    data: Path | None
    download: bool
    device: str
    trainer: Literal["auto", "plain", "population"]
    kernels: tuple[str, ...]

    def options(self, **rest: Any) -> BuildOptions:
        """For the build; ``rest`` are the command's own."""
        from zoogen.build.pipeline import BuildOptions
        from zoogen.build.programs import Wish

        wish = Wish(self.trainer, _named(self.kernels))
        return BuildOptions(
            **rest, until=self.until, data=self.data, download=self.download, device=self.device, wish=wish
        )

    def run(self, train: Callable[..., Any]) -> None:
        """``train(executor, reporter, stop)`` with progress shown and signals heard; ends the process."""
        from zoogen.cli.progress import reporter
        from zoogen.schedule import StopFlag, stop_on_signals

        runner = self._runner()
        stop = StopFlag()
        with stop_on_signals(stop), reporter(stop) as shown:
            outcome = train(runner, shown, stop)
        tell(_closing(outcome))
        sys.exit(outcome.exit_code)

    def _runner(self):
        from zoogen.schedule import SerialExecutor

        if self.executor != "serial":
            return _ray(self.address, self.cpus, self.gpus)
        for name, value in (("--address", self.address), ("--cpus", self.cpus), ("--gpus", self.gpus)):
            if value is not None:
                raise click.UsageError(f"{name} goes with --executor ray")
        return SerialExecutor()


def building_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: the options, handed to the command as one ``building``."""
    names = [field.name for field in fields(Building)]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        own = {name: values.pop(name) for name in names}
        command(**values, building=Building(**own))

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


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
    lines = [f"{outcome.path}: {counted(outcome.planned, 'model')}: {', '.join(parts)} ({outcome.seconds:.1f} s{rate})"]
    shown = list(outcome.failed.items())[:10]
    lines += [f"failed {model_id}: {reason}" for model_id, reason in shown]
    if len(outcome.failed) > len(shown):
        lines.append(f"... and {len(outcome.failed) - len(shown)} more; `zoogen status {outcome.path}` lists them")
    return "\n".join(lines)
