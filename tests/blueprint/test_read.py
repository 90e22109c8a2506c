"""Files and YAML texts that are no blueprint."""

from __future__ import annotations

import random
import re

import pytest

from zoogen.blueprint import BlueprintError, load, loads


def complaint(text: str) -> str:
    with pytest.raises(BlueprintError) as caught:
        loads(text, "a.yaml")
    return str(caught.value)


def test_a_missing_file_is_told_with_its_neighbours(tmp_path):
    (tmp_path / "mnist-seed.yaml").write_text("zoo: x")
    with pytest.raises(BlueprintError, match=r"no such file\n.*Did you mean 'mnist-seed.yaml'"):
        load(tmp_path / "mnist-sead.yaml")


def test_a_directory_is_no_blueprint(tmp_path):
    with pytest.raises(BlueprintError, match="is a directory"):
        load(tmp_path)


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    (tmp_path / "a.yaml").write_bytes("zoo: x\ndescription: é ".encode() + b"\xff\n")
    with pytest.raises(BlueprintError, match=r"a.yaml:2:16: not UTF-8"):
        load(tmp_path / "a.yaml")


def test_a_file_larger_than_any_blueprint_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(BlueprintError, match="larger than 4 MiB"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_told(text):
    assert "empty" in complaint(text) or "got nothing" in complaint(text)


@pytest.mark.parametrize(("text", "what"), [("- 1", "a list"), ("zoo", "'zoo'"), ("3", "3")])
def test_the_top_level_must_be_a_mapping(text, what):
    assert f"a.yaml:1:1: a blueprint is a mapping of keys, got {what}" in complaint(text)


def test_a_syntax_error_has_its_place():
    assert complaint("zoo: [1, 2\nversion: 1\n").startswith("a.yaml:2:8: not valid YAML")


def test_a_tab_is_named():
    message = complaint("training:\n\tepochs: 1\n")
    assert message.startswith("a.yaml:2:1: not valid YAML")
    assert "the line has a tab" in message


def test_two_documents_are_refused():
    assert "another document" in complaint("zoo: a\n---\nzoo: b\n")


def test_a_control_character_is_located():
    assert complaint("zoo: a\nversion: \x07\n").startswith("a.yaml:2:10: not valid YAML: the character U+0007")


def test_an_alias_bomb_is_refused_before_it_is_expanded():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)]
    message = complaint("\n".join(lines))
    assert "aliases expand to" in message
    assert "at most 20,000" in message


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {b: &b [*a]}"])
def test_an_alias_that_contains_itself_is_refused(text):
    assert "an alias that contains itself" in complaint(text)


def test_deep_nesting_is_refused_without_a_crash():
    assert "nested more than 40 deep" in complaint("[" * 100_000)


def test_too_many_values_are_refused():
    assert "more than 20,000 values" in complaint(f"zoo: [{'1,' * 20_001}]")


def test_anchors_and_merge_keys_may_be_used_modestly(read):
    blueprint = read(
        training="""
        epochs: &n 5
        batch_size: *n
        optimizer: &o {name: test-plain, lr: 0.5}
        """,
        coupled="{opt: [{training: {optimizer: {<<: *o, lr: 0.25}}}, {training: {optimizer: *o}}]}",
    )
    assert blueprint.strata[0].training.batch_size == 5
    assert [stratum.training.optimizer.lr for stratum in blueprint.strata] == [0.25, 0.5]


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path, write):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + write().replace("\n", "\r\n").encode())
    assert load(path).strata == loads(write()).strata


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_text_is_read_or_refused_but_never_crashes(seed, write):
    text = write(
        architecture="{name: test-net, width: {grid: [1, 2]}, rate: {by: architecture.width, cases: {1: 0.5}}}",
        training="{epochs: 5, batch_size: 1, optimizer: {name: {grid: [test-plain, test-heavy]}, lr: 0.1}}",
        coupled="{a: [{task: {val: 3}}, {task: {val: 4}, seeds: {init: 3}}]}",
    )
    pieces = [
        *"{}[]:,",
        "grid",
        "{draw: {uniform: [0, 1]}}",
        "by",
        "null",
        "-1",
        "1e-3",
        "&a",
        "*a",
        "<<: *a",
        "? [1]\n: 2",
    ]
    rng = random.Random(seed)
    refused = 0
    for _ in range(50):
        tokens = re.findall(r"\w[\w.-]*|\s+|.", text)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(tokens))
            tokens[place : place + rng.randint(0, 1)] = [rng.choice([*pieces, rng.choice(tokens)])]
        try:
            loads("".join(tokens))
        except BlueprintError as error:
            refused += len(error.problems) > 0
    assert refused > 10
