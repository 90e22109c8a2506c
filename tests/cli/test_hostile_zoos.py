"""Zoos made to harm, through the commands that read them: an exit code and a message, never a traceback or a wait."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


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
