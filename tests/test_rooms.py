"""The house of style.md, section 10: which room may import which, and where each heavy library lives."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zoogen

HOUSE = Path(zoogen.__file__).parent

MAY_IMPORT = {
    "core": set(),
    "blueprint": {"core"},
    "plan": {"core", "blueprint"},
    "architectures": {"core"},
    "tasks": {"core"},
    "train": {"core"},
    "twins": {"core", "train"},
    "store": {"core"},
    "importers": {"core"},
    "schedule": {"core"},
    "dataset": {"core", "architectures", "tasks", "store"},
    "report": {"core", "dataset"},
    "build": {
        "core", "blueprint", "plan", "architectures", "tasks", "train", "twins",
        "store", "importers", "schedule", "dataset", "report",
    },
    "cli": {
        "core", "blueprint", "plan", "architectures", "tasks", "train", "twins",
        "store", "importers", "schedule", "dataset", "report", "build",
    },
    "__init__": {"dataset"},
    "__main__": {"cli"},
}  # fmt: skip

# Library -> files (or rooms) that may import it.
HOMES = {
    "ray": {"schedule/ray.py"},
    "h5py": {"store"},
    "pyarrow": {"store", "importers/records/file_tables.py"},
    "safetensors": {"store"},
    "torchvision": {"tasks", "architectures"},
    "sklearn": {"tasks"},
    "matplotlib": {"report"},
    "pydantic": {"blueprint"},
    "yaml": {"blueprint", "importers/records/model_card.py"},
    "rich": {"cli", "build"},
    "click": {"cli"},
}


def room_of(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [node.module] if node.module != "zoogen" else [f"zoogen.{a.name}" for a in node.names]
    return found


FILES = sorted(HOUSE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(HOUSE)))
def test_a_file_imports_only_the_rooms_it_may(file):
    room = room_of(file)
    used = {name.split(".")[1] for name in imports_of(file) if name.startswith("zoogen.")} - {room}
    assert used <= MAY_IMPORT[room], f"{room} may not import {sorted(used - MAY_IMPORT[room])}"


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_in_its_home_only(library):
    for file in FILES:
        if any(name.split(".")[0] == library for name in imports_of(file)):
            place = file.relative_to(HOUSE).as_posix()
            assert place in HOMES[library] or room_of(file) in HOMES[library], f"{place} imports {library}"


def test_torchvision_stands_in_one_file_of_a_room():
    for room in ("tasks", "architectures"):
        users = [
            f for f in FILES if room_of(f) == room and any(n.split(".")[0] == "torchvision" for n in imports_of(f))
        ]
        assert len(users) <= 1, users


def loaded_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in out.split()}


@pytest.mark.parametrize("code", ["import zoogen", "import zoogen.cli", "import zoogen.blueprint"])
def test_importing_loads_no_heavy_library(code):
    assert not loaded_after(code) & {"torch", "torchvision", "ray", "pandas", "h5py", "sklearn", "matplotlib"}
