"""What reaches the terminal: every letter, and nothing that a terminal obeys."""

import json
import logging
import unicodedata
from pathlib import Path

import pytest

import zoogen.cli
from zoogen.cli.terminal import PrintableFormatter, printable

HONEST = ["größe", "猫と犬", "👩‍🔬 🏳️‍🌈", "naïve\tcafé\n", "עברית", "é", "−1 ± 2 µm", "\\u001b[2J"]


@pytest.mark.parametrize("text", HONEST)
def test_honest_text_stays(text):
    assert printable(text) == text


def test_what_a_terminal_obeys_is_written_out():
    assert printable("\x1b]0;x\x07\r\x9b2J\x7f") == "\\u001b]0;x\\u0007\\u000d\\u009b2J\\u007f"
    assert printable("a\u202etxt.exe\u2066\u2028\ud800") == "a\\u202etxt.exe\\u2066\\u2028\\ud800"
    every = "".join(map(chr, range(0x110000)))
    left = set(every) & set(printable(every))
    assert {c for c in left if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} == {"\n", "\t"}
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not {c for c in left if unicodedata.bidirectional(c) in turns}


def test_json_stays_json():
    text = "".join(map(chr, range(256)))
    assert json.loads(printable(json.dumps([text]))) == [text]


def test_log_lines_are_printable():
    record = logging.LogRecord("zoogen", logging.WARNING, "", 0, "shard %s", ("\x1b[2J",), None)
    assert PrintableFormatter("%(levelname)s: %(message)s").format(record) == "WARNING: shard \\u001b[2J"


def test_commands_print_by_it_alone():
    for file in Path(zoogen.cli.__file__).parent.glob("*.py"):
        assert file.name == "terminal.py" or "click.echo" not in file.read_text(), file
