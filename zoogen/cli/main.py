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
from zoogen.core.errors import EnvironmentFault, Incomplete, IntegrityError, UserError, ZoogenError

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

# These read what others may have made: what no reader expected is damage of it, as far as anyone can tell.
_READERS = {"import", "twins", "status", "info", "verify"}

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_KINDS: dict[int, type[ZoogenError]] = {
    **dict.fromkeys(_DISK, EnvironmentFault),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), UserError),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), IntegrityError),
}


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
        kind = _KINDS.get(error.errno or 0)
        said = f"{error.filename or 'a file'!s:.200}: {os.strerror(error.errno or 0)}"
        code = _mistake(error) if kind is None else _tell(kind(said))
    except MemoryError:
        advice = "" if _reads() else "; use fewer workers (--cpus) or smaller cohorts (resources.cohort)"
        code = _tell(EnvironmentFault(f"out of memory{advice}"))
    except Exception as error:
        code = _mistake(error)
    sys.exit(code if isinstance(code, int) else 0)


def _reads() -> bool:
    """Whether the command is one of those that read what others made."""
    return set(sys.argv[1:2]) <= _READERS


def _mistake(error: Exception) -> int:
    """What nobody expected: a line for who has to report it; ``ZOOGEN_DEBUG`` shows where it happened."""
    if os.environ.get("ZOOGEN_DEBUG"):
        raise error
    kind = IntegrityError if _reads() else ZoogenError
    message = f"{type(error).__name__}: {str(error)[:300]}"
    doubt = "unless the files are damaged, " if kind is IntegrityError else ""
    return _tell(kind(f"{message}\n{doubt}this is a mistake of zoogen: please report it (ZOOGEN_DEBUG=1 tells where)"))


def _tell(error: ZoogenError) -> int:
    tell("\n".join([str(error), *getattr(error, "__notes__", [])]), err=True)
    return error.exit_code
