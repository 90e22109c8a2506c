"""``python -m zoogen``."""

from zoogen.cli import main

main()
