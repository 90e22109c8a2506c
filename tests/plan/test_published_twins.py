"""The twins of the 2022 zoos, planned: 50,360 models, 25 sparse states each (arXiv:2304.13718, ModelZooDataset)."""

from pathlib import Path

import numpy as np

from zoogen.blueprint import load
from zoogen.blueprint.twins import load_recipe
from zoogen.plan import make_plan
from zoogen.plan.twins import ChosenParents, plan_twins

BLUEPRINTS = Path(__file__).parents[2] / "blueprints"


def test_every_model_of_the_27_zoos_gets_25_sparse_states():
    recipe = load_recipe(BLUEPRINTS / "twins" / "variational-dropout.yaml")
    sparse = 0
    for path in sorted((BLUEPRINTS / "model-zoos-2022").glob("*.yaml")):
        parents = make_plan(load(path))
        everyone = ChosenParents(np.arange(len(parents)), np.full(len(parents), 50))
        twins = plan_twins(recipe, parents, everyone)
        assert len(twins) == len(parents)
        sparse += twins.summary.states - len(twins)  # the converted models before their first step are not counted
    assert sparse == 1_259_000
