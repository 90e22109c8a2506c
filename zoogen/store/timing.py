"""``timing.parquet``: seconds per epoch, out of the logs; beside the digests, never under them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa

from zoogen.core.regular import open_regular

log = logging.getLogger(__name__)

TIMING_COLUMNS = {
    "cohort_id": pa.string(),
    "epoch": pa.int32(),
    "seconds_train": pa.float64(),
    "seconds_evaluate": pa.float64(),
    "seconds_store": pa.float64(),
    "host": pa.string(),
    "device": pa.string(),
}


def timing_table(logs: Path) -> pa.Table:
    """Seconds per epoch from ``logs/*.jsonl`` (lines with ``event`` = ``epoch``); a retrained epoch stands again.

    The last line of a log may be torn when its writer was killed: lines that do not parse are left out.
    """
    rows: list[list[str | int | float]] = []
    torn = 0
    for path in sorted(logs.glob("*.jsonl")) if logs.is_dir() else []:
        with open_regular(path) as file:
            for line in file:
                try:
                    told = json.loads(line)
                    if told["event"] == "epoch":
                        rows.append([_MAKE[kind](told[name]) for name, kind in TIMING_COLUMNS.items()])
                except (ValueError, KeyError, TypeError, RecursionError):
                    torn += 1
    if torn:
        log.warning("%s: %d lines could not be read and are left out of the timing table", logs, torn)
    columns = zip(*rows, strict=True) if rows else ([] for _ in TIMING_COLUMNS)
    return pa.table(
        [pa.array(values, kind) for values, kind in zip(columns, TIMING_COLUMNS.values(), strict=True)],
        schema=pa.schema(TIMING_COLUMNS),
    )


_MAKE = {pa.string(): str, pa.int32(): int, pa.float64(): float}
