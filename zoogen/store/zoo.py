"""A zoo's folder: manifest, plan, cohorts, sealed shards, lock; the one place that knows what lies where."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout
from zoogen.store import FORMAT_VERSION
from zoogen.store.cohorts import CohortRecord, read_cohorts, write_cohorts
from zoogen.store.durable import TEMPORARY, disk_faults, read_json, write_file
from zoogen.store.fence import build_lock, build_of, new_token, work_folder
from zoogen.store.manifest import check_manifest
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import ShardInfo, read_shard_info
from zoogen.store.tables import read_parquet, replace_parquet

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

MANIFEST_FILE = "zoo.json"
PLAN_FILE = "plan.parquet"
COHORTS_FILE = "cohorts.parquet"
MODELS_TABLE = "models.parquet"
CHECKPOINTS_TABLE = "checkpoints.parquet"
TIMING_TABLE = "timing.parquet"

PLAN_COLUMNS = {"model_id": pa.string()}

_MOST_BYTES = 1 << 28


class ZooFolder:
    """A zoo on disk; ``path`` need not exist until ``create``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        """Whether there is a zoo (a folder with ``zoo.json``)."""
        return (self.path / MANIFEST_FILE).is_file()

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Make the folders and the manifest of a new zoo.

        Raises:
            UserError: a zoo, or a folder with other things in it, is there.
            EnvironmentFault: the disk is full or may not be written.
        """
        # A build killed before it wrote the manifest leaves the working folders; that is not yet a zoo.
        found = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
        # Programs may be given from another zoo, so that both are trained alike.
        strange = sorted(found - {".work", "shards", "programs", f"{TEMPORARY}{MANIFEST_FILE}"})
        if self.exists() or strange:
            what = "a zoo" if self.exists() else f"other things ({', '.join(strange[:3])})"
            raise UserError(f"{self.path} holds {what} already; choose another folder")
        with disk_faults(str(self.path), self.path.parent, 1 << 16):
            shards_folder(self.path).mkdir(parents=True, exist_ok=True)
            work_folder(self.path).mkdir(exist_ok=True)
        self.write_manifest(manifest)

    def manifest(self) -> dict[str, Any]:
        """``zoo.json``.

        Raises:
            UserError: there is no zoo.
            IntegrityError: damaged, or of a format this version does not know.
        """
        try:
            if not self.path.is_dir():
                raise FileNotFoundError
            found = read_json(self.path / MANIFEST_FILE, at_most=_MOST_BYTES)
        except FileNotFoundError:
            raise UserError(f"no zoo at {self.path}: it has no {MANIFEST_FILE}") from None
        if not isinstance(found, dict) or found.get("format") != "zoogen":
            raise IntegrityError(f"{self.path / MANIFEST_FILE}: not the manifest of a zoo")
        if type(version := found.get("format_version")) is not int or version != FORMAT_VERSION:
            raise IntegrityError(
                f"{self.path / MANIFEST_FILE}: format version {version!r:.60}, "
                f"this zoogen reads {FORMAT_VERSION}; a newer zoogen may read it"
            )
        try:
            check_manifest(found)
        except ValueError as error:
            raise IntegrityError(f"{self.path / MANIFEST_FILE}: {error}") from error
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace ``zoo.json`` in one step; format and version are added.

        Raises:
            EnvironmentFault: the disk is full or may not be written.
        """
        data = {**manifest, "format": "zoogen", "format_version": FORMAT_VERSION}
        write_file(self.path / MANIFEST_FILE, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")

    def layout(self, layout_id: str) -> Layout:
        """A layout from the manifest's ``layouts``.

        Raises:
            IntegrityError: it is not there, or is not the layout of that id.
        """
        return layout_of(self.manifest(), layout_id, self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the zoo for one builder.

        Raises:
            UserError: another process builds it; the message says which.
        """
        with build_lock(self.path):
            yield

    def new_token(self) -> str:
        """The token of this build; writers of earlier builds are fenced off from now on. Needs the lock."""
        return new_token(self.path)

    def clean_leftovers(self, token: str) -> None:
        """Remove what killed builders left half written (never a sealed shard). Needs the lock."""
        for path in shards_folder(self.path).glob(f"{TEMPORARY}*"):
            if f"-{build_of(token)}" not in path.name:
                shutil.rmtree(path, ignore_errors=True)
        for folder in (
            self.path,
            *(self.path / name for name in ("logs", "splits", "programs")),
            work_folder(self.path),
        ):
            for path in folder.glob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)

    def write_plan(self, table: pd.DataFrame | pa.Table) -> None:
        """Replace ``plan.parquet`` in one step; write the cohorts it names first.

        Raises:
            ValueError: it has no string column ``model_id``, or an id stands twice.
            EnvironmentFault: the disk is full or may not be written.
        """
        if not isinstance(table, pa.Table):
            table = pa.Table.from_pandas(table, preserve_index=False)
        if "model_id" not in table.column_names:
            raise ValueError("a plan needs a column model_id")
        if pa.types.is_large_string(table.schema.field("model_id").type):
            place = table.schema.get_field_index("model_id")
            table = table.set_column(place, "model_id", table["model_id"].cast(pa.string()))
        if len(table["model_id"].unique()) != table.num_rows:
            raise ValueError("a plan names a model twice")
        replace_parquet(self.path / PLAN_FILE, [table], table.schema, needed=table.nbytes)

    def plan_table(self) -> pa.Table:
        """``plan.parquet`` as an Arrow table.

        Raises:
            UserError: the zoo has no plan yet.
            IntegrityError: damaged.
        """
        try:
            return read_parquet(self.path / PLAN_FILE, PLAN_COLUMNS)
        except FileNotFoundError:
            raise UserError(f"{self.path} has no plan yet; `zoogen build` makes it") from None

    def read_plan(self) -> pd.DataFrame:
        """``plan.parquet`` as a DataFrame; integers and booleans with gaps keep their type (``Int64``, ``boolean``).

        Raises:
            UserError, IntegrityError: as ``plan_table``.
        """
        return to_frame(self.plan_table())

    def write_cohorts(self, records: Sequence[CohortRecord]) -> None:
        """Replace ``cohorts.parquet`` in one step."""
        write_cohorts(self.path / COHORTS_FILE, records)

    def read_cohorts(self) -> list[CohortRecord]:
        """Every planned cohort; empty before the first plan."""
        return read_cohorts(self.path / COHORTS_FILE)

    def shard_folders(self) -> list[Path]:
        """Folders of sealed shards, by name (half-written ones have other names)."""
        folder = shards_folder(self.path)
        found = folder.iterdir() if folder.is_dir() else iter(())
        return sorted(p for p in found if p.is_dir() and not p.name.startswith("."))

    def sealed(self) -> dict[str, ShardInfo]:
        """Sealed shards by id; reads only their ``shard.json``.

        A shard whose ``shard.json`` is damaged is left out with a warning: ``verify`` and ``remove_damaged`` deal with
        it.
        """
        shards = {}
        for folder in self.shard_folders():
            try:
                shards[folder.name] = read_shard_info(folder)
            except IntegrityError as error:
                log.warning("%s", error)
        return shards

    def remove_damaged(self, shard_id: str) -> Path:
        """Move a shard aside, to ``.work/damaged/``, so that the next build makes it anew; returns where it went."""
        target = work_folder(self.path) / "damaged"
        target.mkdir(parents=True, exist_ok=True)
        number = sum(1 for p in target.iterdir() if p.name.startswith(f"{shard_id}."))
        return (shards_folder(self.path) / shard_id).rename(target / f"{shard_id}.{number}")


def layout_of(manifest: Mapping[str, Any], layout_id: str, zoo: Path) -> Layout:
    """The layout ``layout_id`` of a manifest, checked against its id.

    Raises:
        IntegrityError: it is not there, damaged, or another one.
    """
    try:
        layout = Layout.from_json(manifest["layouts"][layout_id])
        intact = layout.layout_id == layout_id
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{zoo / MANIFEST_FILE}: layout {layout_id} is missing or damaged ({error!r})") from error
    if not intact:
        raise IntegrityError(f"{zoo / MANIFEST_FILE}: layout {layout_id} is damaged")
    return layout


def to_frame(table: pa.Table, gaps: Collection[str] | None = None) -> pd.DataFrame:
    """A DataFrame of NumPy columns; integers and booleans with gaps become ``Int64`` and ``boolean``, not floats.

    Args:
        table: All rows of a table, or some.
        gaps: Columns with gaps in the rows that are not among these, too; None: as found.
    """
    import pandas as pd

    nullable = {pa.bool_(): pd.BooleanDtype()}
    nullable |= {t: pd.Int64Dtype() for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())}
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        mapper = nullable.get if (column.null_count if gaps is None else name in gaps) else None
        columns[name] = column.to_pandas(types_mapper=mapper)
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows))
