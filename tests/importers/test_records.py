"""Records of any source: names that become one, numbers that are none, and nesting that no record has."""

import json
import math

import pytest

from zoogen.importers.records.json_records import read_json
from zoogen.importers.records.model_record import settings_of_record
from zoogen.importers.records.numbers import number, one_each
from zoogen.importers.records.settings import settings_of
from zoogen.importers.records.trainer_state import by_step


@pytest.mark.parametrize(
    ("told", "expected", "noted"),
    [
        ([("a", 1.0), ("b", 2.0)], {"a": 1.0, "b": 2.0}, False),
        ([("a", 1.0), ("a", 1.0)], {"a": 1.0}, False),
        ([("a", math.nan), ("a", math.nan)], {"a": math.nan}, False),
        ([("a", 1.0), ("a", 2.0), ("b", 2.0)], {"b": 2.0}, True),
        ([("a", 1.0), ("a", 2.0), ("a", 1.0)], {}, True),
        ([("a", math.nan), ("a", 2.0)], {}, True),
    ],
)
def test_of_different_numbers_under_one_name_none_is_taken(told, expected, noted):
    notes = []
    assert repr(one_each(told, notes)) == repr(expected)
    assert [note.partition("called ")[2] for note in notes] == ["a; none of them is taken"] * noted
    one_each(told, notes)
    assert len(notes) == noted


@pytest.mark.parametrize(
    ("record", "expected", "noted"),
    [
        ({"a/b": 1, "a.b": 1}, {"source.config.a.b": 1}, None),
        ({"a/b": 1, "a.b": 2, "c": 3}, {"source.config.c": 3}, "source.config.a.b; none of them"),
        ({"x" * 128 + "1": 1, "x" * 128 + "2": 2}, {}, "x; none of them"),
        ({"lr": 0.1, "training.optimizer.lr": 0.2}, {"training.optimizer.lr": 0.2}, "lr; that of its own name"),
        ({"training.optimizer.lr": 0.2, "lr": 0.1}, {"training.optimizer.lr": 0.2}, "lr; that of its own name"),
        ({"lr": 0.1, "rate": 0.3}, {}, "training.optimizer.lr; none of them"),
    ],
)
def test_of_different_settings_under_one_key_only_that_of_the_very_key_is_taken(record, expected, noted):
    notes = []
    names = {"lr": "training.optimizer.lr", "rate": "training.optimizer.lr"}
    assert settings_of(record, names, notes) == expected
    assert [noted in note for note in notes] == ([] if noted is None else [True])


def test_numbers_of_a_log_whose_names_become_one_are_left_out():
    notes = []
    log = [{"step": 5, "eval/loss": 1.0, "lr": 0.1}, {"step": 5, "eval.loss": 2.0}, {"step": 5, "lr": 0.2}]
    assert by_step({"global_step": 5, "log_history": log}, 5, notes) == {5: {"source.result.lr": 0.2}}
    assert "source.result.eval.loss" in notes[0]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_records_nested_deeper_than_any_are_refused(opening):
    closing = "]" if opening == "[" else "}"
    shallow = opening * 99 + "0" + closing * 99
    assert json.dumps(read_json(shallow)).replace(" ", "") == shallow
    for depth in (102, 900, 100_000):
        with pytest.raises(ValueError, match="nested too deep"):
            read_json(opening * depth + "0" + closing * depth)


def test_numbers_beyond_float64_are_none():
    told = read_json(b'{"a": 1e999, "b": -1e999, "c": Infinity, "d": 1.5, "e": 1%s}' % (b"0" * 400))
    assert math.isnan(told["a"])
    assert math.isnan(told["b"])
    assert (told["c"], told["d"]) == (math.inf, 1.5)
    assert (number(told["e"]), number(True), number("1"), number(2)) == (None, None, None, 2.0)


@pytest.mark.parametrize("config", [{"architectures": ["\ud800X"]}, {"model_type": "x" * 3_000_000}])
def test_the_kind_of_a_model_is_a_short_text_that_can_be_written(config):
    name = settings_of_record(config, config, None, [])["architecture.name"]
    assert len(name.encode()) <= 128
    assert name.endswith(("X", "x"))


@pytest.mark.parametrize("text", ["[[],[]]", '{"a": [1, 2]}', b"[1,2,3,4]"])
def test_values_are_counted_before_they_are_read(text):
    assert read_json(text, 4) == json.loads(text)
    with pytest.raises(ValueError, match="more than the 2 values"):
        read_json(text, 2)
