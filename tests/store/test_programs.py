"""The programs of a zoo: the first one settled counts, whole or not at all; what is damaged is told."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from zoogen.core.errors import IntegrityError
from zoogen.core.program import Program
from zoogen.store.programs import Pinned, pin, pinned_file, read_pinned, unpin
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder


def pinned(number=0, **changes):
    own = {
        "program": Program("population", "native", reason=f"choice {number}", seconds_per_step=1e-4),
        "kind": {"batch_size": 10},
        "wish": {"trainer": "auto", "kernels": {}},
        "provisional": False,
    }
    return Pinned(**{**own, **changes})


def test_what_is_pinned_is_read_back_and_not_changed_by_who_comes_later(tmp_path):
    assert read_pinned(tmp_path, "a-cpu") is None
    assert pin(tmp_path, "a-cpu", pinned(1)) == pinned(1)
    assert pin(tmp_path, "a-cpu", pinned(2)) == pinned(1)
    assert read_pinned(tmp_path, "a-cpu") == pinned(1)
    assert read_pinned(tmp_path, "a-cuda") is None
    assert [p.name for p in (tmp_path / "programs").iterdir()] == ["a-cpu.json"]
    unpin(tmp_path, "a-cpu")
    assert pin(tmp_path, "a-cpu", pinned(2)) == pinned(2)


def test_of_many_who_choose_at_once_one_choice_counts_for_all(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: pin(tmp_path, "a-cpu", pinned(n)), range(64)))
    assert len({settled.program for settled in found}) == 1


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(type(tmp_path), "hardlink_to", refuse)
    assert pin(tmp_path, "a-cpu", pinned(1)) == pinned(1)
    assert pin(tmp_path, "a-cpu", pinned(2)) == pinned(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told | {"format_version": 2},
        lambda told: told | {"program": {"trainer": "population"}},
        lambda told: told | {"provisional": 1},
        lambda told: told | {"wish": None},
        lambda told: {},
        lambda told: [told],
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, change):
    pin(tmp_path, "a-cpu", pinned())
    file = pinned_file(tmp_path, "a-cpu")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(IntegrityError, match=r"a-cpu\.json is damaged.*\n.*delete it"):
        read_pinned(tmp_path, "a-cpu")
    file.write_bytes(b"\x00torn")
    with pytest.raises(IntegrityError, match="damaged"):
        pin(tmp_path, "a-cpu", pinned())


def test_no_name_leaves_the_folder(tmp_path):
    with pytest.raises(ValueError, match="cannot name a file"):
        pinned_file(tmp_path, "../a")


def test_programs_stand_beside_the_digests_and_their_leftovers_are_cleaned(sample):
    sample.seal(0)
    before = verify(sample.path)
    pin(sample.path, "a-cpu", pinned())
    half = sample.path / "programs" / ".tmp-b-cpu-00"
    half.write_text("{")
    assert verify(sample.path) == before
    ZooFolder(sample.path).clean_leftovers(sample.token)
    assert not half.exists()
    assert read_pinned(sample.path, "a-cpu") == pinned()
