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
