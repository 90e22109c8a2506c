"""Model cards as the Hugging Face hub has them: what stands between the two ``---`` lines at the head of ``README.md``.

Read as plain YAML without tags, aliases written out within a bound; only what reads as a number is one, so that the
language ``no`` is Norwegian and not false.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from zoogen.importers.records.numbers import one_each
from zoogen.importers.records.settings import RESULT, column

_MOST_TEXT = 1 << 16  # PyYAML takes a second or more for so many characters
_MOST_VALUES = 10_000
_MOST_CHARACTERS = 1 << 18  # with every alias written out
_MOST_DEPTH = 20
_MOST_METRICS = 1_000
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def read_card(data: bytes) -> dict[str, Any]:
    """The card's metadata; empty where it has none.

    Raises:
        ValueError: it is no YAML mapping of plain values, or beyond all measure.
    """
    text = data.decode(errors="replace").removeprefix("\ufeff")
    match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return {}
    if len(match[1]) > _MOST_TEXT:
        raise ValueError(f"its metadata have {len(match[1]):,} characters")
    try:
        root = yaml.compose(match[1], Loader=yaml.SafeLoader)
        found = {} if root is None else _Plain().value(root, 0)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "no YAML"
        raise ValueError(f"its metadata are not readable: {problem}") from error
    except RecursionError as error:
        raise ValueError("its metadata are nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("its metadata are no mapping")
    return found


class _Plain:
    """YAML nodes as text, numbers, lists and mappings; those of an alias count each time it stands."""

    def __init__(self) -> None:
        self.left = _MOST_VALUES
        self.characters = _MOST_CHARACTERS

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _MOST_DEPTH:
            raise ValueError(f"its metadata have more than {_MOST_VALUES:,} values, or are nested too deep")
        if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
            raise ValueError(f"its metadata have the tag {node.tag!r:.60}, which is not read")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError("its metadata have a list or mapping for a key")
                found.setdefault(str(self.value(key, depth + 1)), self.value(value, depth + 1))
            return found
        if not isinstance(node, yaml.ScalarNode):
            return None
        self.characters -= len(node.value)
        if self.characters < 0:
            raise ValueError(f"its metadata have more than {_MOST_CHARACTERS:,} characters, aliases written out")
        return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style is not None:  # quoted
        return text
    if text in ("", "~", "null"):
        return None
    if _NUMBER.fullmatch(text) and len(text) < 30:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text


def metrics_of(card: Mapping[str, Any], notes: list[str]) -> dict[str, float]:
    """What ``model-index`` reports: ``source.result.<dataset>.<config>.<split>.<metric>`` -> number; ``notes`` is told
    of what has several.
    """
    return dict(list(one_each(_reported(card), notes).items())[:_MOST_METRICS])


def _reported(card: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for model in _mappings(card.get("model-index")):
        for result in _mappings(model.get("results")):
            dataset = result.get("dataset")
            told = dataset if isinstance(dataset, dict) else {}
            parts = [told.get("type") or told.get("name"), told.get("config"), told.get("split")]
            for metric in _mappings(result.get("metrics")):
                value = _finite(metric.get("value"))
                kind = metric.get("type") or metric.get("name")
                if value is not None and kind is not None:
                    yield RESULT + column(".".join(str(p) for p in (*parts, kind) if p is not None)), value


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _finite(value: Any) -> float | None:
    """A number, also one in quotes."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    return float(value)
