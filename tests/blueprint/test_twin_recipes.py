"""Twin recipes: what each key means, what is left to defaults, and what is refused with a way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zoogen.blueprint import loads
from zoogen.blueprint.problems import BlueprintError
from zoogen.blueprint.twins import KEYS, SECTIONS, ParentKeys, is_recipe, load_recipe, loads_recipe
from zoogen.core.records import Recording, Resources
from zoogen.train.sparsify.methods import Magnitude, Random, VariationalDropout

SHIPPED = Path(__file__).parents[2] / "blueprints" / "twins"
HALF = "method: {name: magnitude, sparsity: 0.5}\n"

EVERY_KEY = """
twins: all-of-it
version: 4
description: Every key once.
parents: {epoch: 3, where: "test_acc > 0.5"}
method: {name: magnitude, sparsity: 0.75, scope: layerwise, schedule: cubic, rounds: 2, rewind: 1}
training: {epochs: 6, lr_scale: 0.5, schedule: parent}
checkpoints: {initial: false, every: 2, test_predictions: true, evaluate_train: 100}
resources: {cpus: 2, gpus: 0.5, compile: true, channels_last: true, cohort: 9}
"""


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(BlueprintError) as refused:
        loads_recipe(text, "recipe.yaml", overrides)
    return str(refused.value)


def test_every_key_arrives_in_the_recipe():
    assert set(yaml.safe_load(EVERY_KEY)) == {*KEYS}, "this test shall name every key"
    found = loads_recipe(EVERY_KEY)
    assert (found.name, found.version, found.description) == ("all-of-it", 4, "Every key once.")
    assert found.parents == ParentKeys(3, "test_acc > 0.5")
    assert found.methods == (Magnitude(0.75, "layerwise", "cubic", 2, 1),)
    assert (found.epochs, found.lr_scale, found.schedule) == (6, 0.5, "parent")
    assert found.checkpoints.recording(6) == Recording((2, 4, 6), "none", True, 100)
    assert (found.resources, found.cohort_size) == (Resources(2, 0.5, True, True), 9)
    assert (found.text, found.log_alpha) == (EVERY_KEY, False)


@pytest.mark.parametrize(("method", "epochs"), [("magnitude", 15), ("random", 15), ("variational-dropout", 25)])
def test_a_method_alone_trains_as_long_as_the_published_twins_and_stores_every_epoch(method, epochs):
    sparsity = "" if method == "variational-dropout" else ", sparsity: 0.5"
    found = loads_recipe(f"method: {{name: {method}{sparsity}}}")
    assert found.epochs == epochs
    assert found.checkpoints.recording(epochs).epochs == tuple(range(epochs + 1))
    assert found.checkpoints.recording(epochs).optimizer == "none"
    assert found.parents == ParentKeys("last", None)
    assert (found.name, found.version, found.resources, found.cohort_size) == (None, None, None, None)
    assert (found.lr_scale, found.schedule) == (1.0, "constant")


def test_pruning_is_global_one_shot_without_rewinding_by_default():
    assert loads_recipe(HALF).methods == (Magnitude(0.5, "global", "geometric", 1, None),)
    assert loads_recipe(HALF.replace("magnitude", "random")).methods == (Random(0.5, "global"),)


def test_variational_dropout_has_the_published_constants_by_default_and_each_can_be_set():
    (found,) = loads_recipe("method: {name: variational-dropout}").methods
    assert found == VariationalDropout(3.0, -10.0, 10.0, 8.0, 0.01, False)
    keys = "threshold: 2, log_sigma2: -8, clamp_linear: 9, clamp_conv: 7, beta: 1.5, kl_per_sample: true"
    recipe = loads_recipe(f"method: {{name: variational-dropout, {keys}}}\ncheckpoints: {{log_alpha: true}}")
    assert recipe.methods == (VariationalDropout(2.0, -8.0, 9.0, 7.0, 1.5, True),)
    assert recipe.log_alpha


def test_grids_multiply_with_the_first_key_slowest():
    found = loads_recipe("method: {name: magnitude, scope: {grid: [layerwise, global]}, sparsity: {grid: [0.9, 0.5]}}")
    told = [(m.scope, m.sparsity) for m in found.methods]
    assert told == [("layerwise", 0.9), ("layerwise", 0.5), ("global", 0.9), ("global", 0.5)]
    every = """
method:
  name: magnitude
  sparsity: {grid: [0, 0.5]}
  scope: {grid: [global, layerwise, channels]}
  schedule: {grid: [geometric, cubic]}
  rounds: {grid: [1, 15]}
  rewind: {grid: [0, null]}
"""
    found = loads_recipe(every)
    assert len(found.methods) == len(set(found.methods)) == 2 * 3 * 2 * 2 * 2


def test_overrides_change_the_recipe_and_may_be_all_of_it():
    found = loads_recipe(
        HALF, overrides=("method.sparsity={grid: [0.1, 0.2]}", "training.epochs=3", "parents.epoch=best")
    )
    assert ([m.sparsity for m in found.methods], found.epochs, found.parents.epoch) == ([0.1, 0.2], 3, "best")
    assert found.overrides == ("method.sparsity={grid: [0.1, 0.2]}", "training.epochs=3", "parents.epoch=best")
    assert loads_recipe("", overrides=("method.name=random", "method.sparsity=0.3")).methods == (Random(0.3),)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_recipe_is_one_and_is_no_blueprint(path):
    assert is_recipe(path)
    assert load_recipe(path).methods
    with pytest.raises(BlueprintError, match=r"twin recipe, not a blueprint\n.*\n.*\n.*zoogen sparsify ZOO --recipe"):
        loads(path.read_text(), str(path))


def test_a_blueprint_is_no_recipe_and_the_message_says_what_to_do_with_it():
    quickstart = SHIPPED.parent / "quickstart.yaml"
    assert not is_recipe(quickstart)
    with pytest.raises(BlueprintError, match="this is a blueprint, not a twin recipe") as refused:
        load_recipe(quickstart)
    assert len(refused.value.problems) == 1
    assert "zoogen build" in str(refused.value)


def test_the_key_log_alpha_stands_with_the_checkpoints_of_recipes_only():
    assert "log_alpha" in SECTIONS["checkpoints"].__dataclass_fields__
    assert "variational-dropout" in refusal(HALF + "checkpoints: {log_alpha: true}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: {name: magnitude, sparsity: 1.0}", ["1:37", ">= 0 and < 1", "1.0"]),
        ("method: {name: magnitude, sparsity: 1}", [">= 0 and < 1"]),
        ("method: {name: random, sparsity: -0.1}", [">= 0 and < 1", "-0.1"]),
        ("method: {name: magnitude, sparsity: abc}", [">= 0 and < 1", "'abc'"]),
        ("method: {name: magnitude, sparsity: .nan}", ["not finite"]),
        ("method: {name: magnitude, sparsity: {grid: [0.5, 1.5]}}", ["1:50", "1.5"]),
        ("method: {name: magnitude, sparsity: {grid: []}}", ["grid is empty"]),
        ("method: {name: magnitude, sparsity: {grid: [0.5, 0.50]}}", ["stands twice"]),
        ("method: {name: magnitude, sparsity: {draw: {uniform: [0, 1]}}}", ["plain values and grids", "{grid: [...]}"]),
        ("method: {name: magnitude}", ["missing key 'sparsity'", "--sparsity"]),
        ("method: {name: magnitud, sparsity: 0.5}", ["'magnitud'", "Did you mean 'magnitude'?"]),
        ("method: {name: magnitude, sparsty: 0.5}", ["'sparsty'", "Did you mean 'sparsity'?"]),
        ("method: {name: random, sparsity: 0.5, rounds: 2}", ["unknown key 'rounds' for method 'random'"]),
        ("method: {name: variational-dropout, sparsity: 0.5}", ["unknown key 'sparsity'", "threshold"]),
        ("method: {sparsity: 0.5}", ["needs a name", "variational-dropout"]),
        ("method: {name: {grid: [magnitude, random]}, sparsity: 0.5}", ["needs a name"]),
        ("method: magnitude", ["must be a mapping", "--method"]),
        ("parents: {epoch: last}", ["missing key 'method'", "--method"]),
        ("", ["missing key 'method'"]),
        ("[1]", ["mapping of keys"]),
        ("method: {name: magnitude, sparsity: 0.5, scope: layer-wise}", ["'layer-wise'", "Did you mean 'layerwise'?"]),
        ("method: {name: magnitude, sparsity: 0.5, rewind: -1}", ["rewind", ">= 0 or null"]),
        ("method: {name: magnitude, sparsity: 0.5, rounds: 0}", ["rounds", ">= 1"]),
        ("method: {name: magnitude, sparsity: 0.5, rounds: 16}", ["16 rounds", "15 epochs", "training.epochs"]),
        ("method: {name: variational-dropout, clamp_conv: 0}", ["clamp_conv", "> 0"]),
        ("method: {name: variational-dropout, kl_per_sample: 1}", ["kl_per_sample"]),
        (HALF + "training: {epochs: 0}", ["epochs in training", ">= 1"]),
        (HALF + "training: {lr_scale: 0}", ["lr_scale in training", "> 0"]),
        (HALF + "training: {schedule: cosine}", ["'cosine'", "constant, parent"]),
        (HALF + "training: {batch_size: 3}", ["unknown key 'batch_size' in training"]),
        (HALF + "parents: {epoch: lst}", ["last, best or a whole number", "'lst'"]),
        (HALF + "parents: {epoch: -1}", ["parents", "-1"]),
        (HALF + "parents: {wher: x}", ["Did you mean 'where'?"]),
        (HALF + "checkpoints: 3", ["checkpoints must be a mapping"]),
        (HALF + "checkpoints: {optimizer: last}", ["unknown key 'optimizer' in checkpoints"]),
        (HALF + "checkpoints: {epochs: [16, 20]}", ["no checkpoint would be stored", "15 epochs"]),
        (HALF + "resources: {cpu: 2}", ["Did you mean 'cpus'?"]),
        (HALF + "twins: My Zoo", ["'My Zoo'"]),
        (HALF + "version: 0", ["version", ">= 1"]),
        (HALF + "metod: {}", ["unknown key 'metod' in a twin recipe", "Did you mean 'method'?"]),
        (HALF + "seeds: {range: [0, 1]}", ["unknown key 'seeds' in a twin recipe"]),
        (HALF + HALF, ["'method' is repeated"]),
    ],
    ids=lambda value: value.replace(HALF, "")[:40] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_with_its_place_and_what_to_write_instead(text, says):
    told = refusal(text)
    assert told.startswith("recipe.yaml")
    assert [part for part in says if part not in told] == [], told


def test_all_problems_come_in_one_go():
    told = refusal(
        "method: {name: magnitude, sparsity: 2, rounds: 0}\ntraining: {epochs: 0}\nparents: {epoch: x}\nfoo: 1"
    )
    assert [part for part in ("sparsity", "rounds", "epochs", "epoch in parents", "'foo'") if part not in told] == []


def test_a_wrong_override_is_told_as_such():
    assert "--set method.sparsity=7" in refusal(HALF, "method.sparsity=7")
    assert "--set nonsense.x=1" in refusal(HALF, "nonsense.x=1")
    assert "key=value" in refusal(HALF, "abc")
