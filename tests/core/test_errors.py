"""What an unknown name is answered with."""

import pytest

from zoogen.core.errors import suggest

LONG = [f"training.setting_{i}" for i in range(60)] + ["architecture.activation", "training.optimizer.lr"]


@pytest.mark.parametrize(
    ("wrong", "known", "told"),
    [
        ("rleu", ["relu", "tanh"], "known: relu, tanh. Did you mean 'relu'?"),
        ("xyz", ["relu", "tanh"], "known: relu, tanh"),
        ("xyz", [], "known: none"),
        ("activaton", ["a.activation", "seed"], "known: a.activation, seed. Did you mean 'activation'?"),
        ("a.activaton", ["a.activation"], "known: a.activation. Did you mean 'a.activation'?"),
    ],
)
def test_names_and_the_ends_of_dotted_names_are_suggested(wrong, known, told):
    assert suggest(wrong, known) == told


def test_of_very_many_names_those_most_alike_are_told():
    told = suggest("activaton", LONG)
    assert told.startswith("known: architecture.activation, ")
    assert told.endswith(" and 50 others. Did you mean 'activation'?")
    assert told.count(",") == 11
