"""``zoo.json`` of a build: what the zoo is, from which blueprints, architectures, tasks and data it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.contracts import TaskData, describe_task
from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout
from zoogen.core.registry import ARCHITECTURES
from zoogen.plan import Plan
from zoogen.store.shard_info import software


def task_id(task: Any) -> str:
    """Digest of a task's identity; names its entry in the manifest and its split file."""
    return digest(canonical_json(describe_task(task)))


def describe_stored_task(task: Any) -> dict[str, Any]:
    """A task as the manifest keeps it; the fingerprint is added once its data are loaded."""
    facts = {"input_shape": list(task.input_shape), "outputs": task.outputs, "sizes": list(task.sizes)}
    return describe_task(task) | facts


def describe_architecture(architecture: Any, task: Any, layout: Layout) -> dict[str, Any]:
    """An architecture on a task, as the manifest keeps it: what builds the network again, and its layout."""
    described = {**ARCHITECTURES.describe(architecture), "input_shape": list(task.input_shape)}
    return described | {"outputs": task.outputs, "layout": layout.layout_id}


def architecture_id(architecture: Any, task: Any, layout: Layout) -> str:
    """Names an architecture's entry in the manifest; the plan's column ``architecture_id``."""
    return digest(canonical_json(describe_architecture(architecture, task, layout)))


def make_manifest(plan: Plan, stored: dict[str, Any]) -> dict[str, Any]:
    """The manifest after this plan: ``stored`` (empty for a new zoo) extended by what the plan adds.

    Raises:
        UserError: the zoo has another name or version.
    """
    blueprint = plan.blueprint
    for key, value in (("name", blueprint.name), ("version", blueprint.version)):
        if stored and stored[key] != value:
            raise UserError(
                f"the zoo here has {key} {stored[key]!r}, what is asked for has {value!r}\n"
                "choose another folder (--out DIR), or put the blueprint or recipe back"
            )
    given = {"text": blueprint.text, "overrides": list(blueprint.overrides)}
    given["digest"] = digest(canonical_json(given))
    blueprints = [b for b in stored.get("blueprints", []) if b["digest"] != given["digest"]] + [given]
    architectures = dict(stored.get("architectures", {}))
    tasks = dict(stored.get("tasks", {}))
    layouts = dict(stored.get("layouts", {}))
    for group, layout in zip(plan.groups, plan.layouts, strict=True):
        described = describe_architecture(group.architecture, group.task, layout)
        architectures[digest(canonical_json(described))] = described
        layouts.setdefault(layout.layout_id, layout.to_json())
        tasks.setdefault(task_id(group.task), {}).update(describe_stored_task(group.task))
    return {
        "name": blueprint.name,
        "version": blueprint.version,
        "description": blueprint.description,
        "factors": list(plan.factors),
        "axes": dict(blueprint.axes),
        "model_split": vars(blueprint.model_split),
        "parents": stored.get("parents", []),
        "architectures": architectures,
        "tasks": tasks,
        "layouts": layouts,
        "blueprints": blueprints,
        "software": stored.get("software") or software(),
    }


def record_parent(
    manifest: dict[str, Any],
    stored: Mapping[str, Any],
    parent: Mapping[str, Any] | None,
    described: Mapping[str, Any] | None,
) -> None:
    """Keep which zoo the models are made of, and the data that zoo was trained on.

    Args:
        manifest: To be written.
        stored: As it stands in the folder; empty for a new zoo.
        parent: The parent's manifest, and ``described`` what is kept of it; both None for models that start anew.

    Raises:
        UserError: the zoo in the folder has another parent, or none.
        IntegrityError: the parent's shards are not those the twins were made of.
    """
    known = manifest["parents"][0] if manifest["parents"] else None
    if stored and (known is None) != (described is None):
        what = f"twins of zoo {known['name']!r}" if known else "no twins"
        raise UserError(f"the folder holds {what} already\nchoose another one: --out DIR")
    if described is None or parent is None:
        return
    if known is not None:
        if (known["name"], known["version"]) != (described["name"], described["version"]):
            raise UserError(
                f"the folder holds twins of zoo {known['name']!r} version {known['version']}, not of "
                f"{described['name']!r} version {described['version']}\nchoose another one: --out DIR"
            )
        other = [s for s, told in known["shards"].items() if described["shards"].get(s, told) != told]
        if other:
            raise IntegrityError(
                f"shard {other[0]} of the parent zoo has another digest than when these twins were begun\n"
                "put the zoo back that they were made of, or make new twins: --out DIR"
            )
    shards = {**(known["shards"] if known else {}), **described["shards"]}
    manifest["parents"] = [{**described, "shards": shards}]
    for name, entry in manifest["tasks"].items():
        if fingerprint := parent["tasks"].get(name, {}).get("fingerprint"):
            entry.setdefault("fingerprint", fingerprint)


def record_data(manifest: dict[str, Any], task: Any, data: TaskData) -> None:
    """Keep the fingerprint of the data a task was first trained on.

    Raises:
        IntegrityError: the data at hand are not those.
    """
    entry = manifest["tasks"][task_id(task)]
    known = entry.setdefault("fingerprint", data.fingerprint)
    if known != data.fingerprint:
        raise IntegrityError(
            f"the data of task {task.registered_name!r} are not those this zoo was begun with: fingerprint "
            f"{data.fingerprint}, the zoo recorded {known}\n"
            "put the original files back (--data DIR), or build a new zoo (--out DIR)"
        )
