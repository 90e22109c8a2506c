"""The ``zoogen`` command: its subcommands, and how an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from keyword import iskeyword
from typing import NoReturn

import click

from zoogen.cli.terminal import PrintableFormatter, tell
from zoogen.core.errors import EnvironmentFault, Incomplete, UserError, ZoogenError

# Subcommand -> module; imported when called, so that `zoogen --help` loads no torch.
_COMMANDS = {
    "build": "zoogen.cli.build",
    "sparsify": "zoogen.cli.sparsify",
    "twins": "zoogen.cli.twins",
    "import": "zoogen.cli.importing",
    "plan": "zoogen.cli.plan",
    "status": "zoogen.cli.status",
    "info": "zoogen.cli.info",
    "verify": "zoogen.cli.verify",
    "schema": "zoogen.cli.schema",
}

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

_NAMES = {errno.ENAMETOOLONG, errno.ELOOP}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return getattr(importlib.import_module(_COMMANDS[name]), f"{name}_" if iskeyword(name) else name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from zoogen.core.errors import suggest

            raise click.UsageError(f"unknown command {args[0]!r}\n{suggest(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zoogen")
def cli() -> None:
    """Grow, curate and serve populations of trained neural networks (model zoos).

    Exit codes: 0 complete, 1 finished with failed models, 2 a mistake in what was asked, 3 interrupted or incomplete
    and resumable, 4 stored bytes are damaged, 5 the machine lacks something (disk, memory, data, network).
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.getLogger("zoogen").addHandler(handler)


def main() -> NoReturn:
    """Run the command line; never shows a traceback for what a user, a file or the machine did wrong."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = UserError.exit_code
    except (click.Abort, KeyboardInterrupt):
        tell("zoogen: interrupted; run the same command again to go on", err=True)
        code = Incomplete.exit_code
    except ZoogenError as error:
        code = _tell(error)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; say nothing, not even at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in _DISK | _NAMES:
            raise
        kind = UserError if error.errno in _NAMES else EnvironmentFault
        code = _tell(kind(f"{error.filename or 'a file'!s:.200}: {os.strerror(error.errno or 0)}"))
    except MemoryError:
        code = _tell(
            EnvironmentFault("out of memory; use fewer workers (--cpus) or smaller cohorts (resources.cohort)")
        )
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: ZoogenError) -> int:
    tell("\n".join([str(error), *getattr(error, "__notes__", [])]), err=True)
    return error.exit_code
