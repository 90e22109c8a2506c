"""What ``config.json``, a model card and a header say of one model, as settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoogen.importers.records.model_rows import value_of
from zoogen.importers.records.settings import SHORT_NAMES, own_arguments, plain, settings_of

_KINDS = ("architecture", "model_type")
_LONGEST_KIND = 128
_NAME = "architecture.name"


def bases(card: Mapping[str, Any]) -> list[str]:
    """The repositories that a model card says its model was made of."""
    base = card.get("base_model")
    return [b for b in (base if isinstance(base, list) else [base]) if isinstance(b, str)]


def told_of(config: Mapping[str, Any], card: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What card, configuration and header say, in this order of preference.

    Headers hold texts only: where it is our names that are used, those that are written as numbers are numbers.
    """
    told = {**metadata, **config, **card}
    return {**{n: value_of(text) for n, text in metadata.items()}, **config, **card} if _NAME in told else told


def settings_of_record(
    config: Mapping[str, Any], told: Mapping[str, Any], revision: str | None, notes: list[str]
) -> dict[str, Any]:
    """All that is told (``told_of``) as settings; nested mappings are in the record only."""
    flat = {
        name: _single(value)
        for name, value in {**told, "revision": revision}.items()
        if not isinstance(value, dict) and name != "model-index"
    }
    if _NAME in told:
        return own_arguments(settings_of(flat, SHORT_NAMES, notes))
    settings = settings_of(flat, {}, notes)
    named = config.get("architectures")
    kinds = [*(named if isinstance(named, list) else []), *(config.get(name) for name in _KINDS)]
    kind = next((k for k in kinds if isinstance(k, str) and k), None)
    return settings if kind is None else {**settings, _NAME: plain(kind[:_LONGEST_KIND])}


def _single(value: Any) -> Any:
    """A list of one is written as what is in it."""
    return value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict) else value
