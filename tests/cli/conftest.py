"""A command run in this process, for every test of the command line."""

from __future__ import annotations

import logging
import sys

import pytest

from zoogen.cli import main


@pytest.fixture
def zoogen(capsys, monkeypatch):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zoogen", *map(str, arguments)])
        logger = logging.getLogger("zoogen")
        handlers = list(logger.handlers)
        with pytest.raises(SystemExit) as ended:
            main()
        logger.handlers = handlers
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run
