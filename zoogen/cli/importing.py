"""``zoogen import``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from zoogen.cli.terminal import tell

KINDS = {
    "modelzoo-pt": "Pickles dataset*.pt of preprocessed zoos.",
    "ray-tune": "Trial folders of Ray Tune: 2022 zoos, twins, ViT, phase zoos.",
    "safetensors": "Files, a hub cache or a list of repositories.",
    "small-cnn-zoo": "Folders with weights.npy and metrics.csv.",
    "torch": "State dicts with a table that says what they are.",
}
EXAMPLES = (
    "zoogen import mnist.zip --from ray-tune --out zoos/mnist",
    "zoogen import my-models --from torch --task mnist --out zoos/mine",
)


class _Kind(click.Option):
    """Its help names the kinds of sources, which are looked for only when it is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from zoogen.importers.source import SOURCES

        self.help = f"Layout of SOURCE: {', '.join(SOURCES.names())}. [default: recognised]"
        return super().get_help_record(ctx)


class _Import(click.Command):
    """Its help says what each kind is, and ends with examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from zoogen.importers.source import SOURCES

        with formatter.section("Kinds"):
            formatter.write_dl([(name, KINDS.get(name, "A kind that is installed.")) for name in SOURCES.names()])
        with formatter.section("Examples"):
            for example in EXAMPLES:
                formatter.write(f"  {example}\n")
        formatter.write_paragraph()
        formatter.write_text("Which zoos there are and how to import each: docs/published-zoos.md.")


@click.command("import", cls=_Import, short_help="Read a published zoo into this format.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--from", "kind", metavar="KIND", cls=_Kind)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Where the zoo goes.")
@click.option("--task", metavar="NAME|BLUEPRINT", help="What its models were trained on; a blueprint's is its task.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the task data. [default: $ZOOGEN_DATA]")
@click.option("--download", is_flag=True, help="Fetch missing task data.")
def import_(source: Path, kind: str | None, out: Path, task: str | None, data: Path | None, download: bool) -> None:
    """Read a published zoo, a folder or a zip or tar as it was downloaded, into a zoo of this format.

    Nothing is unpacked, and no code in it runs. What cannot be read (trials without checkpoints, damaged files) is left
    out, said and recorded. The same command goes on where it was interrupted.

    With --task the zoo can be evaluated and made sparse; where the task's data are at hand, the test accuracy of some
    models is computed again, and an import whose records say something else is refused.
    """
    from zoogen.build.imported_task import find_task
    from zoogen.build.importing import import_zoo

    if task is None and (data is not None or download):
        raise click.UsageError("--data and --download go with --task")
    trained = None if task is None else find_task(task, data, download)
    tell(import_zoo(source, kind, out, partial(tell, err=True), trained))
