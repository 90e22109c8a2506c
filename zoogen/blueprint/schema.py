"""JSON Schema (draft 2020-12) of the blueprint, for editors; made from the same dataclasses that ``load`` checks with.

What a schema cannot say (axes that are factors, epochs within the training, the number of cells) only ``load`` checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from zoogen.blueprint.fields import FieldSpec, fields_of, summary
from zoogen.blueprint.sections import (
    PLAIN_SECTIONS,
    SECTIONS,
    SEED_POLICY,
    AxesKeys,
    Head,
    Section,
    SeedKeys,
    SplitKeys,
    subsections,
)
from zoogen.core.registry import Registry

Json = dict[str, Any]


def schema() -> Json:
    """The JSON Schema of a blueprint with everything that is registered now."""
    return _Writer().blueprint()


class _Writer:
    def __init__(self) -> None:
        self.defs: Json = {}

    def blueprint(self) -> Json:
        tops = {path: self.section(path) for path in SECTIONS if "." not in path}
        head = {name: self.plain(spec) for name, spec in fields_of(Head).items()}
        entry = {"type": "object", "minProperties": 1, "properties": tops, "additionalProperties": False}
        self.defs["entry"] = entry
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "zoogen blueprint",
            "type": "object",
            "properties": {
                **head,
                **tops,
                "coupled": {
                    "description": "Settings that move together: each list is a factor, its entries are partial "
                    "blueprints laid over the rest.",
                    "type": "object",
                    "additionalProperties": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/entry"}},
                },
                **{name: self.plain_section(cls) for name, cls in PLAIN_SECTIONS.items()},
            },
            "required": ["zoo", "version", "seeds"],
            "additionalProperties": False,
            # With coupled lists, the rest may come from their entries.
            "if": {"not": {"required": ["coupled"]}},
            "then": self.complete(),
            "$defs": self.defs,
        }

    def section(self, path: str) -> Json:
        section = SECTIONS[path]
        inner = {name: self.section(f"{path}.{name}") for name in subsections(path)}
        if section.registry:
            return self.named(section, section.registry)
        assert section.keys is not None
        fixed = {name: self.value(f"{path}.{name}", spec, section) for name, spec in section.specs().items()}
        found = {"type": "object", "properties": {**fixed, **inner}, "additionalProperties": False}
        if path == "seeds":
            found["properties"] = {**{n: self.plain(s) for n, s in fields_of(SeedKeys).items()}, **fixed}
            found["dependentRequired"] = {"draw": ["below"], "below": ["draw"]}
        text = summary(SeedKeys if path == "seeds" else section.keys)
        return {"description": text, **found} if text else found

    def named(self, section: Section, registry: Registry) -> Json:
        """A registry's section: the name decides the other keys; a name that varies admits the keys of all."""
        path, names = section.path, registry.names()
        keys = {name: self.keys(section, registry, name) for name in names}
        every = sorted({key for found in keys.values() for key in found})
        any_of = {key: {"anyOf": _unique(found[key] for found in keys.values() if key in found)} for key in every}
        name_spec = {"enum": names, "description": f"Which {registry.kind}."}
        self.defs[f"{path}.name"] = self.forms(f"{path}.name", name_spec, factors=True)
        return {
            "type": "object",
            "properties": {"name": {"$ref": f"#/$defs/{path}.name"}},
            "allOf": [
                {
                    "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
                    "then": {
                        "description": summary(registry.get(name)),
                        "properties": {"name": True, **keys[name]},
                        "additionalProperties": False,
                    },
                }
                for name in names
            ],
            "if": {"properties": {"name": {"type": "string"}}, "required": ["name"]},
            "else": {"properties": {"name": True, **any_of}, "additionalProperties": False},
        }

    def keys(self, section: Section, registry: Registry, name: str) -> Json:
        specs = fields_of(registry.get(name)).items()
        return {key: self.value(f"{section.path}.{name}.{key}", spec, section) for key, spec in specs}

    def value(self, name: str, spec: FieldSpec, section: Section) -> Json:
        """A reference to the definition of a value that may take every form."""
        self.defs[name] = self.forms(name, self.plain(spec), section.factors)
        return {"$ref": f"#/$defs/{name}"}

    def forms(self, name: str, plain: Json, factors: bool) -> Json:
        described: Json = {key: plain[key] for key in ("description", "default") if key in plain}
        value = {key: item for key, item in plain.items() if key not in described}
        again = {"$ref": f"#/$defs/{name}"}
        by = _object({"by": {"type": "string"}, "cases": _cases(again), "otherwise": again}, ("by", "cases"))
        forms = [value, by]
        if factors:
            forms += [_object({"grid": _values(value)}, ("grid",)), _object({"draw": _draws(value)}, ("draw",))]
        return {**described, "anyOf": forms}

    def plain(self, spec: FieldSpec) -> Json:
        found = spec.adapter.json_schema()
        found.pop("title", None)
        # A type with definitions of its own keeps them under its own reference root.
        self.defs.update(found.pop("$defs", {}))
        if spec.doc:
            found["description"] = spec.doc
        if not spec.required and spec.default is not None:
            found["default"] = to_jsonable_python(spec.default)
        return found

    def plain_section(self, cls: type) -> Json:
        properties = {name: self.plain(spec) for name, spec in fields_of(cls).items()}
        assert cls in (SplitKeys, AxesKeys)
        return {"description": summary(cls), **_object(properties, ())}

    def complete(self) -> Json:
        """What must be given when there are no coupled lists."""
        training = SECTIONS["training"].specs()
        needed = [name for name, spec in training.items() if spec.required]
        return {
            "required": ["task", "architecture", "training"],
            "properties": {
                "task": _complete(SECTIONS["task"]),
                "architecture": _complete(SECTIONS["architecture"]),
                "training": {
                    "required": [*needed, "optimizer"],
                    "properties": {
                        "optimizer": _complete(SECTIONS["training.optimizer"]),
                        "schedule": _complete(SECTIONS["training.schedule"]),
                    },
                },
                "seeds": {"oneOf": [{"required": [name]} for name in SEED_POLICY if name != "below"]},
            },
        }


def _complete(section: Section) -> Json:
    assert section.registry is not None
    rules = []
    for name in section.registry.names():
        required = [key for key, spec in fields_of(section.registry.get(name)).items() if spec.required]
        if required:
            given = {"properties": {"name": {"const": name}}, "required": ["name"]}
            rules.append({"if": given, "then": {"required": required}})
    return {"required": ["name"], **({"allOf": rules} if rules else {})}


def _object(properties: Mapping[str, Any], required: Iterable[str]) -> Json:
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": dict(properties), **needed, "additionalProperties": False}


def _values(value: Json) -> Json:
    return {"type": "array", "minItems": 1, "uniqueItems": True, "items": value}


def _cases(again: Json) -> Json:
    return {"type": "object", "minProperties": 1, "additionalProperties": again}


def _draws(value: Json) -> Json:
    def two(kind: str) -> Json:
        return {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": kind}}

    kinds = {
        "uniform": two("number"),
        "log_uniform": two("number"),
        "integers": two("integer"),
        "choice": _values(value),
    }
    return {**_object(kinds, ()), "minProperties": 1, "maxProperties": 1}


def _unique(items: Iterable[Json]) -> list[Json]:
    found: list[Json] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
