"""Zoos made to harm, through the commands that read them: an exit code and a message, never a traceback or a wait."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoogen.cli.terminal import printable


@pytest.fixture
def zoo(small_zoo, tmp_path):
    return Path(shutil.copytree(small_zoo, tmp_path / "zoo"))


def failures(zoo, content):
    (zoo / "logs").mkdir(exist_ok=True)
    (zoo / "logs/failures.json").write_text(content)


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, '{"a": 1}', "\x00"], ids=range(5))
def test_a_list_of_failures_that_is_none_is_told(zoogen, zoo, content):
    failures(zoo, content)
    code, _, err = zoogen("status", zoo)
    assert code == 4
    assert "failures.json: " in err


def test_a_pipe_as_list_of_failures_or_as_blueprint_is_not_waited_for(zoogen, zoo, tmp_path):
    failures(zoo, "")
    (zoo / "logs/failures.json").unlink()
    os.mkfifo(zoo / "logs/failures.json")
    assert zoogen("status", zoo)[0] == 4
    os.mkfifo(tmp_path / "pipe.yaml")
    code, _, err = zoogen("plan", tmp_path / "pipe.yaml")
    assert code == 2
    assert "pipe.yaml: is no file" in err


ESCAPE = "\x1b]0;pwned\x07\x1b[2J\u202e"


def obeyed(text):
    return printable(text) != text


def test_texts_of_a_zoo_do_not_command_the_terminal(zoogen, zoo):
    told = json.loads((zoo / "zoo.json").read_text())
    told |= {"name": ESCAPE, "description": ESCAPE}
    for architecture in told["architectures"].values():
        architecture["name"] = ESCAPE
    (zoo / "zoo.json").write_text(json.dumps(told))
    models = pq.read_table(zoo / "models.parquet")
    place = models.schema.get_field_index("split")
    models = models.set_column(place, "split", pa.array([ESCAPE] * models.num_rows))
    pq.write_table(models, zoo / "models.parquet")
    failures(zoo, json.dumps({ESCAPE: ESCAPE}))
    (zoo / "shards" / f"x{ESCAPE}").mkdir()
    for command in (["info"], ["info", "--json"], ["status"], ["status", "--json"], ["verify"], ["verify", "--json"]):
        _, out, err = zoogen(*command, zoo)
        assert "u001b" in out + err, command
        assert not obeyed(out + err), command


def manifest(**changes):
    def spoil(zoo):
        told = json.loads((zoo / "zoo.json").read_text()) | changes
        (zoo / "zoo.json").write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))

    return spoil


def entries(section, **changes):
    def spoil(zoo):
        told = json.loads((zoo / "zoo.json").read_text())
        for entry in told[section].values():
            entry.update(changes)
        (zoo / "zoo.json").write_text(json.dumps(told))

    return spoil


def column(table, name, value, kind=None):
    """Put one value into every row."""

    def spoil(zoo):
        found = pq.read_table(zoo / table)
        values = pa.array([value] * found.num_rows, kind)
        place = found.schema.get_field_index(name)
        found = found.append_column(name, values) if place < 0 else found.set_column(place, name, values)
        pq.write_table(found, zoo / table)

    return spoil


def folder(name):
    def spoil(zoo):
        (zoo / name).unlink()
        (zoo / name).mkdir()

    return spoil


def many_columns(zoo):
    found = pq.read_table(zoo / "models.parquet")
    for number in range(3):
        more = {f"c{number}.{i}": pa.nulls(found.num_rows) for i in range(10_000)}
        found = pa.table({**dict(zip(found.column_names, found.columns, strict=True)), **more})
    pq.write_table(found.replace_schema_metadata({b"zoogen.format_version": b"1"}), zoo / "models.parquet")


SPOILERS = {
    "no name": manifest(name=...),
    "a list as name": manifest(name=["x"]),
    "true as version": manifest(version=True),
    "true as format version": manifest(format_version=True),
    "mappings as factors": manifest(factors=[{}]),
    "a number as task": manifest(tasks={"x": 3}),
    "a task without sizes": entries("tasks", sizes=None),
    "texts as sizes": entries("tasks", sizes=["a", "b", "c"]),
    "two sizes": entries("tasks", sizes=[1, 2]),
    "a list as name of an architecture": entries("architectures", name=[1]),
    "a list as layout of an architecture": entries("architectures", layout=[1]),
    "a number as architectures": manifest(architectures=3),
    "a number as layout": manifest(layouts={"x": 3}),
    "a number as parent": manifest(parents=[3]),
    "a mapping as parents": manifest(parents={"a": 1}),
    "a folder as manifest": folder("zoo.json"),
    "a folder as plan": folder("plan.parquet"),
    "a folder as models": folder("models.parquet"),
    "a folder as cohorts": folder("cohorts.parquet"),
    "lists as status": column("models.parquet", "status", [1]),
    "numbers as status": column("models.parquet", "status", 1),
    "lists as architecture": column("models.parquet", "architecture_id", [1]),
    "lists as task": column("models.parquet", "task_id", [1]),
    "texts as accuracy": column("models.parquet", "test_acc", "x"),
    "lists as accuracy": column("models.parquet", "test_acc", [1.0]),
    "lists as factor": column("models.parquet", "training.optimizer.lr", [1.0]),
    "texts as train accuracy": column("checkpoints.parquet", "train_acc", "x"),
    "no epochs": column("checkpoints.parquet", "epoch", None, pa.int32()),
    "no rows": column("checkpoints.parquet", "row", None, pa.int32()),
    "no shards": column("checkpoints.parquet", "shard_id", None, pa.string()),
    "no models": column("plan.parquet", "model_id", None, pa.string()),
    "more columns than any table": many_columns,
    "a lacking checkpoint epoch": column("cohorts.parquet", "checkpoint_epochs", [None, 1], pa.list_(pa.int32())),
    "a lacking first epoch": column("cohorts.parquet", "first_epochs", [None], pa.list_(pa.int32())),
    "a lacking model": column("cohorts.parquet", "model_ids", [None], pa.list_(pa.string())),
    "lacking shards": column("cohorts.parquet", "shard_ids", None, pa.list_(pa.string())),
    "a lacking cohort": column("cohorts.parquet", "cohort_id", None, pa.string()),
    "a shard elsewhere": column("cohorts.parquet", "shard_ids", ["../../etc"], pa.list_(pa.string())),
    "a list as settings": column("cohorts.parquet", "settings", "[1]"),
    "deep settings": column("cohorts.parquet", "settings", "[" * 100_000),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_spoiled_zoo_is_told_by_some_command_and_is_no_mistake_of_ours_in_any(zoogen, zoo, name):
    SPOILERS[name](zoo)
    codes = []
    for command in ("info", "status", "verify"):
        code, out, err = zoogen(command, zoo)
        assert "mistake of zoogen" not in err, command
        assert not obeyed(out + err)
        codes.append(code)
    assert set(codes) <= {0, 3, 4}
    assert 4 in codes


def test_files_in_the_work_of_a_zoo_that_are_none_of_ours_are_left_alone(zoogen, zoo):
    (zoo / ".work/cohorts/x.0").mkdir(parents=True)
    (zoo / ".work/cohorts/x.0/current.json").write_text("{")
    (zoo / ".work/cohorts/x.0/state-last.safetensors").write_text("")
    assert zoogen("status", zoo)[0] == 0


@pytest.mark.parametrize(("command", "code"), [("info", 4), ("schema", 1)])
def test_what_nobody_expected_is_told_in_two_lines(zoogen, zoo, monkeypatch, command, code):
    def fail(*_):
        raise TypeError("unhashable")

    monkeypatch.setattr("zoogen.report.summary" if command == "info" else "zoogen.blueprint.schema", fail)
    arguments = (command, zoo) if command == "info" else (command,)
    found, _, err = zoogen(*arguments)
    assert (found, len(err.splitlines())) == (code, 2)
    assert "TypeError: unhashable" in err
    assert "please report it" in err
    monkeypatch.setenv("ZOOGEN_DEBUG", "1")
    with pytest.raises(TypeError):
        zoogen(*arguments)


def test_a_reader_that_runs_out_of_memory_is_not_advised_to_train_with_less(zoogen, zoo, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("zoogen.report.summary", fail)
    assert zoogen("info", zoo) == (5, "", "out of memory\n")
