"""The one way to the terminal: names and texts of foreign zoos are shown, but cannot command it."""

from __future__ import annotations

import logging
import re

import click

# Control characters but newline and tab, marks that turn the direction of text, line separators, halves of characters.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with what a terminal obeys written as JSON writes it, ``\\u001b``; letters of all languages stay."""
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def tell(text: object, *, err: bool = False) -> None:
    """Print a line to stdout, or to stderr."""
    click.echo(printable(str(text)), err=err)


class PrintableFormatter(logging.Formatter):
    """Log lines, as printable as all else."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
