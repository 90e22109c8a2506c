import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # build_runs and fault_points, also for the processes that tests start

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

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


@pytest.fixture(scope="session")
def trials(tmp_path_factory):
    """Folder of a published zoo of six trials, and the states written, by trial and epoch."""
    from published_zoos import write_zoo

    folder = tmp_path_factory.mktemp("trials") / "zoo"
    return folder, write_zoo(folder)


@pytest.fixture
def source(trials, tmp_path):
    """A copy of these trials, to be changed."""
    return shutil.copytree(trials[0], tmp_path / "source")
