"""Folders of state dicts with a table."""

import datetime
import json
import re
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import zoogen
from zoogen.build.importing import import_zoo
from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.modules import build_model
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.opening import open_source
from zoogen.importers.source import Skipped
from zoogen.report import trajectories_picture


@pytest.fixture
def table(tmp_path):
    """Two models, 2 epochs each, of mlp; the rows of their table."""
    rows = []
    for seed, rate in ((0, 0.1), (1, 1e-5)):
        for epoch in (0, 5):
            file = f"states/m{seed}_{epoch}.pt"
            (tmp_path / "zoo/states").mkdir(parents=True, exist_ok=True)
            network = build_model(ARCHITECTURES.make("mlp", {"hidden": (6,)}), (1, 8, 8), 10, seed + epoch)
            torch.save({f"module.{n}": t for n, t in network.state_dict().items()}, tmp_path / "zoo" / file)
            rows.append(
                {
                    "file": file,
                    "model": f"m{seed}",
                    "epoch": epoch,
                    "lr": rate,
                    "seed": seed,
                    "architecture.name": "mlp",
                    "architecture.hidden": "[6]",
                    "architecture.activation": "relu",
                    "architecture.dropout": 0.0,
                    "architecture.init": "kaiming_uniform",
                    "input_shape": "1x8x8",
                    "outputs": 10,
                    "test_acc": 0.1 + epoch / 30,
                    "f1": 0.2 + epoch / 7,
                    "note": "a|b",
                }
            )
    return tmp_path / "zoo", pd.DataFrame(rows)


WRITERS = {
    "csv": lambda t, p: t.to_csv(p / "models.csv", index=False),
    "json": lambda t, p: (p / "models.json").write_text(json.dumps(t.to_dict("records"))),
    "parquet": lambda t, p: t.to_parquet(p / "models.parquet"),
}


@pytest.mark.parametrize("form", WRITERS)
def test_models_settings_and_metrics_come_from_the_table(table, form):
    folder, rows = table
    WRITERS[form](rows, folder)
    with open_source(folder) as source:
        assert source.registered_name == "torch"
        first, second = source.models()
        assert (first.key, second.key) == ("m0", "m1")
        assert [s.epoch for s in first.checkpoints] == [0, 5]
        assert first.settings["training.optimizer.lr"] == 0.1
        assert second.settings["seed"] == 1
        assert first.settings["source.config.note"] == "a|b"
        assert first.network.architecture == ARCHITECTURES.make(
            "mlp", {"hidden": (6,), "activation": "relu", "init": "kaiming_uniform"}
        )
        measured = source.measured(second).by_epoch
        assert measured[5] == {"test_acc": 0.1 + 5 / 30, "source.result.f1": 0.2 + 5 / 7}
        for model in (first, second):
            for stored in model.checkpoints:
                written = torch.load(folder / stored.file, weights_only=True)
                read = source.state(model, stored).tensors
                assert all(torch.equal(written[f"module.{n}"], t) for n, t in read.items())
        assert [json.loads(m.original)[0]["model"] for m in (first, second)] == ["m0", "m1"]


@pytest.mark.parametrize("column", ["architecture.name", "architecture.activation", "input_shape"])
def test_what_the_table_does_not_say_is_not_guessed(table, column):
    folder, rows = table
    WRITERS["csv"](rows.drop(columns=column), folder)
    with open_source(folder) as source:
        for model in source.models():
            assert model.network is None
            assert column in model.notes[0]


def test_all_that_the_table_does_not_say_is_told_at_once(table):
    folder, rows = table
    left_out = ["architecture.hidden", "architecture.dropout", "architecture.init", "input_shape", "outputs"]
    WRITERS["csv"](rows.drop(columns=left_out), folder)
    told = "its record has no architecture.dropout, architecture.hidden, input_shape, outputs"
    with open_source(folder) as source:
        assert [m.notes for m in source.models()] == [(f"is imported without code: {told}",)] * 2


def test_how_weights_began_need_not_be_recorded(table):
    folder, rows = table
    WRITERS["csv"](rows.drop(columns="architecture.init"), folder)
    with open_source(folder) as source:
        first, second = source.models()
    assert first.network.architecture == ARCHITECTURES.make("mlp", {"hidden": (6,), "activation": "relu"})
    assert "architecture.init" not in first.settings
    assert first.layout == second.layout


def test_a_zoo_of_which_some_models_say_how_they_began_is_built(table, tmp_path):
    folder, rows = table
    rows.loc[rows["model"] == "m1", "architecture.init"] = None
    WRITERS["csv"](rows, folder)
    zoo = zoogen.open(import_zoo(folder, None, tmp_path / "out", lambda _: None).path)
    told = zoo.models.set_index("source.key")["architecture.init"]
    assert told.isna().to_dict() == {key: key == "m1" for key in told.index}  # and nothing made up
    for model_id in zoo.models["model_id"]:
        found, stored = zoo.module(model_id).state_dict(), zoo.state_dict(model_id)
        assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("known", ["both", "second", "none"])
def test_the_card_shows_only_what_works_on_the_zoo(table, tmp_path, monkeypatch, known):
    folder, rows = table
    if known == "none":
        rows = rows.drop(columns=["architecture.name", "test_acc"])
    elif known == "second":
        rows.loc[rows["model"] == "m0", "outputs"] = 7  # not what its tensors have
    WRITERS["csv"](rows, folder)
    zoo = zoogen.open(import_zoo(folder, None, tmp_path / "out", lambda _: None).path)
    card = (zoo.path / "README.md").read_text()
    assert ("zoo.module(" in card, "test_acc >" in card) == (known != "none", known != "none")
    assert "splits/" not in card
    monkeypatch.chdir(zoo.path)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    if known == "none":
        with pytest.raises(UserError, match=r"no stored test accuracies to draw; the records it was imported with"):
            trajectories_picture(zoo, tmp_path / "picture.png")


def test_an_architecture_that_would_run_code_is_not_taken_from_a_table(table):
    folder, rows = table
    rows["architecture.name"] = "import"
    rows["architecture.path"] = "os:system"
    WRITERS["csv"](rows, folder)
    with open_source(folder) as source:
        assert all(m.network is None and "would run code" in m.notes[0] for m in source.models())


def test_missing_damaged_and_unlisted_files_are_told(table):
    folder, rows = table
    (folder / "states/m0_0.pt").unlink()
    (folder / "states/m1_0.pt").write_bytes(b"no")
    (folder / "states/m1_5.pt").write_bytes(b"no")
    torch.save({"w": torch.ones(1)}, folder / "states/extra.pth")
    WRITERS["csv"](rows, folder)
    with open_source(folder) as source:
        first, second, extra = source.models()
    assert [s.epoch for s in first.checkpoints] == [5]
    assert first.notes == ("states/m0_0.pt is not there",)
    assert second.reason.startswith("has no usable checkpoint: states/m1_0.pt is not a state dict")
    assert extra == Skipped("states/extra.pth", None, "stands in no row of the table", what="file")


def test_a_table_that_leaves_its_folder_reads_nothing_there(table, tmp_path):
    folder, rows = table
    torch.save({"w": torch.ones(1)}, tmp_path / "outside.pt")
    rows["file"] = "../outside.pt"
    WRITERS["csv"](rows.iloc[:1], folder)
    with open_source(folder) as source:
        first = next(iter(source.models()))
    assert isinstance(first, Skipped)
    assert "is not there" in first.reason


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("name\nx\n", UserError, "row 1 of models.csv has no file"),
        ("file\n\x1b[2J.pt\n", UserError, r"row 1 of models.csv has no file, but '\\x1b\[2J.pt'"),
        ("file,epoch\nstates/m0_0.pt,last\n", UserError, "epoch 'last' of file"),
        ("file,epoch\nstates/m0_0.pt,1.5\n", UserError, "epoch 1.5 of file"),
        ("\xff\xfe", IntegrityError, "not readable as a table"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(table, text, error, says):
    folder, _ = table
    (folder / "models.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=says), open_source(folder, "torch") as source:
        list(source.models())


def test_one_table_is_needed(table):
    folder, rows = table
    with pytest.raises(UserError, match="expected one table"), open_source(folder, "torch") as source:
        list(source.models())
    WRITERS["csv"](rows, folder)
    WRITERS["json"](rows, folder)
    with pytest.raises(UserError, match=r"models.csv, models.json"), open_source(folder, "torch") as source:
        list(source.models())


DAYS = [datetime.date(2026, 1, day) for day in (1, 2, 3, 4)]
HONEST = {  # a column and what the record of the second row has of it
    "dates": (DAYS, "2026-01-02"),
    "times": (pd.to_datetime(DAYS), "2026-01-02T00:00:00"),
    "bytes": ([b"a", b"b", b"a", b"b"], "b"),
    "lists": ([[1, 2], [3], [1, 2], [3]], [3]),
    "decimals": ([Decimal("0.5"), Decimal("0.25")] * 2, 0.25),
    "gaps": ([1.5, None, 1.5, 1.5], None),
}


@pytest.mark.parametrize("name", HONEST)
def test_every_plain_column_of_parquet_is_read(table, name):
    folder, rows = table
    rows["extra"], expected = HONEST[name]
    rows.sample(frac=1, random_state=0).sort_index().to_parquet(folder / "models.parquet")
    with open_source(folder) as source:
        first, _ = source.models()
        assert json.loads(first.original)[1]["extra"] == expected
        assert "__index_level_0__" not in json.loads(first.original)[1]
        source.measured(first)


def test_what_pandas_notes_in_parquet_is_not_needed(table):
    folder, rows = table
    written = pa.Table.from_pandas(rows).replace_schema_metadata({b"pandas": b'{"columns": 3}'})
    pq.write_table(written, folder / "models.parquet")
    with open_source(folder) as source:
        assert [m.key for m in source.models()] == ["m0", "m1"]


def nested(folder):
    pq.write_table(pa.table({"file": ["a.pt"], "extra": [{"a": 1}]}), folder / "models.parquet")


def nulls(folder):
    pq.write_table(pa.table({"file": pa.nulls(20_000, pa.string())}), folder / "models.parquet")


def many_columns(folder):
    pq.write_table(pa.table({f"c{i}": [1] for i in range(1_001)}), folder / "models.parquet")


def one_for_many(folder):
    """A text that stands once in the file, and 600 times in the table."""
    values = pa.array(["x" * 4096] * 600).dictionary_encode()
    pq.write_table(pa.table({"file": values.cast(pa.string())}), folder / "models.parquet", compression="zstd")


def wide_lists(folder):
    pq.write_table(pa.table({"file": ["a.pt"], "l": [[None] * 5_000_000]}), folder / "models.parquet")


def false_size(folder):
    """Two megabytes out of some bytes, of which the end of the file tells much less."""
    path = folder / "models.parquet"
    values = pa.table({"file": ["a.pt"], "x": ["a" * (2 << 20)]})
    pq.write_table(values, path, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False)
    told = pq.ParquetFile(path).metadata.row_group(0)
    data = path.read_bytes()
    for size in (told.column(1).total_uncompressed_size, told.total_byte_size):
        as_stored, number = b"", size << 1
        while number > 127:
            as_stored, number = as_stored + bytes([number & 127 | 128]), number >> 7
        as_stored += bytes([number])
        place = data.rindex(as_stored)
        # The same number of bytes for a number that is a thousand times smaller.
        data = data[:place] + as_stored[:1] + b"\x80" * (len(as_stored) - 2) + b"\0" + data[place + len(as_stored) :]
    path.write_bytes(data)
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).total_uncompressed_size < 100


HOSTILE = {
    "a false size": (false_size, "more than the 1,048,576 bytes"),
    "nested": (nested, "which no setting is"),
    "nulls": (nulls, "more than the 1,000 rows"),
    "columns": (many_columns, "more than the 1,000 columns"),
    "one for many": (one_for_many, "more than the 1,048,576 bytes"),
    "lists": (wide_lists, "more than the 5,000,000 values"),
    "no parquet": (lambda f: (f / "models.parquet").write_bytes(b"PAR1xxxxPAR1"), "not readable"),
    "rows of CSV": (lambda f: (f / "models.csv").write_text("file\n" + "a.pt\n" * 1_001), "more than the 1,000 rows"),
    "columns of CSV": (lambda f: (f / "models.csv").write_text("a," * 1_001 + "b\n"), "more than the 1,000 columns"),
    "a column twice": (lambda f: (f / "models.csv").write_text("file,lr,lr\na.pt,1,2\n"), "the column 'lr' twice"),
    "rows of JSON": (
        lambda f: (f / "models.json").write_text(json.dumps([{"file": "a.pt"}] * 1_001)), "more than the 1,000 rows"
    ),
    "values of JSON": (
        lambda f: (f / "models.json").write_text("[" + "[]," * 2_500_000 + "[]]"), "more than the 5,000,000 values"
    ),
    "deep JSON": (lambda f: (f / "models.json").write_text("[" * 900 + "]" * 900), "nested too deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_that_is_larger_than_any_is_refused_with_its_reason(table, name, monkeypatch):
    folder, _ = table
    monkeypatch.setattr("zoogen.importers.records.file_tables._MOST_UNPACKED", 1 << 20)
    write, says = HOSTILE[name]
    write(folder)
    with pytest.raises(IntegrityError, match=says), open_source(folder, "torch") as source:
        list(source.models())


@pytest.mark.parametrize("model", ["\ud800", "a\nb", "x" * 5000])
def test_a_model_needs_a_name_that_can_be_written(table, model):
    folder, _ = table
    (folder / "models.json").write_text(json.dumps([{"file": "states/m0_0.pt", "model": model}]))
    with pytest.raises(UserError, match=r"row 1 of models\.json is of model"), open_source(folder, "torch") as source:
        list(source.models())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"input_shape": [Infinity]', "cannot be built: cannot convert float infinity"),
        ('"outputs": Infinity', "cannot be built: cannot convert float infinity"),
        ('"outputs": 1e999', "no outputs"),
        ('"outputs": 1%s' % ("0" * 400), "cannot be built"),
    ],
)
def test_sizes_that_are_no_numbers_build_no_network(table, text, says):
    folder, rows = table
    told = rows.iloc[:1].to_dict("records")
    (folder / "models.json").write_text(json.dumps(told).replace("}", f", {text}}}"))
    with open_source(folder) as source:
        first = next(iter(source.models()))
    assert first.network is None
    assert says in first.notes[0]


def test_metrics_without_a_number_of_their_own_are_left_out(table):
    folder, rows = table
    told = rows.to_dict("records")
    for place, row in enumerate(told):
        row |= {"test_acc": 10**400, "a/b": place, "a.b": -place - 1, "c/d": place, "c.d": place}
    (folder / "models.json").write_text(json.dumps(told))
    with open_source(folder) as source:
        first, _ = source.models()
        measured = source.measured(first)
    assert measured.by_epoch[5] == {"source.result.f1": 0.2 + 5 / 7, "source.result.c.d": 1.0}
    assert measured.notes == ("has different numbers that are all called source.result.a.b; none of them is taken",)


def test_numbers_are_those_that_everybody_reads_as_such(table):
    folder, rows = table
    rows["note"] = "1_000"
    WRITERS["csv"](rows, folder)
    with open_source(folder) as source:
        assert next(iter(source.models())).settings["source.config.note"] == "1_000"


@pytest.mark.parametrize("form", WRITERS)
def test_the_split_of_the_table_is_that_of_the_zoo(table, tmp_path, form):
    folder, rows = table
    rows["split"] = ["test", "test", "val", "val"]
    WRITERS[form](rows, folder)
    zoo = zoogen.open(import_zoo(folder, "torch", tmp_path / "out", lambda text: None).path)
    assert zoo.models.set_index("source.key")["split"].astype(str).to_dict() == {"m0": "test", "m1": "val"}
    assert [len(zoo.select(split=side)) for side in ("train", "val", "test")] == [0, 2, 2]


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (["test", "train"] * 2, "(different ones)"),
        (["holdout"] * 4, "(holdout)"),
        (["test", None] * 2, "(test)"),
        ([None] * 4, None),
    ],
    ids=str,
)
def test_a_split_that_is_none_is_said_and_not_taken(table, split, told):
    folder, rows = table
    rows["split"] = split
    WRITERS["csv"](rows, folder)
    with open_source(folder) as source:
        for model in source.models():
            assert model.split is None
            assert len(model.notes) == (told is not None)
            assert all("has no split train, val or test" in note and told in note for note in model.notes)
