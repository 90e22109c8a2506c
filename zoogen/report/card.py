"""The card of a zoo: its README.md, made of what the zoo itself knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoogen.core.words import counted, in_bytes
from zoogen.dataset.modules import WITHOUT_CODE
from zoogen.report.overview import Score, Summary, summary

if TYPE_CHECKING:
    from zoogen.dataset import Zoo


def card(zoo: Zoo) -> str:
    """Markdown: what the zoo is, what it holds, how to open it, and the blueprint that makes it again.

    Raises:
        IntegrityError: a table or the manifest is damaged.
    """
    found = summary(zoo)
    parts = [
        f"# {found.name}",
        found.description or "A population of trained neural networks.",
        f"Version {found.version}; made with zoogen {_made_with(zoo)}.",
        _counts(found),
        "## Open it",
        _code(_example(zoo), "python"),
        "## What varies",
        _factors(found),
        "## Blueprint",
        *_blueprint(zoo, found),
        "## Files",
        _FILES + _SPLITS * (zoo.path / "splits").is_dir(),
        "## Licence",
        "That of its source." if "imported" in zoo.manifest else "Not stated by the blueprint.",
    ]
    return "\n\n".join(parts) + "\n"


_EXAMPLE = """\
import zoogen

zoo = zoogen.open(".")                       # this folder
zoo.models                                   # DataFrame: one row per model, settings and final scores
zoo.checkpoints                              # DataFrame: one row per stored state
last = zoo.select(epochs="last")             # lazy{predicate}
{weights}{module}"""
_WEIGHTS = "weights = last.weights()                     # float32 [states, parameters]"
_OF_LAYOUTS = "weights = [s.weights() for s in last.by_layout()] # float32 [states, parameters] of each"
_PREDICATE = '; also zoo.select("test_acc > 0.5 and seed == 0")'
_MODULE = "\nnetwork = zoo.module(zoo.models.model_id[{row}]) # torch.nn.Module in eval mode"

_FILES = """\
| file | contents |
|---|---|
| `models.parquet`, `checkpoints.parquet` | one row per model, one row per stored state |
| `shards/*/weights.h5` | float32 weights, one row per state, and what each row is |
| `zoo.json` | architectures, tasks, tensor layouts, blueprints, versions |
| `plan.parquet`, `cohorts.parquet` | what was planned; `zoogen verify` holds the rest against it |"""
_SPLITS = "\n| `splits/*.parquet` | which samples are training, validation and test data |"


def _example(zoo: Zoo) -> str:
    """What works on this zoo: imports may have no accuracies, models without code, and networks of all sizes."""
    models = zoo.models
    coded = [name for name, told in zoo.manifest["architectures"].items() if WITHOUT_CODE not in told["name"]]
    rows = np.flatnonzero(models["architecture_id"].isin(coded))
    layouts = {zoo.architecture(str(name))["layout"] for name in models["architecture_id"].unique()}
    return _EXAMPLE.format(
        weights=_WEIGHTS if len(layouts) == 1 else _OF_LAYOUTS,
        predicate=_PREDICATE if "test_acc" in models else "",
        module=_MODULE.format(row=rows[0]) if len(rows) else "",
    )


def _made_with(zoo: Zoo) -> str:
    software = zoo.manifest.get("software", {})
    return str(software.get("zoogen", ""))


def _counts(found: Summary) -> str:
    first, last, count = found.epochs
    statuses = ", ".join(f"{n:,} {status}" for status, n in found.by_status.items() if n)
    rows = [("twins of", str(found.twins_of))] if found.twins_of else []
    rows.append(("models", f"{found.models:,} ({statuses})"))
    rows.append(("states", f"{found.states:,} at {count} epochs from {first} to {last}" if count else "none yet"))
    rows.append(("model split", ", ".join(f"{n:,} {side}" for side, n in found.split.items())))
    rows += [
        ("architecture", f"`{a['name']}`, {a['parameters']:,} parameters ({counted(a['models'], 'model')})")
        for a in found.architectures
    ]
    for task in found.tasks:
        parts = f"{task['train']:,} train, {task['val']:,} validation, {task['test']:,} test samples"
        rows.append(("task", f"`{task['name']}`: {parts}, {task['outputs']:,} classes"))
    rows.append(("weights", in_bytes(found.weight_bytes)))
    rows.append(("final test accuracy", _numbers(found.accuracy)))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _factors(found: Summary) -> str:
    rows = ["| setting | value | models | final test accuracy |", "|---|---|---|---|"]
    for key, values in found.factors.items():
        for number, (value, score) in enumerate(values.items()):
            name = "" if number else f"`{key}`"
            rows.append(f"| {name} | {_cell(value)} | {score.models:,} | {_numbers(score)} |")
    return "\n".join(rows) if found.factors else "Nothing but the seed."


def _numbers(score: Score) -> str:
    if score.median is None:
        return "not measured"
    return f"median {score.median:.3f}, {score.min:.3f} to {score.max:.3f}"


def _blueprint(zoo: Zoo, found: Summary) -> list[str]:
    blueprints = zoo.manifest.get("blueprints", [])
    if not blueprints:
        source = zoo.manifest["imported"]
        return [
            f"None: imported from `{source['source']}` ({source['kind']}); `source.record` is each model's own record."
        ]
    given = blueprints[-1]
    options = "".join(f" --set {override!r}" for override in given["overrides"])
    earlier = f" {len(blueprints) - 1} earlier ones stand in `zoo.json`." if len(blueprints) > 1 else ""
    parent = found.twins_of
    command = f"zoogen sparsify {parent.path} --recipe" if parent else "zoogen build"
    said = f"`{command} blueprint.yaml{options}` makes the zoo again.{earlier}"
    return [said, _code(given["text"].strip("\n"), "yaml")]


def _code(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
