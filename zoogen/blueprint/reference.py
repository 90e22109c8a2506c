"""The blueprint's keys as Markdown for the documentation: types, defaults and meanings of the checked dataclasses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from zoogen.blueprint.check import yaml_number
from zoogen.blueprint.fields import FieldSpec, fields_of, summary
from zoogen.blueprint.sections import PLAIN_SECTIONS, SECTIONS, Head, Section, SeedKeys
from zoogen.core.registry import Registry

_BY_NAME = object()  # a shared key whose default depends on the name
_TITLES = {
    "task": "`task`: what the models are trained on",
    "architecture": "`architecture`: what is trained",
    "training": "`training`: how",
    "training.optimizer": "`training.optimizer`",
    "training.schedule": "`training.schedule`: the learning rate over time (default: constant)",
    "seeds": "`seeds`",
    "checkpoints": "`checkpoints`: which epochs are stored",
    "resources": "`resources`: what a cohort takes",
    "model_split": "`model_split`: train, validation and test *models*",
    "axes": "`axes`: of a phase diagram",
}

_FORMS = """## Value forms

Every value below `task`, `architecture`, `training` and the four streams of `seeds` may be written as

| form | meaning |
| --- | --- |
| `0.1` | the same for all models |
| `{grid: [0.1, 0.2]}` | one model (per seed) for each value: the key is a *factor* |
| `{draw: {uniform: [0.0, 0.5]}}` | drawn `draws` times per grid point, evenly in [low, high) |
| `{draw: {log_uniform: [1.0e-4, 1.0e-1]}}` | drawn evenly in its logarithm |
| `{draw: {integers: [1, 9]}}` | a whole number, the upper bound excluded |
| `{draw: {choice: [relu, tanh]}}` | one of the values |
| `{by: other.key, cases: {value: v, ...}, otherwise: v}` | the value that belongs to the other key's value |

Each `v` of a `by` may be any form again, so a value may depend on two keys. Where no case matches and there is no
`otherwise`, the key is left out and its default holds. `name` may be a grid, too. Below `resources` and `checkpoints`,
values are plain or `by`: they are no factors of a model.

`coupled` lists settings that move together. Each list is one factor; its entries are partial blueprints that are laid
over the rest of the file, and may contain value forms:

```yaml
coupled:
  optimizer:
    - {training: {optimizer: {name: adam}}}
    - {training: {optimizer: {name: sgd, momentum: 0.9}}}
```

YAML 1.1 reads `1e-3` as text and `no` as false: write `1.0e-3` and `"no"`.
"""


def reference() -> str:
    """Markdown of all keys with everything that is registered now; headings start at level 2."""
    parts = ["## Top level", summary(Head), _table(fields_of(Head).values()), _FORMS]
    for path, section in SECTIONS.items():
        parts += [f"{'###' if '.' in path else '##'} {_TITLES[path]}"]
        parts += _registry(section.registry) if section.registry else _fixed(section)
    for name, cls in PLAIN_SECTIONS.items():
        parts += [f"## {_TITLES[name]}", summary(cls), _table(fields_of(cls).values())]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _fixed(section: Section) -> list[str]:
    assert section.keys is not None
    if section.path == "seeds":
        specs = {**fields_of(SeedKeys), **section.specs()}
        return [summary(SeedKeys), _table(specs.values())]
    return [summary(section.keys), _table(section.specs().values())]


def _registry(registry: Registry) -> list[str]:
    """A table per name; keys that all names share with one meaning stand once, before them."""
    classes = {name: registry.get(name) for name in registry.names()}
    shared = _shared([fields_of(cls) for cls in classes.values()])
    parts = []
    if shared:
        parts += [f"Keys of every {registry.kind}:", _table(shared.values())]
    for name, cls in classes.items():
        own = [s for key, s in fields_of(cls).items() if key not in shared or _row(s) != _row(shared[key])]
        parts += [f"**`name: {name}`** — {summary(cls) or 'no further keys'}", _table(own) if own else ""]
    return parts


def _shared(tables: list[Mapping[str, FieldSpec]]) -> dict[str, FieldSpec]:
    if len(tables) < 2:
        return {}
    first, *others = tables
    found = {}
    for key, spec in first.items():
        if all(key in table and table[key].words == spec.words for table in others):
            same = all(_default(table[key]) == _default(spec) for table in others)
            found[key] = spec if same else replace(spec, default=_BY_NAME)
    return found


def _table(specs: Iterable[FieldSpec]) -> str:
    return "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *map(_row, specs)])


def _row(spec: FieldSpec) -> str:
    cells = (f"`{spec.name}`", spec.words, _default(spec), spec.doc)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(spec: FieldSpec) -> str:
    if spec.required:
        return "required"
    if spec.default is _BY_NAME:
        return "see below"
    if spec.default is None or spec.default in ("", ()) or (isinstance(spec.default, Mapping) and not spec.default):
        return ""
    if isinstance(spec.default, bool):
        return f"`{str(spec.default).lower()}`"
    if isinstance(spec.default, tuple):
        return f"`{list(spec.default)}`"
    return f"`{yaml_number(spec.default)}`" if isinstance(spec.default, float) else f"`{spec.default}`"
