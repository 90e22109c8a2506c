"""Folders of state dicts with a table."""

import json

import pandas as pd
import pytest
import torch

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.modules import build_model
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.opening import open_source
from zoogen.importers.source import Skipped


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
    assert extra == Skipped("states/extra.pth", None, "stands in no row of the table")


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
