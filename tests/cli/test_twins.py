"""``zoogen twins report``: what it prints and writes, and that nothing is written when something is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil

import pandas as pd
import pytest


@pytest.fixture
def run(zoogen):
    return lambda *arguments: zoogen("twins", "report", *arguments)


@pytest.fixture
def zoos(twin_zoos, tmp_path):
    return shutil.copytree(twin_zoos, tmp_path / "zoos")


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_report_goes_beside_the_zoo_and_changes_no_byte_of_any(run, zoos):
    before = digests(zoos)
    code, out, err = run(zoos / "parents")
    assert code == 0, err
    page = zoos / "parents-twins-report/report.md"
    assert str(page) in err
    assert page.read_text().startswith("# parents: sparse twins")
    for arm in ("magnitude, global", "random", "variational-dropout"):
        assert f"| {arm}" in out
    assert "40 of 42 twins" in out
    after = digests(zoos)
    assert {p: d for p, d in after.items() if "parents-twins-report" not in p.parts} == before
    code, again, _ = run(zoos / "parents")  # the report beside it is no twin, and is replaced
    assert (code, again) == (0, out)
    assert digests(zoos) == after


def test_json_has_the_table_of_the_twins_that_were_named(run, zoos, tmp_path):
    code, out, _ = run(zoos / "parents", zoos / "magnitude", "--out", tmp_path / "a/b", "--json")
    assert code == 0
    table = pd.read_parquet(tmp_path / "a/b/table.parquet")
    told = json.loads(out)
    assert list(told["twins"]) == ["magnitude"]
    assert [row["test_acc"] for row in told["table"]] == table["test_acc"].tolist()
    assert told["crossings"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "no zoo at"),
        (("magnitude",), "holds twins itself"),
        (("magnitude", "random"), "holds no twins of zoo 'parents-magnitude'"),
        (("parents", "nowhere"), "no zoo at"),
        (("parents", "magnitude", "other"), "twins of zoo 'strangers' version 2"),
        (("parents", "parents"), "they are no twins"),
        (("parents", "magnitude", "magnitude"), "given twice"),
        (("parents", "begun"), "none of the 24 twins"),
        (("alone/parents",), "no folder beside"),
        (("parents", "--out", "magnitude/report"), "lies in the zoo"),
        (("parents", "--out", "parents"), "lies in the zoo"),
        (("parents", "--out", "file"), "is a file"),
    ],
    ids=str,
)
def test_a_mistake_has_exit_code_2_and_writes_nothing(run, zoos, monkeypatch, arguments, says):
    shutil.copytree(zoos / "parents", zoos / "alone/parents")
    shutil.copytree(zoos / "random", zoos / "other")
    manifest = json.loads((zoos / "other/zoo.json").read_text())
    manifest["parents"][0]["name"] = "strangers"
    (zoos / "other/zoo.json").write_text(json.dumps(manifest))
    shutil.copytree(zoos / "magnitude", zoos / "begun")
    for name in ("models.parquet", "checkpoints.parquet"):
        (zoos / "begun" / name).unlink()
    shutil.rmtree(zoos / "begun/shards")
    (zoos / "file").touch()
    before = digests(zoos)
    folders = sorted(p for p in zoos.rglob("*") if p.is_dir())
    monkeypatch.chdir(zoos)
    code, out, err = run(*arguments)
    assert code == 2, err
    assert says in err
    assert out == ""
    assert digests(zoos) == before
    assert sorted(p for p in zoos.rglob("*") if p.is_dir()) == folders


def test_a_report_in_a_folder_that_may_not_be_written_is_a_fault_of_the_machine(run, zoos, monkeypatch):
    from pathlib import Path

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, err = run(zoos / "parents", zoos / "random")
    assert code == 5
    assert "parents-twins-report" in err
