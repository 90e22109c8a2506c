"""The Dockerfile's steps, run in a fresh folder with fresh environments: no Docker engine is needed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS_ROOT = ("useradd", "apt-get")  # steps about users, folders and packages of the image


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in text.splitlines()) if name]


def sent_to_the_engine(place: str) -> bool:
    """Whether ``.dockerignore`` lets a path pass; the last matching line decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().lstrip("!")
        if pattern and not pattern.startswith("#") and fnmatch(place, pattern.removeprefix("**/")):
            sent = line.startswith("!")
    return sent


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_what_is_copied_exists_and_is_sent_to_the_engine():
    for copied in of("COPY"):
        *sources, _ = shlex.split(copied)
        assert all((ROOT / source).exists() and sent_to_the_engine(source) for source in sources)
    assert not any(sent_to_the_engine(p) for p in (".git", ".venv", "zoos", "tests", "docs"))


def test_the_image_runs_zoogen_as_a_plain_user():
    names = [name for name, _ in instructions()]
    (user,), (entry,) = of("USER"), of("ENTRYPOINT")
    assert user not in ("root", "0")
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert json.loads(entry) == ["zoogen"]
    assert any("PATH=/opt/zoogen/venv/bin:" in environment for environment in of("ENV"))


@pytest.mark.slow
def test_its_steps_make_an_environment_that_runs_zoogen(tmp_path):
    """``/opt`` becomes a folder here, the base image's Python an empty environment; uv may use its cache."""
    base, opt, home = tmp_path / "base", tmp_path / "opt", tmp_path / "home"
    subprocess.run([sys.executable, "-m", "venv", base], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment["PATH"] = f"{base / 'bin'}:{environment['PATH']}"

    def here(text: str) -> str:
        return text.replace("/opt/", f"{opt}/").replace("--no-cache ", "")

    steps = 0
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = shlex.split(here(rest))
            copy(sources, Path(target), as_folder=target.endswith("/"))
        elif name == "RUN" and not rest.startswith(NEEDS_ROOT):
            done = subprocess.run(
                here(rest), shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout}\n{done.stderr}"
            steps += 1
    assert steps == 5
    inside = {"PATH": f"{opt / 'zoogen/venv/bin'}:/usr/bin:/bin", "HOME": str(home), "USER": "zoogen"}
    program = shutil.which("zoogen", path=inside["PATH"])
    where = [opt / "zoogen/venv/bin/python", "-c", "import zoogen; print(zoogen.__file__)"]
    module = subprocess.run(where, env=inside, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(module.strip()).is_relative_to(opt / "zoogen/venv")  # a copy of its own, not this checkout
    arguments = ["build", opt / "zoogen/blueprints/quickstart.yaml", "--out", "zoo", "--executor", "serial"]
    arguments += ["--sample", "1", "--set", "training.epochs=1"]
    built = subprocess.run([program, *arguments], env=inside, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 3, built.stderr  # one model of 72
    assert "1 trained" in built.stdout


def copy(sources: list[str], target: Path, as_folder: bool) -> None:
    """As Docker does: the content of a folder, or files into a folder."""
    for source in sources:
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / source, target, dirs_exist_ok=True, ignore=ignored)
        else:
            assert as_folder or len(sources) == 1
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, target / source)
