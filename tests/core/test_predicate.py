import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from zoogen.core.errors import UserError
from zoogen.core.predicate import parse


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "model_id": ["a", "b", "c", "d"],
            "training.optimizer.lr": [1e-3, 1e-4, np.nan, 0.1],
            "training.optimizer.name": ["adam", "sgd", "sgd", None],
            "training.optimizer.nesterov": pd.array([True, None, False, True], dtype="boolean"),
            "task.name": pd.Categorical(["mnist", "usps", "mnist", None]),
            "seed": pd.array([2**53 + 1, 2**53, None, 3], dtype="Int64"),
            "test_acc": [0.5, 0.9, 0.95, 0.1],
            "train_acc": [0.6, 0.8, 0.95, np.nan],
        }
    )


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("lr < 1e-3", "b"),
        ("lr <= 1e-3", "ab"),
        ("optimizer.lr == 0.001", "a"),
        ("training.optimizer.lr != .1", "abc"),
        ("1e-4 < lr <= 0.1", "ad"),
        ("0.001 > lr", "b"),
        ("optimizer.name == 'sgd'", "bc"),
        ('optimizer.name != "sgd"', "ad"),
        ("optimizer.name in ['sgd', 'rmsprop']", "bc"),
        ("optimizer.name not in ['sgd',]", "ad"),
        ("optimizer.name not in ['sgd', null]", "a"),
        ("optimizer.name not in []", "abcd"),
        ("task.name != 'mnist'", "bd"),
        ("train_acc != test_acc", "abd"),
        ("optimizer.name in []", ""),
        ("task.name == 'mnist'", "ac"),
        ("nesterov == true", "ad"),
        ("nesterov != true", "bc"),
        ("lr == null", "c"),
        ("null != lr", "abd"),
        ("lr in [null, 0.1]", "cd"),
        ("seed == 9007199254740993", "a"),  # 2**53 + 1, which no float64 holds
        ("seed > 9007199254740992", "a"),
        ("test_acc > train_acc", "b"),
        ("not test_acc > train_acc", "acd"),
        ("test_acc > 0.2 and (lr < 1e-3 or nesterov == false)", "bc"),
        ("lr < 1 or lr > 0 and model_id == 'zzz'", "abd"),  # and binds closer than or
        ("not not lr == null", "c"),
        ("`training.optimizer.lr` > -1_000", "abd"),
        ("model_id >= 'b' and model_id < 'd'", "bc"),
        ("model_id == 'it is; not code()'", ""),
    ],
)
def test_a_predicate_keeps_the_rows_it_says(frame, text, rows):
    found = parse(text).mask(frame)
    assert found.dtype == bool
    assert "".join(frame["model_id"][found]) == rows
    arrays = {name: np.array(frame[name].astype(object).where(frame[name].notna(), None)) for name in frame}
    assert "".join(frame["model_id"][parse(text).evaluate(arrays)]) == rows


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("lr < 1 AND NOT (seed IN (3, 4) Or lr > 0.05)", "lr < 1 and not (seed in [3, 4] or lr > 0.05)"),
        ("lr is null", "lr == null"),
        ("lr IS NOT NULL and nesterov == TRUE", "lr != null and nesterov == true"),
        ("optimizer.name not in ('sgd',)", "optimizer.name not in ['sgd']"),
        ("optimizer.name in ('sgd') and lr in ()", "optimizer.name in ['sgd'] and lr in []"),
        ("not lr is None", "lr != none"),
        ("nesterov == False or nesterov is null", "nesterov == false or nesterov == null"),
    ],
)
def test_spellings_of_sql_mean_the_same(frame, text, same):
    found = parse(text).mask(frame)
    assert found.tolist() == parse(same).mask(frame).tolist()
    assert 0 < found.sum() < len(found) or "()" in text


def test_a_text_without_quotes_is_told_to_need_them():
    with pytest.raises(UserError, match=r"unknown name 'relu'; a text stands in quotes: 'relu'"):
        parse("activation == relu").mask(pd.DataFrame({"activation": ["relu"]}))
    with pytest.raises(UserError, match="unknown name 'relu'") as told:
        parse("relu == 'relu'").mask(pd.DataFrame({"activation": ["relu"]}))
    assert "quotes" not in str(told.value)


def test_columns_with_the_names_of_keywords_stand_in_backquotes():
    frame = pd.DataFrame({"is": [1, 2], "And": [3, 4], "a.in": [5, 6], "nan": [7, 8]})
    text = "`is` == 1 and `And` == 3 and a.in == 5 and nan == 7"
    assert parse(text).mask(frame).tolist() == [True, False]
    assert parse(text).names == ("is", "And", "a.in", "nan")


@pytest.mark.parametrize("seed", range(30))
def test_random_predicates_agree_with_python(seed):
    rng = random.Random(seed)
    values = {"a": [rng.randint(0, 3) for _ in range(50)], "b.c": [rng.choice("xyz") for _ in range(50)]}

    def expression(depth):
        kind = rng.choice(["and", "or", "not", "group"] if depth else ["number", "text", "among"])
        if kind in ("and", "or"):
            return f"{expression(depth - 1)} {kind} {expression(depth - 1)}"
        if kind == "not":
            return f"not {expression(0)}"
        if kind == "group":
            return f"({expression(depth - 1)})"
        if kind == "number":
            return f"a {rng.choice(['==', '!=', '<', '<=', '>', '>='])} {rng.randint(0, 3)}"
        if kind == "text":
            return f"c {rng.choice(['==', '!=', '<', '>='])} '{rng.choice('xyz')}'"
        return f"a {rng.choice(['in', 'not in'])} {rng.sample(range(4), 2)}"

    text = expression(5)
    expected = [eval(text, {"a": a, "c": c}) for a, c in zip(*values.values(), strict=True)]
    assert parse(text).mask(pd.DataFrame(values)).tolist() == expected


@pytest.mark.parametrize("seed", range(60))
def test_random_predicates_on_columns_with_gaps_keep_the_rows_that_pandas_keeps(seed):
    """Pandas on columns where a missing value is NaN (or None), so that every comparison is true or false."""
    rng = random.Random(seed)
    rows = 60

    def drawn(values):
        return [rng.choice([*values, None]) for _ in range(rows)]

    columns = {
        "number": drawn([0.5, 1, 2, 3]),
        "whole": drawn([1, 2, 3]),
        "text": drawn("xyz"),
        "name": drawn("xyz"),
        "flag": drawn([True, False]),
    }
    frame = pd.DataFrame(
        {
            "number": np.array(columns["number"], dtype=float),
            "a.whole": pd.array(columns["whole"], dtype="Int64"),
            "a.text": pd.array(columns["text"], dtype="str"),
            "name": pd.Categorical(columns["name"]),
            "flag": pd.array(columns["flag"], dtype="boolean"),
        }
    )
    kinds = {"number": float, "whole": float, "text": "str", "name": "str", "flag": object}
    plain = {name: pd.Series(columns[name], dtype=kind) for name, kind in kinds.items()}
    values = {"number": [0.5, 1, 2], "whole": [1, 2, 7], "text": "xyw", "name": "xyw", "flag": [True, False]}
    signs = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}

    def told(value):
        return repr(value) if isinstance(value, str) else str(value).lower()

    def comparison():
        name = rng.choice(list(values))
        kind, value = rng.choice(["sign", "sign", "in", "null", "column"]), rng.choice(values[name])
        sign = rng.choice(list(signs) if name != "flag" else ["==", "!="])
        if kind == "null":
            sign = rng.choice(["==", "!="])
            return f"{name} {sign} null", plain[name].isna() if sign == "==" else plain[name].notna()
        if kind == "in":
            among = rng.sample(list(values[name]), 2)
            word = rng.choice(["in", "not in"])
            found = plain[name].isin(among)
            return f"{name} {word} [{', '.join(map(told, among))}]", found if word == "in" else ~found
        if kind == "column" and name != "flag":
            pair = ("number", "whole") if name in ("number", "whole") else ("text", "name")
            return f"{pair[0]} {sign} {pair[1]}", getattr(plain[pair[0]], signs[sign])(plain[pair[1]])
        return f"{name} {sign} {told(value)}", getattr(plain[name], signs[sign])(value)

    def expression(depth):
        if not depth:
            return comparison()
        (left, a), (right, b) = expression(depth - 1), expression(depth - 1)
        kind = rng.choice(["and", "or", "not"])
        if kind == "not":
            return f"not ({left})", ~a.astype(bool)
        return f"({left}) {kind} ({right})", a & b if kind == "and" else a | b

    for depth in (0, 0, 0, 0, 1, 2, 4):
        text, expected = expression(depth)
        assert parse(text).mask(frame).tolist() == expected.tolist(), text


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("lrr < 3", 1, "Did you mean 'lr'"),
        ("test_acc > 0.5 and name == 'sgd'", 20, "task.name, training.optimizer.name"),
        ("optimizer.name < 3", 16, "holds text"),
        ("lr == 'x'", 4, "holds numbers"),
        ("nesterov < true", 10, "true and false"),
        ("nesterov == 1", 10, "true and false"),
        ("lr < null", 4, "null has no order"),
        ("lr = 3", 4, "write '=='"),
        ("lr < 3 && lr > 1", 8, "write 'and'"),
        ("lr", 3, "lr == true"),
        ("lr < ", 5, "a column name or a value"),
        ("lr < 3 lr > 1", 8, "expected 'and', 'or' or the end, found 'lr'"),
        ("(lr < 3", 8, r"expected '\)'"),
        ("1 < 2", 1, "two constants"),
        ("lr in 3", 7, r"expected a list of values in \[\] or \(\)"),
        ("lr in (1, 2]", 12, r"expected ',' or '\)'"),
        ("lr in [1, 2)", 12, r"expected ',' or '\]'"),
        ("lr in [nan]", 8, "'nan' is no value here; a missing value is found with '== null'"),
        ("lr == NaN", 7, "'NaN' is no value here; a missing value is found with '== null'"),
        ("lr < inf", 6, "'inf' is no value here; '> 1e308' and '< -1e308'"),
        ("lr is 3", 7, "expected 'null' after 'is'; compare values with '=='"),
        ("lr is not 3", 11, "expected 'null' after 'is'; compare values with '!='"),
        ("3 is null", 1, "a column name goes before 'is'"),
        ("lr <> 3", 4, r"expected a comparison \(== != < <= > >= in\), found '<>'"),
        ("lr between 1 and 2", 4, r"expected a comparison \(== != < <= > >= in\), found 'between'"),
        ("lr AND lr > 1", 4, "lr == true"),
        ("lr OR", 4, "lr == true"),
        ("lr in [a]", 8, "in quotes"),
        ("lr not 3", 8, "after 'not'"),
        ("name == 'sgd", 9, "has no end"),
        ("lr < 3abc", 6, "unexpected '3'"),
        ("", 1, "a column name or a value"),
        ("__import__('os')", 11, "expected a comparison"),
        ("lr.__class__ == 3", 1, "unknown name"),
    ],
)
def test_a_mistake_is_pointed_at(frame, text, column, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(text).mask(frame)
    first, shown, caret, *_ = str(caught.value).splitlines()
    assert f"column {column}:" in first
    assert shown == f"    {text}"
    assert caret == " " * (column + 3) + "^"


def test_columns_of_lists_do_not_compare():
    frame = pd.DataFrame({"per_class": [np.array([1.0]), np.array([2.0, 3.0])]})
    with pytest.raises(UserError, match="ndarray"):
        parse("per_class == 1").mask(frame)


def test_numbers_and_true_stay_apart_in_a_mixed_column():
    columns = {"x": np.array([1, True, "auto", None], dtype=object)}
    assert parse("x == 1").evaluate(columns).tolist() == [True, False, False, False]
    assert parse("x != true").evaluate(columns).tolist() == [True, False, True, True]
    assert parse("x in ['auto', 1]").evaluate(columns).tolist() == [True, False, True, False]
    with pytest.raises(UserError, match="several types"):
        parse("x < 3").evaluate(columns)


def test_a_float32_column_equals_the_literal_it_was_made_from():
    assert parse("lr == 0.1").evaluate({"lr": np.array([0.1, 0.2], np.float32)}).tolist() == [True, False]


def test_length_and_depth_are_bounded():
    assert len(parse(" and ".join(["a < 1"] * 2000)).names) == 1
    for text in ("(" * 1000 + "a < 1" + ")" * 1000, "not " * 1000 + "a < 1"):
        with pytest.raises(UserError, match="levels of nesting"):
            parse(text)
    with pytest.raises(UserError, match="characters"):
        parse("a < 1 " + " " * 200_000)


def test_names_and_their_columns_are_known_before_any_data(frame):
    predicate = parse("lr < 1 and optimizer.name == 'sgd' or lr > 3")
    assert predicate.names == ("lr", "optimizer.name")
    assert predicate.resolve(frame.columns) == {
        "lr": "training.optimizer.lr",
        "optimizer.name": "training.optimizer.name",
    }


def test_an_empty_table_gives_an_empty_mask(frame):
    assert parse("lr < 1 and optimizer.name in ['a']").mask(frame.iloc[:0]).tolist() == []


def test_importing_it_loads_no_pandas():
    code = "import zoogen.core.predicate, sys; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
