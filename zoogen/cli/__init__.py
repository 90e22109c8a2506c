"""The command line: reads arguments, calls one function, prints. Results go to stdout, progress to stderr."""

from zoogen.cli.main import main

__all__ = ["main"]
