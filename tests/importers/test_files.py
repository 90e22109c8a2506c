"""What a folder lists, and in which order."""

from pathlib import Path

import pytest

from zoogen.importers.containers.files import open_files


@pytest.fixture
def folder(tmp_path):
    for name in ("b/z", "b/a/deep/er", "a.txt", "b.txt", "a/x y", "a/ü", "c/empty"):
        place = tmp_path / "zoo" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x" * len(name))
    (tmp_path / "zoo/nothing").mkdir()
    return tmp_path / "zoo"


def test_a_folder_lists_its_own_files_by_name_before_those_of_its_folders(folder):
    sizes = open_files(folder).sizes
    assert list(sizes) == ["a.txt", "b.txt", "a/x y", "a/ü", "b/z", "b/a/deep/er", "c/empty"]
    assert sizes == {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", [".", "./", "../zoo", "../zoo/"])
def test_names_do_not_depend_on_how_the_folder_is_called(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    files = open_files(Path(name))
    assert list(files.sizes.items()) == list(open_files(folder).sizes.items())
    assert files.read("b/a/deep/er") == b"x" * 11
