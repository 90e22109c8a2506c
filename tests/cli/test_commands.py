"""The command line: what it prints, where, and with which exit code; errors never show a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

BLUEPRINTS = Path(__file__).parents[2] / "blueprints"


@pytest.fixture
def zoo(small_zoo, tmp_path):
    return Path(shutil.copytree(small_zoo, tmp_path / "zoo"))


def test_plan_of_a_folder_adds_up(zoogen):
    code, out, _ = zoogen("plan", BLUEPRINTS / "model-zoos-2022", "--json")
    total = json.loads(out)["total"]
    assert (code, total["zoos"], total["models"], total["states"]) == (0, 27, 50_360, 2_585_360)


def test_plan_as_text_has_the_same_numbers_as_json(zoogen):
    _, text, _ = zoogen("plan", BLUEPRINTS / "quickstart.yaml")
    _, out, _ = zoogen("plan", BLUEPRINTS / "quickstart.yaml", "--json")
    (found,) = json.loads(out)["zoos"]
    for key in ("models", "states", "optimizer_steps"):
        assert f"{found[key]:,}" in text
    assert "training.optimizer.lr (3)" in text


def test_plan_needs_no_data_and_an_override_changes_it(zoogen, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOOGEN_DATA", str(tmp_path / "nowhere"))
    code, out, _ = zoogen(
        "plan", BLUEPRINTS / "model-zoos-2022/mnist-seed.yaml", "--set", "training.epochs=2", "--json"
    )
    assert code == 0
    assert json.loads(out)["zoos"][0]["optimizer_steps"] == 1000 * 2 * 5000


def test_an_estimate_is_steps_and_evaluated_samples_times_what_was_measured(zoogen, monkeypatch):
    from zoogen.build import calibrate

    quickstart = BLUEPRINTS / "quickstart.yaml"
    _, out, _ = zoogen("plan", quickstart, "--set", "training.epochs=1", "--calibrate", "--json")
    assert json.loads(out)["zoos"][0]["seconds"] > 0  # really measured; how long it takes is no test's business
    monkeypatch.setattr(calibrate, "_measure", lambda group, layout_id: (0.5, 0.001))
    monkeypatch.setattr(calibrate.os, "cpu_count", lambda: 4)
    _, out, _ = zoogen("plan", quickstart, "--set", "training.epochs=3", "--calibrate", "--json")
    steps, states = 72 * 3 * 20, 72 * 4  # 1,257 samples in batches of 64; epochs 0 to 3
    assert json.loads(out)["zoos"][0]["seconds"] == pytest.approx((steps * 0.5 + states * 540 * 0.001) / 4)


def test_schema_is_json_schema(zoogen):
    code, out, _ = zoogen("schema")
    assert code == 0
    assert json.loads(out)["$schema"].startswith("https://json-schema.org/")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("plam",), 2, "Did you mean 'plan'?"),
        (("plan", "missing.yaml"), 2, "missing.yaml"),
        (("plan",), 2, "Missing argument"),
        (("status", "nowhere"), 2, "no zoo at nowhere"),
        (("verify", "nowhere"), 2, "no zoo at nowhere"),
        (("info", "nowhere"), 2, "nowhere"),
        (("build", "missing.yaml", "--executor", "serial", "--cpus", "2"), 2, "--executor ray"),
        (("build", "missing.yaml", "--address", "a:1", "--cpus", "2"), 2, "--address"),
        (("build", "missing.yaml", "--executor", "magic"), 2, "magic"),
    ],
)
def test_a_mistake_has_exit_code_2_and_says_what_is_wrong(zoogen, arguments, code, says):
    found, _, err = zoogen(*arguments)
    assert found == code
    assert says in err


def test_build_status_info_verify_of_one_zoo(zoogen, tmp_path):
    out_folder = tmp_path / "zoo"
    build = ("build", BLUEPRINTS / "quickstart.yaml", "-o", out_folder, "--executor", "serial", "--where")
    pilot = "activation == 'relu' and lr == 0.01 and seed == 0"
    code, out, err = zoogen(*build, pilot, "--set", "training.epochs=1")
    assert code == 3, err  # 70 of 72 models are still to train
    assert "2 trained, 70 still to train" in out
    code, out, _ = zoogen("status", out_folder, "--json")
    assert json.loads(out)["by_status"] == {"stored": 2, "training": 0, "planned": 70, "failed": 0}
    code, out, _ = zoogen("info", out_folder, "--picture", tmp_path / "picture.svg")
    assert code == 0
    assert "planned" in out
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
    code, out, _ = zoogen("verify", out_folder)
    assert code == 3
    assert "70 of 72" in out
    code, out, err = zoogen(*build, pilot, "--set", "training.epochs=1")
    assert "nothing to train" in err


def test_verify_finds_a_flipped_bit_moves_the_shard_aside_and_says_so(zoogen, zoo):
    code, out, _ = zoogen("verify", zoo)
    assert code == 0, out
    shard = sorted((zoo / "shards").iterdir())[0]
    data = bytearray((shard / "weights.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (shard / "weights.h5").write_bytes(data)
    code, out, _ = zoogen("verify", zoo)
    assert code == 4
    assert shard.name in out
    code, _, err = zoogen("verify", zoo, "--move-damaged")
    assert code == 4
    assert "moved aside" in err
    assert not shard.exists()
    code, out, _ = zoogen("verify", zoo)
    assert code == 3
    assert "missing" in out


def test_missing_data_are_a_fault_of_the_machine_and_leave_no_folder(zoogen, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOOGEN_CACHE", str(tmp_path / "cache"))
    blueprint = BLUEPRINTS / "model-zoos-2022/usps-seed.yaml"
    code, _, err = zoogen("build", blueprint, "-o", tmp_path / "zoo", "--executor", "serial", "--data", tmp_path)
    assert code == 5
    assert "usps.bz2" in err
    assert not (tmp_path / "zoo").exists()
