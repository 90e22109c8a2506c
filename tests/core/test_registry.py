"""Registries: what may be entered, what an unknown name says, and how an entry is written down."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from zoogen.core.canonical import canonical_json
from zoogen.core.errors import UserError
from zoogen.core.frozen import FrozenDict, freeze
from zoogen.core.registry import Registry


@pytest.fixture
def registry():
    # The room is any importable module: entries come from the tests themselves.
    return Registry("fruit", "zoogen.core")


@pytest.fixture
def pear(registry):
    @registry.register("pear")
    @dataclass(frozen=True)
    class Pear:
        weight: float = 1.0
        tags: tuple[str, ...] = ()
        options: Any = field(default_factory=FrozenDict)

        def __post_init__(self):
            object.__setattr__(self, "options", freeze(self.options, "options"))

    return Pear


def test_an_entry_knows_its_name_and_is_found_by_it(registry, pear):
    assert pear.registered_name == "pear"
    assert registry.get("pear") is pear
    assert registry.names() == ["pear"]
    assert registry.make("pear", {"weight": 2.0}) == pear(2.0)


def test_a_name_is_taken_once(registry, pear):
    with pytest.raises(ValueError, match="'pear' is registered twice"):
        registry.register("pear")(pear)


@pytest.mark.parametrize("decorate", [lambda cls: cls, dataclass])
def test_entries_are_frozen_dataclasses(registry, decorate):
    class Plain:
        pass

    with pytest.raises(TypeError, match="frozen=True"):
        registry.register("plain")(decorate(Plain))


@pytest.mark.usefixtures("pear")
def test_an_unknown_name_lists_the_known_ones_and_suggests_the_closest(registry):
    with pytest.raises(UserError, match=r"unknown fruit 'paer'\nknown: pear. Did you mean 'pear'"):
        registry.get("paer")
    with pytest.raises(UserError, match="unknown fruit 'no-such-extra/pear'"):
        registry.get("no-such-extra/pear")


def test_a_description_leaves_defaults_out_and_tells_numbers_apart(registry, pear):
    assert registry.describe(pear()) == {"name": "pear"}
    assert registry.describe(pear(weight=1.0, tags=())) == {"name": "pear"}
    assert canonical_json(registry.describe(pear(weight=1))) == b'{"name":"pear","weight":1}'
    assert registry.describe(pear(tags=("a", "b"))) == {"name": "pear", "tags": ["a", "b"]}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"weight": 0.25}, {"tags": ("a", "b")}, {"options": {"deep": [1, {"list": [2.5, None, True]}]}}],
    ids=str,
)
def test_restore_is_the_inverse_of_describe(registry, pear, arguments):
    entry = pear(**arguments)
    described = json.loads(json.dumps(registry.describe(entry)))
    assert described == registry.describe(entry)
    assert registry.restore(described) == entry
    assert hash(registry.restore(described)) == hash(entry)


@pytest.mark.usefixtures("pear")
def test_restoring_an_argument_of_a_newer_version_says_which(registry):
    with pytest.raises(UserError, match=r"fruit 'pear' has no argument 'wieght'\n.*Did you mean 'weight'"):
        registry.restore({"name": "pear", "wieght": 2.0})


def test_a_room_that_cannot_be_imported_says_so_every_time():
    broken = Registry("fruit", "zoogen.no_such_room")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_room"):
            broken.get("pear")


def test_other_packages_add_entries_by_entry_points_imported_only_when_asked_for(tmp_path):
    (tmp_path / "orchard.py").write_text(
        "from dataclasses import dataclass\n"
        "from zoogen.core.registry import ARCHITECTURES\n"
        "@ARCHITECTURES.register('plum')\n"
        "@dataclass(frozen=True)\n"
        "class Plum:\n"
        "    stones: int = 1\n"
    )
    info = tmp_path / "orchard-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orchard\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoogen.architectures]\nplum = orchard:Plum\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from zoogen.core.registry import ARCHITECTURES\n"
        "assert 'plum' in ARCHITECTURES.names() and 'mlp' in ARCHITECTURES.names()\n"
        "ARCHITECTURES.get('mlp'); assert 'orchard' not in sys.modules\n"
        "print(ARCHITECTURES.describe(ARCHITECTURES.make('plum', {'stones': 2})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'name': 'plum', 'stones': 2}"
