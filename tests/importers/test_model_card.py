"""Model cards: what PyYAML's safe loader reads of honest ones, and nothing of hostile ones."""

import json

import pytest
import yaml

from zoogen.importers.records.model_card import metrics_of, read_card

CARD = """---
license: apache-2.0
language: [en, no]
tags:
- vision
- "1.0"
base_model: google/vit  # a comment
width: 1.5
layers: 12
empty:
widget: &example
  src: https://example.com/a.png
again: *example
---

# Model
---
license: other
---
"""


def test_metadata_are_those_of_the_safe_loader_but_words_stay_words():
    expected = yaml.safe_load(CARD.split("---")[1])
    assert expected["language"] == ["en", False]
    assert read_card(CARD.encode()) == expected | {"language": ["en", "no"]}
    assert read_card(CARD.replace("\n", "\r\n").encode()) == read_card(CARD.encode())


@pytest.mark.parametrize(
    "text", ["", "# Model\n---\nlicense: mit\n---\n", "---\nlicense: mit\n", "----\n", "---\n---\n"]
)
def test_a_readme_without_metadata_has_none(text):
    assert read_card(text.encode()) == {}


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "code": ("license: !!python/object/apply:os.system ['touch /tmp/evil']", "has the tag|have the tag"),
    "a name of code": ("license: !!python/name:os.system", "have the tag"),
    "a local tag": ("license: !include /etc/passwd", "have the tag"),
    "alias bomb": (ALIASES, "more than 10,000 values"),
    "an alias of itself": ("a: &a [*a]", "nested too deep"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
    "a long text again and again": (f'a: &a "{"x" * 30_000}"\nb: [{", ".join(["*a"] * 300)}]', "262,144 characters"),
    "a list as a key": ("? [a]\n: b", "a list or mapping for a key"),
    "a list": ("- a", "no mapping"),
    "no YAML": ("a: [", "not readable"),
    "too long": ("a: " + "x" * (1 << 16), "65,5.. characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_is_refused(name):
    text, says = HOSTILE[name]
    with pytest.raises(ValueError, match=says):
        read_card(f"---\n{text}\n---\n".encode())


def result(value, dataset=None, kind="accuracy"):
    return {"dataset": dataset or {"type": "cifar10"}, "metrics": [{"type": kind, "value": value}]}


def test_metrics_are_finite_numbers_by_dataset_and_name():
    parts = {"type": "glue", "config": "sst2", "split": "validation", "name": "GLUE"}
    results = [
        result(0.93),
        result("0.5", parts, "f1"),
        result("n/a", kind="loss"),
        result(float("nan"), kind="nan"),
        result(True, kind="yes"),
        result(1, {"name": "Street View"}),
        result(0.1, kind="twice"),
        result(0.2, kind="twice"),
        {"metrics": "none"},
        "no result",
    ]
    index = [{"name": "m", "results": results}, {"results": None}, 3]
    notes = []
    assert metrics_of({"model-index": json.loads(json.dumps(index))}, notes) == {
        "source.result.cifar10.accuracy": 0.93,
        "source.result.glue.sst2.validation.f1": 0.5,
        "source.result.Street_View.accuracy": 1.0,
    }
    assert notes == ["has different numbers that are all called source.result.cifar10.twice; none of them is taken"]
    assert metrics_of({}, notes) == metrics_of({"model-index": "x"}, notes) == {}
