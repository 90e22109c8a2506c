"""The data that a zoo was trained on: the same files, the same transform, the same split, or an error."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from zoogen.core.contracts import PartName, Task, TaskData
from zoogen.core.errors import IntegrityError, UserError, suggest
from zoogen.core.registry import TASKS
from zoogen.store.splits import read_split
from zoogen.store.zoo import MANIFEST_FILE
from zoogen.tasks.places import cache_root, data_root

if TYPE_CHECKING:
    from torch import Tensor

    from zoogen.dataset.zoo import Zoo

log = logging.getLogger(__name__)

_FACTS = frozenset({"version", "source", "input_shape", "outputs", "sizes", "fingerprint"})
_NO_TRANSFORM = frozenset({"split_seed", "val", "test"})


class ZooTask:
    """A task as a zoo was trained on it; made by ``Zoo.task``.

    To evaluate networks on other data than their own, or where a zoo does not record them, make one::

        usps = TASKS.make("usps", {"val": 500})  # of zoogen.core.registry
        ZooTask("usps", usps, usps.load(data_root, cache_root()))

    Attributes:
        task_id: Its id in the zoo (column ``task_id`` of the models).
        task: Its registered entry: name, arguments, input shape, outputs, sizes.
        data: The loaded data, as trainers see them.
    """

    def __init__(self, task_id: str, task: Task, data: TaskData) -> None:
        self.task_id = task_id
        self.task = task
        self.data = data

    def __repr__(self) -> str:
        parts = ", ".join(f"{part} {self.size(part):,}" for part in get_args(PartName))
        return f"<task {self.task.registered_name!r}: {parts}; transform: {self.transform}>"

    @property
    def transform(self) -> dict[str, Any]:
        """Every argument of the task that decides how a sample looks (those of the split apart), with its value."""
        described = {f.name: getattr(self.task, f.name) for f in fields(self.task)}  # type: ignore[arg-type]
        return {name: value for name, value in described.items() if name not in _NO_TRANSFORM}

    @property
    def split(self) -> dict[PartName, np.ndarray]:
        """int64 indices of the parts: train and val into the published training files, test into the test files."""
        return self.data.split()

    def size(self, part: PartName) -> int:
        """Samples of a part."""
        return self.data.size(_checked(part))

    def inputs(self, part: PartName, device: str = "cpu") -> Tensor:
        """Samples as decoded (images: uint8), [N, *input_shape], in the order of the split.

        They may be the mapped memory of the cache: copy them before changing them.
        """
        return self.data.tensors(_checked(part), device)[0]

    def targets(self, part: PartName, device: str = "cpu") -> Tensor:
        """Classes, int64 [N], in the order of ``inputs``."""
        return self.data.tensors(_checked(part), device)[1]

    def prepare(self, inputs: Tensor) -> Tensor:
        """``inputs`` as the networks see them outside of training's augmentation: float32 [N, *input_shape]."""
        return self.data.prepare(inputs)


def load_task(zoo: Zoo, task_id: str, data: Path | None, download: bool) -> ZooTask:
    """See ``Zoo.task``.

    Raises:
        UserError: this zoogen does not know the task.
        IntegrityError: the manifest or the split are damaged, or the data are not those of the zoo.
        EnvironmentFault: files are missing.
    """
    task = restore_task(zoo, task_id)
    entry = zoo.manifest["tasks"][task_id]
    root = data_root(data)
    loaded = task.load(root, cache_root(), download=download)
    _check_data(zoo, entry, loaded, root)
    _check_split(zoo, task_id, loaded)
    return ZooTask(task_id, task, loaded)


def find_task_id(zoo: Zoo, name: str | None) -> str:
    """The id of the task called ``name`` (or with that id); of the zoo's only task without it.

    Raises:
        UserError: none or several fit.
    """
    tasks = zoo.manifest["tasks"]
    fitting = [i for i, e in tasks.items() if name is None or name == i or name == e.get("name")]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UserError(f"unknown task {name!r}\n{suggest(str(name), {str(e.get('name')) for e in tasks.values()})}")
    shown = "\n".join(f"  {i}: {tasks[i].get('name')}" for i in fitting)
    raise UserError(f"the zoo has several such tasks; name one by its id (column task_id):\n{shown}")


def restore_task(zoo: Zoo, task_id: str) -> Any:
    """The registered entry of a task of the zoo; its data are not looked for.

    Raises:
        UserError: this zoogen does not know the task, or makes another version of it.
        IntegrityError: the manifest is damaged.
    """
    entry = zoo.manifest["tasks"].get(task_id)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise IntegrityError(f"{zoo.path / MANIFEST_FILE}: task {task_id!r} is missing or damaged")
    try:
        task = TASKS.restore({k: v for k, v in entry.items() if k not in _FACTS})
    except (TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{zoo.path / MANIFEST_FILE}: task {dict(entry)} is damaged ({error!r})") from error
    if entry.get("version", task.version) != task.version:
        raise UserError(
            f"zoo {zoo.name!r} was trained on version {entry['version']} of task {task.registered_name!r}, this zoogen "
            f"makes version {task.version}, with other samples, transforms or splits\n"
            "use the zoogen that built the zoo: zoo.manifest['software']"
        )
    return task


def _check_data(zoo: Zoo, entry: Mapping[str, Any], data: TaskData, root: Path) -> None:
    known = entry.get("fingerprint")
    if known is None:
        log.warning("%s: no fingerprint of its data is recorded, so these may be others", zoo.path / MANIFEST_FILE)
    elif known != data.fingerprint:
        raise IntegrityError(
            f"the data of task {entry['name']!r} are not those zoo {zoo.name!r} was trained on: fingerprint "
            f"{data.fingerprint}, the zoo recorded {known}\n"
            f"files were looked for in {root}; give the folder of the original ones: zoo.task(data=DIR)"
        )


def _check_split(zoo: Zoo, task_id: str, data: TaskData) -> None:
    try:
        stored = read_split(zoo.path, task_id)
    except FileNotFoundError:
        return  # nothing is trained on it yet
    made = data.split()
    if wrong := [part for part in get_args(PartName) if not np.array_equal(stored[part], made[part])]:
        raise IntegrityError(
            f"{zoo.path / 'splits' / task_id}.parquet: its samples of {', '.join(wrong)} are not those the task is "
            "split into\n`zoogen verify` lists all damage"
        )


def _checked(part: str) -> PartName:
    if part not in get_args(PartName):
        raise UserError(f"unknown part {part!r}\n{suggest(str(part), get_args(PartName))}")
    return part  # type: ignore[return-value]
