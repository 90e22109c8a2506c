import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # build_runs and fault_points, also for the processes that tests start

import build_runs


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded task data of these tests lie apart from the user's."""
    before = os.environ.get("ZOOGEN_CACHE")
    os.environ["ZOOGEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["ZOOGEN_CACHE"]
    else:
        os.environ["ZOOGEN_CACHE"] = before


@pytest.fixture
def command(tmp_path):
    """Runs ``zoogen ...`` in processes of its own; whatever still lives is killed at the end."""
    with build_runs.Commands(tmp_path) as commands:
        yield commands
